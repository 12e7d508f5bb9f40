"""The graphs in int8, whose nodes QuantizeLinear and DequantizeLinear say what is 8-bit, and in float16.

Activations are uint8 with a zero point, weights int8 and symmetric with a scale for each output channel, biases int32.
ONNX Runtime and OpenVINO fuse what stands between such nodes into integer operators.

Source: ONNX Runtime's quantization tool, onnxruntime.quantization, which inserts the nodes; Jacob et al., Quantization
and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import onnx

from cnndeploy.errors import QuantizationError
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.machine import quiet
from cnndeploy.specs import PREPARED

# What holds the weights, and nearly all of the work.
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
# Their 8-bit values are those of their input, so that they need no range of their own.
KEEP_RANGE = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze"})
_CLIPS = frozenset({"Clip", "Relu"})
# The tool leaves these in float by itself behind a float layer; the others it would wrap in 8-bit nodes.
_FOLLOW = KEEP_RANGE | _CLIPS | {"AveragePool"}
# What may stay in 8 bits between layers; whatever else a network has is computed in float.
_BETWEEN = _FOLLOW | {"Concat", "GlobalAveragePool", "Sigmoid"}
# What stays in float32 in a file that computes in float16.
_IN_FLOAT32 = frozenset({"Resize", "Softmax"})
_INFERRED = "onnx.infer"  # where onnxruntime.quantization notes that shapes are known
Range = tuple[float, float]


class Network:
    """An ONNX graph and what of it can be quantised.

    ``layers`` maps each layer's name to its node's. A layer has the name of its weights, as ``features.0``; if that is
    another's too, its node's.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        self.producers = {name: node for node in self.model.graph.node for name in node.output}
        self.constants = {each.name: tuple(each.dims) for each in self.model.graph.initializer}
        self.outputs = {value.name for value in self.model.graph.output}
        self.layers: dict[str, str] = {}
        for number, node in enumerate(self.model.graph.node):
            node.name = node.name or f"node_{number}"
            if node.op_type in LAYERS and node.input[1] in self.constants:
                name = node.input[1].removesuffix(".weight")
                self.layers[node.name if name in self.layers else name] = node.name
        if not self.layers:
            found = ", ".join(sorted({node.op_type for node in self.model.graph.node})) or "none"
            raise QuantizationError(
                f"no operator of this network can be quantised: it has {found}, and those that can, with weights in "
                f"the file, are {', '.join(sorted(LAYERS))}. Ship the float file."
            )

    def measured(self) -> list[str]:
        """Return the activations whose ranges must be known: what quantised nodes take and give, but for copies."""
        wanted: dict[str, None] = {}
        for node in self.model.graph.node:
            if node.op_type not in _BETWEEN and node.name not in self.layers.values():
                continue
            for name in (*node.input[: None if node.op_type == "Concat" else 1], *node.output):
                if name and name not in self.constants and self.source_of_range(name) == name:
                    wanted[name] = None
        return list(wanted)

    def source_of_range(self, name: str) -> str:
        """Return the activation whose range this one has: of a copy its input, of what only a ReLU takes the ReLU.

        The levels of a ReLU's range clip as it does, before a maximum as well as after.
        """
        while (node := self.producers.get(name)) is not None and node.op_type in KEEP_RANGE:
            name = str(node.input[0])
        last = name
        while last not in self.outputs:
            users = [node for node in self.model.graph.node if last in node.input]
            if len(users) != 1 or users[0].op_type not in _CLIPS | KEEP_RANGE:
                break
            last = str(users[0].output[0])
            if users[0].op_type in _CLIPS:
                return last
        return name

    def _shapes(self) -> dict[str, list[int]]:
        """Return the lengths of all axes but the batch's, as the graph states them."""
        graph = self.model.graph
        return {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]]
            for value in (*graph.value_info, *graph.output, *graph.input)
        }

    def floats(self) -> int:
        """Return how many numbers the activations in :meth:`measured` are, of one image."""
        shapes = self._shapes()
        return sum(int(np.prod(shapes.get(name, ()), dtype=np.int64)) for name in self.measured())

    def work(self) -> int:
        """Return the multiply-adds of one image in its layers, from the shapes in the graph."""
        shapes, total = self._shapes(), 0
        for node in self.model.graph.node:
            if node.op_type in LAYERS and (dims := self.constants.get(node.input[1])):
                places = np.prod(shapes.get(node.output[0], [])[1:], dtype=np.int64)  # height and width
                total += int(np.prod(dims, dtype=np.int64) * places)
        return total

    def float_nodes(self, float_layers: Collection[str]) -> list[str]:
        """Return the names of nodes that are not to be quantised, when some layers are left in float.

        With a layer goes what has nothing else to work on, and so does what comes behind the last layer: it has little
        work, and logits of 8 bits would have ties.
        """
        left = {self.layers[layer] for layer in float_layers}
        for node in self.model.graph.node:
            sources = [self.producers.get(name) for name in node.input if name not in self.constants]
            alone = bool(sources) and all(source is not None and source.name in left for source in sources)
            # a product of two activations, as attention has, is no layer
            unknown = node.op_type not in _BETWEEN and node.name not in self.layers.values()
            if unknown or (alone and node.op_type in _BETWEEN - _FOLLOW):
                left.add(node.name)
        return sorted(left | self._behind_the_last_layer())

    def _behind_the_last_layer(self) -> set[str]:
        behind: set[str] = set()
        waiting = [self.producers[name] for name in self.outputs if name in self.producers]
        layers = set(self.layers.values())
        while waiting:
            node = waiting.pop()
            sources = [self.producers[name] for name in node.input if name in self.producers]
            folded = node.op_type in _CLIPS and any(source.name in layers for source in sources)
            if node.name not in layers and not folded:
                behind.add(node.name)
                waiting += sources
        return behind


def quantised(
    network: Network, ranges: Mapping[str, Range], float_layers: Collection[str]
) -> onnx.ModelProto:
    """Return a copy with all but some layers in int8; raise QuantizationError if onnxruntime's tool cannot do it.

    Args:
        network: What to quantise; it is left as it is.
        ranges: Of every activation in :meth:`Network.measured`, lowest and highest value.
        float_layers: Names of layers to leave in float.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = copy.deepcopy(network.model)
    # as an output it would be rounded to 8 bits with the network's own input
    beside = [copy.deepcopy(output) for output in model.graph.output if output.name == PREPARED]
    for output in beside:
        model.graph.output.remove(output)
        model.graph.value_info.append(output)  # which tells the tool its dtype
    model.metadata_props.add(key=_INFERRED, value="onnxruntime.quant")
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    sources = {name: network.source_of_range(name) for name in sorted(names)}
    known = {name: ranges[source] for name, source in sources.items() if source in ranges}
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in known.items()}
    try:
        with quiet():
            tool = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=[],
                nodes_to_exclude=network.float_nodes(float_layers),
                op_types_to_quantize=sorted(LAYERS | _BETWEEN),
                extra_options={},
            )
            tool.quantize_model()
            tool.model.topological_sort()  # new nodes come last
    except Exception as error:  # whatever the tool meets in a graph that it was not made for
        raise QuantizationError(
            f"onnxruntime.quantization cannot quantise this network: {error!r}"
        ) from error
    model.graph.output.extend(beside)
    _float_logits(model)
    used = {name for node in model.graph.node for name in node.input}
    kept = copy.deepcopy([each for each in model.graph.initializer if each.name in used])
    del model.graph.initializer[:], model.metadata_props[:]
    model.graph.initializer.extend(sorted(kept, key=lambda each: each.name))
    model.metadata_props.extend(network.model.metadata_props)
    _remove_notes(model, network.model)
    return model


def in_float16(source: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the network that computes in float16 if ONNX Runtime can; it takes and gives float32.

    It is meant for CUDA. ONNX Runtime's CPU provider has few operators in float16: it casts to float32 and back around
    the others, and is slower. A softmax and what resizes stay in float32: probabilities are held to float32's rounding.

    Source: onnxruntime.transformers.float16; QuantizationError is raised if that cannot convert it.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    try:
        with quiet():  # it warns of every weight that is too small for float16
            model: onnx.ModelProto = convert_float_to_float16(
                copy.deepcopy(source),
                keep_io_types=True,
                op_block_list=[*DEFAULT_OP_BLOCK_LIST, *sorted(_IN_FLOAT32)],
            )
        _float_outputs(model)
        ONNXModel(model).topological_sort()  # in place; the casts of the input come last
    except Exception as error:  # whatever the tool meets in a graph that it was not made for
        raise QuantizationError(f"onnxruntime cannot convert this network to float16: {error!r}") from error
    _remove_notes(model, source)
    return model


def _float_outputs(model: onnx.ModelProto) -> None:
    """Remove the rounding to float16 of what is float32 and becomes float32 again at once, as a last softmax does."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for widening in [node for node in model.graph.node if _casts_to(node, onnx.TensorProto.FLOAT)]:
        rounding = producers.get(widening.input[0])
        if rounding is None or not _casts_to(rounding, onnx.TensorProto.FLOAT16):
            continue
        source = producers.get(rounding.input[0])
        users = [node for node in model.graph.node for name in node.input if name == rounding.input[0]]
        alone = sum(rounding.output[0] in node.input for node in model.graph.node) == 1
        if source is None or not alone or len(users) != 1 or source.op_type not in _IN_FLOAT32:
            continue
        source.output[:] = [
            widening.output[0] if name == rounding.input[0] else name for name in source.output
        ]
        model.graph.node.remove(rounding)
        model.graph.node.remove(widening)


def _casts_to(node: onnx.NodeProto, dtype: int) -> bool:
    return node.op_type == "Cast" and any(each.name == "to" and each.i == dtype for each in node.attribute)


def _float_logits(model: onnx.ModelProto) -> None:
    """Take away the 8-bit nodes between the last Gemm and an output, which it can give in float itself."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        name, chain = output.name, []
        for kinds in ("DequantizeLinear",), ("QuantizeLinear",), ("Gemm", "MatMul"):
            node = producers.get(name)
            if node is None or node.op_type not in kinds:
                break
            chain.append(node)
            name = node.input[0]
        else:
            chain[-1].output[0] = output.name
            for node in chain[:-1]:
                model.graph.node.remove(node)


def _remove_notes(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Remove what a tool notes in a file, of itself and of shapes."""
    del model.graph.value_info[:]
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    model.doc_string = model.graph.doc_string = ""


def with_manifest(model: onnx.ModelProto, manifest_json: str) -> bytes:
    """Return the file's bytes, the same for the same model; raise QuantizationError if ONNX's checker objects."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**properties, MANIFEST_KEY: manifest_json})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QuantizationError(f"the quantised file does not pass ONNX's checker: {error}") from error
    content: bytes = model.SerializeToString(deterministic=True)
    return content
