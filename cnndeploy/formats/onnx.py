"""ONNX: one protobuf message, ModelProto.

An app that only runs a model does not need the onnx package, so the few fields that matter are read from the wire
format directly. Lengths are checked against the file, tensors are skipped, and nothing is copied.

Source: protobuf.dev, "Encoding"; field numbers from onnx.proto, ModelProto and below.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError
from cnndeploy.specs import Manifest, TensorSpec

MANIFEST_KEY = "cnndeploy.manifest"

_MODEL_IR_VERSION, _MODEL_PRODUCER, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 2, 7, 8, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_GRAPH_SPARSE, _MODEL_FUNCTION, _FUNCTION_NODE, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 15, 25, 7, 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DATA_TYPE = 2
_TENSOR_EXTERNAL = (13, 14)  # external_data and data_location
# TensorProto.DataType
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_Message = memoryview | bytes
_MAX_FIELDS = 1_000_000


class OnnxFormat:
    """ONNX files, with the manifest in ``metadata_props``."""

    default_runtime = "onnxruntime"

    def recognises(self, path: Path) -> bool:
        """Return whether the bytes parse as a ModelProto with an IR version and a graph."""
        try:
            with _mapped(path) as model:
                return {_MODEL_IR_VERSION, _MODEL_GRAPH} <= {number for number, _ in _fields(model)}
        except ValueError:
            return False

    def read_manifest(self, path: Path) -> Manifest | None:
        """Return the manifest; raise ArtifactError for weights in other files, which the SHA-256 does not cover."""
        with _mapped(path) as model:
            fields = (field for tensor in _tensors(model) for field in _fields(tensor))
            if any(value and number in _TENSOR_EXTERNAL for number, value in fields):
                advice = (
                    "cnndeploy import makes one file of them, and so does onnx.save(onnx.load(PATH), PATH)"
                )
                raise ArtifactError(f"{path} is not self-contained: its weights are in other files. {advice}")
            for entry in _messages(model, _MODEL_METADATA):
                if _text(entry, 1) == MANIFEST_KEY:
                    return Manifest.from_json(_text(entry, 2))
        return None

    def describe(self, path: Path) -> dict[str, Any]:
        """Return IR version, opset of each domain, producer, operator counts, and the graph's inputs and outputs."""
        with _mapped(path) as model:
            (graph,) = _messages(model, _MODEL_GRAPH)
            operators = Counter(_text(node, _NODE_OP_TYPE) for node in _nodes(model))
            opsets = _messages(model, _MODEL_OPSET)
            return {
                "ir_version": _number(model, _MODEL_IR_VERSION),
                "opset": {_text(entry, 1) or "ai.onnx": _number(entry, 2) for entry in opsets},
                "producer": _text(model, _MODEL_PRODUCER),
                "operators": dict(sorted(operators.items())),
                "constants": sorted({_dtype(tensor) for tensor in _tensors(model)}),
                "inputs": [asdict(_value_info(value)) for value in _messages(graph, _GRAPH_INPUT)],
                "outputs": [asdict(_value_info(value)) for value in _messages(graph, _GRAPH_OUTPUT)],
            }


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[_Message]:
    """Map a file into memory; raise ValueError for an empty one, which cannot be mapped."""
    with path.open("rb") as file:
        yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _dtype(tensor: _Message) -> str:
    return _DTYPES.get(_number(tensor, _TENSOR_DATA_TYPE) or 0, "other")


def _value_info(value: _Message) -> TensorSpec:
    """Read a ValueInfoProto.

    Fields: name 1, type 2; TypeProto.tensor_type 1; elem_type 1, shape 2; dim 1; value 1, name 2.
    """
    tensor = _message(_message(value, 2), 1)  # empty for a sequence, map or optional
    axes = [(_number(axis, 1), _text(axis, 2)) for axis in _messages(_message(tensor, 2), 1)]
    # 0 and -1, a varint of 2**64 - 1, are how some exporters write an axis of any length
    shape = tuple(
        length if length is not None and 0 < length < 2**63 else name or "?" for length, name in axes
    )
    return TensorSpec(_text(value, 1), _DTYPES.get(_number(tensor, 1) or 0, "other"), shape)


def _graphs(model: _Message) -> Iterator[_Message]:
    """Yield the model's graph, and those in the attributes of nodes, such as the branches of an If."""
    functions = _within(_messages(model, _MODEL_FUNCTION), _FUNCTION_NODE)
    waiting = [*_messages(model, _MODEL_GRAPH), *_inner_graphs(functions)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += _inner_graphs(_messages(graph, _GRAPH_NODE))


def _inner_graphs(nodes: Iterable[_Message]) -> Iterator[_Message]:
    return _within(_within(nodes, _NODE_ATTRIBUTE), *_ATTRIBUTE_GRAPHS)


def _nodes(model: _Message) -> Iterator[_Message]:
    """Yield every node, those of functions and inner graphs too."""
    yield from _within(_messages(model, _MODEL_FUNCTION), _FUNCTION_NODE)
    yield from _within(_graphs(model), _GRAPH_NODE)


def _tensors(model: _Message) -> Iterator[_Message]:
    """Yield every TensorProto, the values and indices of sparse ones too."""
    yield from _within(_graphs(model), _GRAPH_INITIALIZER)
    yield from _within(_within(_nodes(model), _NODE_ATTRIBUTE), *_ATTRIBUTE_TENSORS)
    yield from _within(_within(_graphs(model), _GRAPH_SPARSE), 1, 2)
    yield from _within(_within(_within(_nodes(model), _NODE_ATTRIBUTE), *_ATTRIBUTE_SPARSE), 1, 2)


# If a field that should appear once appears twice, protobuf takes the last.


def _text(message: _Message, wanted: int) -> str:
    return bytes(_message(message, wanted)).decode()


def _message(message: _Message, wanted: int) -> _Message:
    return [b"", *_messages(message, wanted)][-1]


def _number(message: _Message, wanted: int) -> int | None:
    numbers = (value for number, value in _fields(message) if number == wanted and isinstance(value, int))
    return [None, *numbers][-1]


def _messages(message: _Message, *wanted: int) -> Iterator[_Message]:
    return (value for number, value in _fields(message) if number in wanted and not isinstance(value, int))


def _within(messages: Iterable[_Message], *wanted: int) -> Iterator[_Message]:
    return (field for message in messages for field in _messages(message, *wanted))


def _fields(message: _Message) -> Iterator[tuple[int, int | _Message]]:
    """Yield field numbers and values: an int for a varint, a view for anything else."""
    position = count = 0
    while position < len(message):
        count += 1
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or count > _MAX_FIELDS:
            raise ValueError("a field without a number, or more fields than any model has")
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _LENGTH:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire_type} is not used in ONNX")
        if position + length > len(message):
            raise ValueError("the message ends before its field does")
        yield number, message[position : position + length]
        position += length


def _varint(message: _Message, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has too many bytes")


FORMAT = OnnxFormat()
