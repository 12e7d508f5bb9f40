"""An ONNX graph of anybody's classifier, rewritten so that it takes prepared images and returns logits.

Only what must change does: the rest of the graph, and the weights, stay as they are.

Source: onnx.proto; the operators' definitions in ONNX's documentation, Operators.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cnndeploy.errors import ArtifactError
from cnndeploy.formats.onnx import MANIFEST_KEY, check_contents
from cnndeploy.importing.onnx_nodes import hoist_constants, prune, rename, sort, unused
from cnndeploy.limits import BeyondLimit
from cnndeploy.preprocessing import Preprocessing

Layout = Literal["NCHW", "NHWC"]
_OPSET = 17  # what older files are brought to; quantization needs 13
_OLD_OPSET = 13
_IR_WITH_SEPARATE_INITIALIZERS = 4
_TAKEN: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
}
_COPIES = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze"})
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_USUAL = ("logits", "output", "out", "scores")
_QUANTISED = frozenset({"DequantizeLinear", "QuantizeLinear"})
_PROBABILITIES = frozenset({*_SOFTMAX, "HardSigmoid", "QLinearSigmoid", "QLinearSoftmax", "Sigmoid"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_LARGEST_BATCH = 256  # that a file may be fixed to, for so many images are run through it
_RANDOM = ("Bernoulli", "Multinomial", "Random")  # their names begin so


@dataclass(frozen=True, slots=True)
class Taken:
    """What a graph takes: the input's name, its dtype, which axis is which, and the batch size if it is fixed."""

    name: str
    dtype: type[np.generic]
    layout: Layout
    batch: int | None

    def of(self, prepared: NDArray[np.float32]) -> NDArray[np.generic]:
        """Turn prepared images, float32 (batch, channels, height, width), into what the graph takes."""
        ordered = prepared if self.layout == "NCHW" else prepared.transpose(0, 2, 3, 1)
        rounded = np.rint(ordered) if self.dtype is np.uint8 else ordered
        return np.ascontiguousarray(rounded.astype(self.dtype))


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A graph that takes float32 (batch, channels, height, width), and what it was made from.

    ``output`` is the one chosen of theirs. ``softmax`` names the operator behind the logits that was taken away, empty
    if there was none. ``preprocessing`` is of what the graph takes. ``notes`` say what was changed.
    """

    model: onnx.ModelProto
    taken: Taken
    output: str
    softmax: str
    preprocessing: Preprocessing
    notes: tuple[str, ...]


def read(path: Path) -> onnx.ModelProto:
    """Read a model with its weights, also those in other files beside it; raise ArtifactError if that fails."""
    try:
        check_contents(path)
        model = onnx.load(path, load_external_data=False)
        if model.ByteSize() + _bytes_outside(model, path.parent) < onnx.checker.MAXIMUM_PROTOBUF:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
            fits = True
        else:
            fits = False
    except BeyondLimit as error:
        raise ArtifactError(f"{path} is refused: {error}") from error
    except Exception as error:  # its own errors have many classes
        text = str(error).strip().partition("\n")[0]
        advice = "If its weights are in a second file, put that beside it under its old name."
        raise ArtifactError(
            f"{path} cannot be read as ONNX: {text or type(error).__name__}. {advice}"
        ) from error
    if any(entry.key == MANIFEST_KEY for entry in model.metadata_props):
        raise ArtifactError(
            f"{path} was written by cnndeploy, so there is nothing to import; use it as it is"
        )
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if (
                axis.HasField("dim_value") and axis.dim_value <= 0
            ):  # how some tools write an axis of any length
                axis.Clear()
    if not fits:
        raise ArtifactError(f"{path} is larger than the 2 GB that one ONNX file can hold")
    return model


def _bytes_outside(model: onnx.ModelProto, folder: Path) -> int:
    """Return how many bytes the weights in other files claim to have, before they are read."""
    total = 0
    for each in model.graph.initializer:
        if onnx.external_data_helper.uses_external_data(each):
            noted = {entry.key: entry.value for entry in each.external_data}
            file = folder / noted.get("location", "")
            whole = file.stat().st_size if file.is_file() else 0
            total += min(int(noted["length"]), whole) if "length" in noted else whole
    return total


def rewritten(
    original: onnx.ModelProto, preprocessing: Preprocessing, output: str | None, *, free_reshapes: bool
) -> Rewritten:
    """Return a copy that takes prepared images in batches of any size, and returns one output, without a type yet.

    Args:
        original: The model that :func:`read` returned, which ONNX Runtime can open.
        preprocessing: How images are prepared.
        output: Which of several outputs are the logits, None for the usual one.
        free_reshapes: Let reshapes to a fixed batch size take any.

    Raises:
        ArtifactError: It takes or returns something else, or computes something random.
    """
    model, notes = copy.deepcopy(original), list[str]()
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    sort(model.graph)
    hoist_constants(model.graph)
    _check_inference(model.graph)
    constants = {each.name for each in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in constants]:
        model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, _IR_WITH_SEPARATE_INITIALIZERS)
    taken, prepared = _taken(model.graph, preprocessing)
    if prepared != preprocessing:
        notes.append("it takes levels from 0 to 255 and scales them itself, so the preprocessing does not")
    if taken.batch is not None:
        notes.append(f"its batch axis was fixed to {taken.batch}, and is free now")
    if free_reshapes:
        _free_reshapes(model.graph, taken.batch or 1)
    chosen, note = _chosen(model.graph, output)
    notes += [note] if note else []
    softmax = _set_output(model.graph, chosen)
    if softmax:
        notes.append(f"its last operator, {softmax}, was removed, so that it returns logits")
    prune(model.graph)
    model = _of_today(model)
    del model.graph.value_info[:]  # its shapes, and that of the output, may be of the fixed batch
    model.graph.output[0].ClearField("type")
    _set_input(model.graph, taken, prepared)
    return Rewritten(model, taken, chosen, softmax, prepared, tuple(notes))


def finish(model: onnx.ModelProto, dtype: np.dtype[np.generic], shape: Sequence[int], classes: int) -> None:
    """Make the output, which has this dtype and shape, float32 (batch, classes), and declare it."""
    (output,) = model.graph.output
    name = output.name
    steps = list[tuple[str, dict[str, Any]]]()
    if dtype != np.float32:
        steps.append(("Cast", {"to": TensorProto.FLOAT}))
    if len(shape) != 2:
        steps.append(("Flatten", {"axis": 1}))
    for operator, attributes in steps:
        after = unused(model.graph, "logits")
        model.graph.node.append(helper.make_node(operator, [name], [after], **attributes))
        name = after
    output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes]))


def _check_inference(graph: onnx.GraphProto) -> None:
    """Replace dropout by Identity; raise ArtifactError if an operator is random, or normalises as in training."""
    constants = {each.name: each for each in graph.initializer if not each.dims}
    for node in graph.node:
        if node.op_type.startswith("DynamicQuantize"):
            raise ArtifactError(
                "it is quantised dynamically, so an image's logits depend on the others in its batch; quantise it "
                "statically, or import the file in float32 and quantise that"
            )
        attributes = {each.name: each for each in node.attribute}
        training = node.op_type == "BatchNormalization" and (
            len(node.output) > 1 or ("training_mode" in attributes and attributes["training_mode"].i)
        )
        if node.op_type.startswith(_RANDOM) or training:
            kind = "in training mode" if training else "random"
            raise ArtifactError(f"{node.op_type} is {kind} in this file; export the network in eval mode")
        if node.op_type == "Dropout":
            mode = node.input[2] if len(node.input) > 2 else ""
            if mode and (mode not in constants or onnx.numpy_helper.to_array(constants[mode])):
                raise ArtifactError(
                    "dropout is in training mode in this file; export the network in eval mode"
                )
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))


def _taken(graph: onnx.GraphProto, preprocessing: Preprocessing) -> tuple[Taken, Preprocessing]:
    """Return what the graph takes, and how images are prepared for it; raise ArtifactError if it takes no images."""
    if len(graph.input) != 1:
        names = ", ".join(value.name for value in graph.input) or "nothing"
        raise ArtifactError(f"it takes {names}; a classifier of images takes one input")
    (given,) = graph.input
    tensor = given.type.tensor_type
    axes = [axis.dim_value or None for axis in tensor.shape.dim]
    shown = ", ".join("?" if axis is None else str(axis) for axis in axes)
    if tensor.elem_type not in _TAKEN or len(axes) != 4:
        kind = helper.tensor_dtype_to_string(tensor.elem_type).removeprefix("TensorProto.").lower()
        raise ArtifactError(
            f"its input {given.name} is {kind} ({shown}); expected images, (batch, channels, height, width) or "
            "(batch, height, width, channels), in float32, float16, float64 or uint8"
        )
    channels, height, width = preprocessing.shape
    orders: dict[Layout, tuple[int, int, int]] = {
        "NCHW": (channels, height, width),
        "NHWC": (height, width, channels),
    }
    fitting = [
        layout
        for layout, lengths in orders.items()
        if all(axis in (None, length) for axis, length in zip(axes[1:], lengths, strict=True))
    ]
    if not fitting:
        raise ArtifactError(
            f"its input {given.name} is ({shown}), and the preprocessing makes images of {channels} channels, "
            f"{height} x {width} pixels"
        )
    if (axes[0] or 0) > _LARGEST_BATCH:
        raise ArtifactError(f"its batch axis is fixed to {axes[0]}; export it with a free batch axis")
    taken = Taken(given.name, _TAKEN[tensor.elem_type], fitting[0], axes[0])
    return taken, _in_levels(preprocessing) if taken.dtype is np.uint8 else preprocessing


def _in_levels(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing of a network that takes levels from 0 to 255."""
    if any(preprocessing.means) or set(preprocessing.stds) != {1.0}:
        raise ArtifactError(
            "it takes uint8, levels from 0 to 255, and normalises them itself; leave mean and std out of the "
            "preprocessing"
        )
    return replace(preprocessing, scale=1.0)


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> None:
    """Let each reshape whose first axis is the fixed batch size keep the axis of what it reshapes."""
    constants = {each.name: each for each in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Reshape" and node.input[1] in constants]:
        lengths = onnx.numpy_helper.to_array(constants[node.input[1]])
        if len(lengths) < 2 or lengths[0] != batch:
            continue
        first = 0 if -1 in lengths else -1
        freed = np.array([first, *lengths[1:]], np.int64)
        name = unused(graph, f"{node.input[1]}_freed")
        graph.initializer.append(onnx.numpy_helper.from_array(freed, name))
        node.input[1] = name


def _chosen(graph: onnx.GraphProto, name: str | None) -> tuple[str, str]:
    """Return the output that is the logits, and a sentence about it if there was a choice."""
    names = [value.name for value in graph.output]
    if not names:
        raise ArtifactError("it returns nothing")
    if name is not None and name not in names:
        raise ArtifactError(f"it has no output {name}; it has {', '.join(names)}")
    if name is not None or len(names) == 1:
        return name or names[0], ""
    floats = [value.name for value in graph.output if value.type.tensor_type.elem_type in _FLOATS]
    usual = [one for wanted in _USUAL for one in floats if one.lower() == wanted]
    chosen = (usual or floats or names)[0]
    return chosen, f"it returns {', '.join(names)}; {chosen} is taken for the logits"


def _of_today(model: onnx.ModelProto) -> onnx.ModelProto:
    """Bring an old file to an opset that every tool here knows, if onnx can; else leave it."""
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset >= _OLD_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _OPSET)
    except Exception:  # noqa: BLE001 - of C++, for operators that changed too much; the file runs as it is
        return model


def _set_input(graph: onnx.GraphProto, taken: Taken, preprocessing: Preprocessing) -> None:
    """Let the graph take float32 (batch, channels, height, width)."""
    (given,) = graph.input
    steps = list[tuple[str, dict[str, Any]]]()
    if taken.dtype is np.uint8:
        steps.append(("Round", {}))
    if taken.dtype is not np.float32:
        steps.append(("Cast", {"to": given.type.tensor_type.elem_type}))
    if taken.layout == "NHWC":
        steps.append(("Transpose", {"perm": [0, 2, 3, 1]}))
    name = unused(graph, "image") if steps else taken.name
    given.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *preprocessing.shape]))
    for number, (operator, attributes) in enumerate(steps):
        last = number == len(steps) - 1
        after = taken.name if last else unused(graph, f"image_{operator.lower()}")
        graph.node.insert(number, helper.make_node(operator, [name], [after], **attributes))
        name = after


def _set_output(graph: onnx.GraphProto, chosen: str) -> str:
    """Let the graph return only this output, without a softmax behind it; return that operator, empty if none was."""
    producers = {name: node for node in graph.node for name in node.output}
    name, behind = chosen, None
    while (node := producers.get(name)) is not None and node.op_type in _COPIES:
        name, behind = node.input[0], node
    softmax = ""
    if node is None or node.op_type not in _SOFTMAX:
        _check_end(node, producers)
    if node is not None and node.op_type in _SOFTMAX:
        softmax = node.op_type
        if behind is not None:
            behind.input[0] = node.input[0]
        others = {value.name for value in graph.output} - {chosen}
        logits = chosen if behind is not None else node.input[0]
        if logits not in others:
            node.output[0] = unused(graph, f"{chosen}_probabilities") if behind is None else node.output[0]
            renamed = unused(graph, "logits")
            rename(graph, logits, renamed)
            logits = renamed
        chosen = logits
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=chosen))
    return softmax


def _check_end(node: onnx.NodeProto | None, producers: Mapping[str, onnx.NodeProto]) -> None:
    """Raise ArtifactError if this node returns probabilities from which the logits cannot be had."""
    while node is not None and node.op_type in _COPIES | _QUANTISED:
        node = producers.get(node.input[0])
    if node is not None and node.op_type in _PROBABILITIES:
        raise ArtifactError(
            f"it returns probabilities, by {node.op_type}, and not logits; export it without that operator"
        )
