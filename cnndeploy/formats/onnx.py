"""ONNX: one protobuf message, ModelProto.

The onnx package is no dependency of an app that only runs a model, so the few fields that matter are read
from the wire format directly: lengths are checked against the file, tensors are skipped, nothing is copied.

Source: protobuf.dev, "Encoding"; field numbers from onnx.proto, ModelProto and below.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError
from cnndeploy.specs import Manifest, TensorSpec

MANIFEST_KEY = "cnndeploy.manifest"

_MODEL_IR_VERSION, _MODEL_PRODUCER, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 2, 7, 8, 14
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT, _NODE_OP_TYPE = 1, 11, 12, 4
# TensorProto.DataType
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_Message = memoryview | bytes


class OnnxFormat:
    """ONNX files, with the manifest in ``metadata_props``."""

    def recognises(self, path: Path) -> bool:
        """Whether the bytes parse as a ModelProto with an IR version and a graph."""
        try:
            with _Model(path) as model:
                numbers = {number for number, _ in _fields(model)}
        except ValueError:
            return False
        return {_MODEL_IR_VERSION, _MODEL_GRAPH} <= numbers

    def read_manifest(self, path: Path) -> Manifest | None:
        """The manifest in ``metadata_props``."""
        with _Model(path) as model:
            for entry in _messages(model, _MODEL_METADATA):
                pair = dict(_fields(entry))
                if bytes(pair.get(1, b"")) == MANIFEST_KEY.encode():
                    try:
                        return Manifest.from_json(bytes(pair.get(2, b"")))
                    except ValueError as error:
                        raise ArtifactError(f"{path}: its manifest is damaged: {error}") from error
        return None

    def describe(self, path: Path) -> dict[str, Any]:
        """IR version, opset of each domain, producer, operator counts, the graph's inputs and outputs."""
        with _Model(path) as model:
            top = dict(_fields(model))
            graph = top[_MODEL_GRAPH]
            operators = Counter(_text(node, _NODE_OP_TYPE) for node in _messages(graph, _GRAPH_NODE))
            opsets = (dict(_fields(entry)) for entry in _messages(model, _MODEL_OPSET))
            return {
                "ir_version": top.get(_MODEL_IR_VERSION),
                "opset": {bytes(entry.get(1, b"")).decode() or "ai.onnx": entry.get(2) for entry in opsets},
                "producer": _text(model, _MODEL_PRODUCER),
                "operators": dict(sorted(operators.items())),
                "inputs": [asdict(_value_info(value)) for value in _messages(graph, _GRAPH_INPUT)],
                "outputs": [asdict(_value_info(value)) for value in _messages(graph, _GRAPH_OUTPUT)],
            }


class _Model:
    """A file mapped into memory; closing it releases the views that were taken of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def __enter__(self) -> _Message:
        try:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            self._file.close()
            raise
        return memoryview(self._map)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _value_info(value: _Message) -> TensorSpec:
    """ValueInfoProto: name 1, type 2; TypeProto.tensor_type 1; elem_type 1, shape 2; dim 1; value 1, name 2."""
    tensor = dict(_fields(dict(_fields(dict(_fields(value)).get(2, b"")))[1]))
    axes = [dict(_fields(dim)) for dim in _messages(tensor.get(2, b""), 1)]
    shape = tuple(axis[1] if 1 in axis else bytes(axis.get(2, b"unknown")).decode() for axis in axes)
    return TensorSpec(_text(value, 1), _DTYPES.get(tensor.get(1, 0), "other"), shape)


def _text(message: _Message, wanted: int) -> str:
    return next((bytes(value).decode() for value in _messages(message, wanted)), "")


def _messages(message: _Message, wanted: int) -> Iterator[_Message]:
    return (value for number, value in _fields(message) if number == wanted)


def _fields(message: _Message) -> Iterator[tuple[int, Any]]:
    """Field numbers and values: int for a varint, a view for anything length-delimited."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
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
        if number == 0 or position + length > len(message):
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
    raise ValueError("a number does not end where it must")


FORMAT = OnnxFormat()
