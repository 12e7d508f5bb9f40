"""ONNX by torch.export: one self-contained file with a symbolic batch axis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnxscript import opset18

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ExportError
from cnndeploy.exporters._export import ExportOptions
from cnndeploy.exporters._network import WRAPPED, example, network_and_manifest, write
from cnndeploy.exporters._onnx_preprocessing import put_in_front
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.machine import quiet
from cnndeploy.specs import Manifest, TensorSpec
from cnndeploy.torch_preprocessing import can_prepare

DEFAULT_OPSET = 20
SUPPORTED_OPSETS = range(18, 24)

# A protobuf, and so an ONNX file without others beside it, has at most 2 GiB; 16 MiB of these are for the graph.
_MOST_BYTES = 2**31 - 2**24

# torch.export fixes an axis whose example is 1, so the example batch is longer.
_EXAMPLE_BATCH = 2
# torch's notes on nodes and values contain absolute paths; only the module scopes are worth keeping.
_KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")


class OnnxExporter:
    """The exporter of ONNX: torch.onnx.export with dynamo, without the machine's paths."""

    format = "onnx"
    suffix = ".onnx"
    package = "onnx"
    options = frozenset({"opset", "input", "simplify", "resize"})

    def export(self, checkpoint: Checkpoint, path: Path, options: ExportOptions) -> Artifact:
        """Write the file, reopen it, check it, and only then give it its name."""
        opset = DEFAULT_OPSET if options.opset is None else options.opset
        if opset not in SUPPORTED_OPSETS:
            known = f"{SUPPORTED_OPSETS[0]} to {SUPPORTED_OPSETS[-1]}"
            raise ExportError(f"opset {opset} is not supported; choose {known}")
        # what torch cannot trace goes in front of its graph
        in_front = options.input == "image" and not can_prepare(checkpoint.manifest.preprocessing)
        traced = replace(options, input="tensor") if in_front else options
        network, manifest = network_and_manifest(checkpoint, traced)
        _check_size(network)
        model = _to_onnx(network, manifest, opset)
        if in_front:
            manifest = manifest.taking_images(options.resize)
            put_in_front(model, manifest)
        _keep_padding(model)
        _strip(model)
        model.metadata_props[MANIFEST_KEY] = manifest.to_json()
        content = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
        return write(path, content, manifest, lambda written: _faults(written, manifest, opset))


def _check_size(network: torch.nn.Module) -> None:
    """Raise ExportError if the weights do not fit into one file, before minutes of work."""
    weights = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
    if weights > _MOST_BYTES:
        raise ExportError(
            f"the weights take {weights / 1e9:.2f} GB, and one ONNX file holds {_MOST_BYTES / 1e9:.2f} GB; export the "
            "network to TorchScript"
        )


def _to_onnx(network: torch.nn.Module, manifest: Manifest, opset: int) -> onnx_ir.Model:
    axes = enumerate(manifest.input.shape)
    symbolic = {number: torch.export.Dim(axis) for number, axis in axes if isinstance(axis, str)}
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (example(manifest, _EXAMPLE_BATCH),),
                input_names=[manifest.input.name],
                output_names=[spec.name for spec in manifest.outputs],
                dynamic_shapes=(symbolic,),
                custom_translation_table={torch.ops.aten.upsample_bilinear2d.vec: _resize},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.export raises whatever it meets in a forward()
        raise ExportError(f"torch.onnx.export cannot write this network: {_root(error)}") from error
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    return program.model


def _root(error: BaseException) -> str:
    """Return the first line of the error that began a chain; the later ones are about torch's own steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _resize(image: Any, size: list[int], align_corners: bool, scale_factors: None) -> Any:
    """Resize the last two axes; torch's own translation reads the batch's size from the graph, on the CPU."""
    del align_corners, scale_factors
    lengths: Any = opset18.Constant(value_ints=size)
    options: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return opset18.Resize(image, None, None, lengths, axes=[2, 3], **options)


def _keep_padding(model: onnx_ir.Model) -> None:
    """Name the axes that are padded before a max pooling, so that ONNX Runtime does not make one node of the two.

    In one node the padding counts for nothing. But that with zeros is the largest where all values are negative, as in
    timm's resnetv2_50x1_bit. Without ``axes`` all axes are padded, so naming all of them changes nothing.
    """
    for node in model.graph:
        if node.op_type != "Pad" or all(use.node.op_type != "MaxPool" for use in node.outputs[0].uses()):
            continue
        pads = node.inputs[1]
        if len(node.inputs) > 3 or pads is None or pads.const_value is None:
            continue
        axes = np.arange(pads.const_value.size // 2, dtype=np.int64)
        name = f"{node.outputs[0].name}_axes"
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(axes, name=name))
        model.graph.register_initializer(value)
        node.resize_inputs(4)
        node.replace_input_with(3, value)


def _strip(model: onnx_ir.Model) -> None:
    """Remove everything that reveals the machine on which the file was made."""
    model.doc_string = model.graph.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        node.doc_string = None
        kept = {key: node.metadata_props[key] for key in _KEPT_METADATA if key in node.metadata_props}
        node.metadata_props.clear()
        # modules keep the names that they have in the checkpoint
        node.metadata_props.update({key: note.replace(f"'{WRAPPED}.", "'") for key, note in kept.items()})
        values += node.outputs
    for value in values:
        value.metadata_props.clear()


def _faults(path: Path, manifest: Manifest, opset: int) -> list[str]:
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported file does not pass ONNX's checker: {error}") from error
    model = onnx.load(path, load_external_data=False)
    faults = []
    for kind, values, expected in (
        ("takes", model.graph.input, (manifest.input,)),
        ("returns", model.graph.output, manifest.outputs),
    ):
        specs = tuple(map(_spec, values))
        if specs != expected:
            written, wanted = (
                ", ".join(f"{spec.name} {spec}" for spec in group) for group in (specs, expected)
            )
            faults.append(f"it {kind} {written}, not {wanted}; is an axis fixed?")
    others = {
        "it contains functions, whose contents are not checked": len(model.functions) > 0,
        "it contains Dropout": any(node.op_type == "Dropout" for node in model.graph.node),
        f"its opset is not {opset}": [o.version for o in model.opset_import if o.domain == ""] != [opset],
    }
    return faults + [fault for fault, is_there in others.items() if is_there]


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return TensorSpec(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)


EXPORTER = OnnxExporter()
