"""The gRPC server: the same models by the same protocol, whose messages tritonclient brings."""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from cnndeploy.serving.metrics import Metrics
from cnndeploy.serving.model import (
    DATATYPES,
    SERVER,
    VERSION,
    RequestError,
    ServedModel,
    array_of,
    check_shape,
    dtype_of,
    find,
)
from cnndeploy.serving.protocol import check_parameters, metadata, statistics

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
}
_MOST_VALUES = 2**22  # that are not raw bytes: while these are converted nothing else is answered
# The field of a tensor's contents that holds a datatype.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class Service(GRPCInferenceServiceServicer):  # type: ignore[misc] # tritonclient has no types
    """The protocol's procedures over ``models`` by name."""

    def __init__(self, models: Mapping[str, ServedModel], metrics: Metrics) -> None:
        self._models, self._metrics = models, metrics

    async def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Say that the server runs."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Say that all models are open."""
        return messages.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether there is such a model."""
        await self._model(request, context)
        return messages.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Name the server and what it understands beyond the protocol."""
        return messages.ServerMetadataResponse(**SERVER)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return what a model takes and returns."""
        return messages.ModelMetadataResponse(**metadata(await self._model(request, context)))

    async def RepositoryIndex(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Name the models."""
        index = [{"name": name, "version": VERSION, "state": "READY"} for name in self._models]
        return messages.RepositoryIndexResponse(models=index)

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return how requests to one model went, or to all if none is named."""
        models = [await self._model(request, context)] if request.name else self._models.values()
        return messages.ModelStatisticsResponse(model_stats=list(map(statistics, models)))

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Run a batch through a model."""
        started, status = time.perf_counter(), "CANCELLED"
        known = request.model_name if request.model_name in self._models else ""
        try:
            model = find(self._models, request.model_name, request.model_version)
            answer = await model.answer(partial(_infer, request=request))
            status = "OK"
            return answer
        except RequestError as error:
            code = _CODES.get(error.status, grpc.StatusCode.INTERNAL)
            status = code.name
            await context.abort(code, str(error))
        except Exception:  # noqa: BLE001 - a fault of ours is no reason to leave a client without an answer
            traceback.print_exc(file=sys.stderr)
            status = grpc.StatusCode.INTERNAL.name
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed; its log says how")
        finally:
            self._metrics.note(known, "grpc_infer", status, time.perf_counter() - started)

    async def _model(self, request: Any, context: Any) -> ServedModel:
        try:
            return find(self._models, request.name, request.version)
        except RequestError as error:
            await context.abort(_CODES[error.status], str(error))
            raise


def add_service(server: grpc.aio.Server, service: Service) -> None:
    """Have a gRPC server offer a service."""
    add_GRPCInferenceServiceServicer_to_server(service, server)


def _infer(model: ServedModel, request: Any) -> tuple[Any, int]:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestError(400, f"{len(request.inputs)} inputs are described, and bytes came for {len(raw)}")
    for output in request.outputs:
        check_parameters(output.parameters)
    feeds = {
        tensor.name: _array(tensor, raw[number] if raw else None)
        for number, tensor in enumerate(request.inputs)
    }
    if len(feeds) != len(request.inputs):
        raise RequestError(400, "two inputs have the same name")
    outputs = model.infer(feeds, [output.name for output in request.outputs])
    answer = messages.ModelInferResponse(model_name=model.name, model_version=VERSION, id=request.id)
    for name, array in outputs.items():
        answer.outputs.add(name=name, datatype=DATATYPES[str(array.dtype)], shape=array.shape)
        answer.raw_output_contents.append(np.ascontiguousarray(array).tobytes())
    return answer, len(next(iter(feeds.values())))


def _array(tensor: Any, raw: bytes | None) -> NDArray[Any]:
    """Return an input; raise RequestError if it is malformed."""
    shape = check_shape(tensor.name, list(tensor.shape))
    if raw is not None:
        return array_of(tensor.name, tensor.datatype, shape, raw)
    dtype, count = dtype_of(tensor.name, tensor.datatype), math.prod(shape)
    contents = _CONTENTS.get(tensor.datatype)
    if contents is None:
        raise RequestError(400, f"input {tensor.name!r}: {tensor.datatype} is sent as raw bytes only")
    values = getattr(tensor.contents, contents)
    if len(values) > _MOST_VALUES:
        raise RequestError(400, f"at most {_MOST_VALUES:,} values are read; send raw bytes")
    if len(values) != count:
        raise RequestError(
            400, f"input {tensor.name!r}: {shape} takes {count:,} values, and {len(values):,} came"
        )
    try:
        return np.array(values, dtype).reshape(shape)
    except OverflowError as error:
        raise RequestError(400, f"input {tensor.name!r}: {error}") from error
