"""ONNX: one protobuf message, ModelProto.

An app that only runs a model does not need the onnx package, so the few fields that matter are read from the wire
format directly. Lengths are checked against the file, tensors are skipped, and nothing is copied.

Source: field numbers from onnx.proto, ModelProto and below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError
from cnndeploy.formats._onnx_behaviour import operators_in_training, probabilities_of, weights_of
from cnndeploy.formats._onnx_contents import GRAPH, contents_of
from cnndeploy.formats._protobuf import Message, fields, mapped, message_of, messages_of, number_of, text_of
from cnndeploy.specs import Manifest, TensorSpec

MANIFEST_KEY = "cnndeploy.manifest"

_MODEL_IR_VERSION, _MODEL_PRODUCER, _MODEL_OPSET, _MODEL_METADATA = 1, 2, 8, 14
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_TENSOR_DATA_TYPE = 2
_TENSOR_EXTERNAL = (13, 14)  # external_data and data_location
# TensorProto.DataType
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}


class OnnxFormat:
    """ONNX files, with the manifest in ``metadata_props``."""

    default_runtime = "onnxruntime"

    def recognises(self, path: Path) -> bool:
        """Return whether the bytes parse as a ModelProto with an IR version and a graph."""
        try:
            with mapped(path) as model:
                return {_MODEL_IR_VERSION, GRAPH} <= {number for number, _ in fields(model)}
        except ValueError:
            return False

    def read_manifest(self, path: Path) -> Manifest | None:
        """Return the manifest; raise ArtifactError for weights in other files, which the SHA-256 does not cover."""
        with mapped(path) as model:
            _require_weights(path, contents_of(model).tensors)
            for entry in messages_of(model, _MODEL_METADATA):
                if text_of(entry, 1) == MANIFEST_KEY:
                    return Manifest.from_json(text_of(entry, 2))
        return None

    def describe(self, path: Path) -> dict[str, Any]:
        """Return IR version, opset of each domain, producer, operator counts, and the graph's inputs and outputs."""
        with mapped(path) as model:
            graph, contents = message_of(model, GRAPH), contents_of(model)
            weights, training, probabilities = (
                weights_of(graph),
                operators_in_training(graph),
                probabilities_of(graph),
            )
            inputs = map(_value_info, messages_of(graph, _GRAPH_INPUT))
            opsets = messages_of(model, _MODEL_OPSET)
            return {
                "ir_version": number_of(model, _MODEL_IR_VERSION),
                "opset": {text_of(entry, 1) or "ai.onnx": number_of(entry, 2) for entry in opsets},
                "producer": text_of(model, _MODEL_PRODUCER),
                "operators": dict(sorted(contents.operators.items())),
                "constants": sorted({_dtype(tensor) for tensor in contents.tensors}),
                "inputs": [asdict(spec) for spec in inputs if spec.name not in weights],
                "outputs": [asdict(_value_info(value)) for value in messages_of(graph, _GRAPH_OUTPUT)],
                **({"probabilities": probabilities} if probabilities else {}),
                **({"in_training_mode": training} if training else {}),
            }


def check_contents(path: Path) -> None:
    """Raise ValueError if an ONNX file is none, or asks for what no classifier needs."""
    with mapped(path) as model:
        contents_of(model)


def _require_weights(path: Path, tensors: Iterable[Message]) -> None:
    """Raise ArtifactError if tensors are in other files; name those that are missing, for they come first."""
    external, places = False, set[str]()
    for tensor in tensors:
        for number, value in fields(tensor):
            external |= bool(value) and number in _TENSOR_EXTERNAL
            if (
                number == _TENSOR_EXTERNAL[0]
                and not isinstance(value, int)
                and text_of(value, 1) == "location"
            ):
                places.add(text_of(value, 2))
    if not external:
        return
    missing = sorted(place for place in places if not os.path.isfile(path.parent / place))  # noqa: PTH113 - any name
    if missing:
        among = f"{missing[0]!r} and {len(missing) - 1} more" if len(missing) > 1 else repr(missing[0])
        raise ArtifactError(
            f"{path} is not self-contained: its weights are in other files, and {among} is not beside it. Copy that "
            "there too; then cnndeploy import makes one file of them"
        )
    advice = "cnndeploy import makes one file of them, and so does onnx.save(onnx.load(PATH), PATH)"
    raise ArtifactError(f"{path} is not self-contained: its weights are in other files. {advice}")


def _dtype(tensor: Message) -> str:
    return _DTYPES.get(number_of(tensor, _TENSOR_DATA_TYPE) or 0, "other")


def _value_info(value: Message) -> TensorSpec:
    """Read a ValueInfoProto.

    Fields: name 1, type 2; TypeProto.tensor_type 1; elem_type 1, shape 2; dim 1; value 1, name 2.
    """
    tensor = message_of(message_of(value, 2), 1)  # empty for a sequence, map or optional
    axes = [(number_of(axis, 1), text_of(axis, 2)) for axis in messages_of(message_of(tensor, 2), 1)]
    # 0 and -1, a varint of 2**64 - 1, are how some exporters write an axis of any length
    shape = tuple(
        length if length is not None and 0 < length < 2**63 else name or "?" for length, name in axes
    )
    return TensorSpec(text_of(value, 1), _DTYPES.get(number_of(tensor, 1) or 0, "other"), shape)


FORMAT = OnnxFormat()
