"""Requests and responses of the Open Inference Protocol by REST: JSON, and tensors as bytes behind it.

Source: the Open Inference Protocol, REST, version 2 (github.com/kserve/open-inference-protocol); tensors as bytes are
Triton's extension "binary data".
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.serving.model import (
    DATATYPES,
    VERSION,
    RequestError,
    ServedModel,
    array_of,
    check_shape,
    dtype_of,
    protocol_shape,
)
from cnndeploy.specs import TensorSpec

HEADER_LENGTH = "inference-header-content-length"
MOST_JSON = 16_000_000  # while it is parsed nothing else is answered


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request: its inputs, and the outputs wanted, all if there are none named.

    ``binary`` says of each output by name, or of all under the empty name, whether it is returned as bytes.
    """

    id: str | None
    feeds: Mapping[str, NDArray[Any]]
    wanted: Sequence[str]
    binary: Mapping[str, bool]


def read_request(body: bytes | bytearray, header_length: str | None) -> InferRequest:
    """Read the body of a request; raise RequestError with status 400 if it is malformed."""
    length = len(body)
    if header_length is not None:
        if not is_whole(header_length) or int(header_length) > len(body):
            raise RequestError(400, f"{HEADER_LENGTH} is no length within the body: {header_length:.20}")
        length = int(header_length)
    if length > MOST_JSON:
        raise RequestError(
            413, f"at most {MOST_JSON:,} bytes of JSON are read; send tensors as bytes behind it"
        )
    try:
        values = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request is no JSON: {error}") from error
    values = _object(values, "the request")
    rest, feeds = memoryview(body)[length:], dict[str, NDArray[Any]]()
    for entry in _objects(values.get("inputs"), "input"):
        name = entry.get("name")
        if not isinstance(name, str) or name in feeds:
            raise RequestError(400, f"each input has a name of its own, and one has {name!r:.40}")
        feeds[name], rest = _tensor(entry, rest)
    if len(rest):
        raise RequestError(400, f"{len(rest):,} bytes follow that belong to no input")
    binary = {"": bool(_parameters(values).get("binary_data_output", False))}
    wanted = []
    for entry in _objects(values.get("outputs") or [], "output"):
        if not isinstance(entry.get("name"), str):
            raise RequestError(400, "each output that is wanted has a name")
        wanted.append(entry["name"])
        parameters = _parameters(entry)
        check_parameters(parameters)
        binary[entry["name"]] = bool(parameters.get("binary_data", binary[""]))
    identity = values.get("id")
    return InferRequest(None if identity is None else str(identity), feeds, wanted, binary)


def _tensor(entry: Mapping[str, Any], rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    """Return an input, and the bytes that are left behind it."""
    name, shape = entry["name"], check_shape(entry["name"], entry.get("shape"))
    dtype = dtype_of(name, entry.get("datatype"))
    size = _parameters(entry).get("binary_data_size")
    if size is None:
        return _from_json(name, entry.get("data"), dtype, shape), rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise RequestError(400, f"input {name!r}: {size!r:.20} bytes were announced, {len(rest):,} came")
    return array_of(name, entry["datatype"], shape, rest[:size]), rest[size:]


def _from_json(name: str, data: Any, dtype: str, shape: list[int]) -> NDArray[Any]:
    if not isinstance(data, list):
        raise RequestError(
            400, f"input {name!r:.80} has no data: a list of numbers, or bytes behind the JSON"
        )
    try:
        # of objects, for an array of texts would have room for the longest in each place
        values = np.array(data, dtype=object).ravel()
        kinds = set(map(type, values))
        if kinds - ({bool} if dtype == "bool" else {int, float}):
            raise ValueError(f"its data are not all numbers of {dtype}")
        if np.dtype(dtype).kind in "ui" and float in kinds:
            if not all(map(_is_integer, values)):
                raise ValueError(f"its data are not all whole numbers of {dtype}")
            values = np.array(list(map(int, values)), dtype=object)
        return values.astype(dtype).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise RequestError(400, f"input {name!r:.80} is not {shape} {dtype}: {error}") from error


def _is_integer(value: float) -> bool:
    return float(value).is_integer()


def response(
    model: ServedModel, request: InferRequest, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of its JSON if bytes follow."""
    described, behind = list[dict[str, Any]](), list[bytes]()
    for name, array in outputs.items():
        shown: dict[str, Any] = {"name": name, "datatype": DATATYPES[str(array.dtype)], "shape": array.shape}
        if request.binary.get(name, request.binary[""]):
            content = np.ascontiguousarray(array).tobytes()
            shown["parameters"] = {"binary_data_size": len(content)}
            behind.append(content)
        else:
            shown["data"] = array.ravel().tolist()
        described.append(shown)
    values: dict[str, Any] = {"model_name": model.name, "model_version": VERSION}
    if request.id is not None:
        values["id"] = request.id
    head = json.dumps({**values, "outputs": described}, separators=(",", ":")).encode()
    return b"".join([head, *behind]), len(head) if behind else None


def metadata(model: ServedModel) -> dict[str, Any]:
    """Return what a model takes and returns."""
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": model.platform,
        "inputs": list(map(_described, model.inputs)),
        "outputs": list(map(_described, model.outputs)),
    }


def statistics(model: ServedModel) -> dict[str, Any]:
    """Return how requests went, as Triton's extension "statistics" words it."""
    told, nothing = model.statistics, {"count": 0, "ns": 0}
    succeeded = {"count": told.succeeded, "ns": told.succeeded_ns}
    queued = {"count": told.succeeded, "ns": told.waited_ns}
    computed = {"count": told.succeeded, "ns": told.succeeded_ns - told.waited_ns}
    return {
        "name": model.name,
        "version": VERSION,
        "last_inference": told.last_ms,
        "inference_count": told.images,
        "execution_count": told.succeeded,
        "inference_stats": {
            "success": succeeded,
            "fail": {"count": told.failed, "ns": told.failed_ns},
            "queue": queued,
            "compute_input": nothing,
            "compute_infer": computed,
            "compute_output": nothing,
        },
        "batch_stats": [],
    }


def check_parameters(parameters: Container[str]) -> None:
    """Raise RequestError for a parameter of an output that would change the answer, and is not served."""
    if "classification" in parameters:
        raise RequestError(400, "classification is not served this way: POST the image to .../classify")
    if "shared_memory_region" in parameters:
        raise RequestError(400, "shared memory is not served; ask for the output itself")


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": protocol_shape(spec)}


def _object(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RequestError(400, f"{what} is a JSON object, and not {type(values).__name__}")
    return values


def _objects(values: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        raise RequestError(400, f"{what}s is a list, and not {type(values).__name__}")
    return [_object(entry, f"an {what}") for entry in values]


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    return _object(values.get("parameters") or {}, "parameters")


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number of a few digits."""
    return text.isascii() and text.isdecimal() and len(text) < 19
