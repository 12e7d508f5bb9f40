"""The gRPC server: the same models by the same protocol, whose messages tritonclient brings."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
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
    dtype_of,
    find,
)
from cnndeploy.serving.protocol import metadata, statistics

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
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
    """The protocol's procedures over ``models`` by name, run by the threads of ``workers``."""

    def __init__(self, models: Mapping[str, ServedModel], workers: Executor, metrics: Metrics) -> None:
        self._models, self._workers, self._metrics = models, workers, metrics

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
        started, status = time.perf_counter(), "OK"
        known = request.model_name if request.model_name in self._models else ""
        try:
            model = find(self._models, request.model_name, request.model_version)
            work: Callable[[], Any] = partial(_infer, model, request)
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)
        except RequestError as error:
            code = _CODES.get(error.status, grpc.StatusCode.INTERNAL)
            status = code.name
            await context.abort(code, str(error))
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


def _infer(model: ServedModel, request: Any) -> Any:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestError(400, f"{len(request.inputs)} inputs are described, and bytes came for {len(raw)}")
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
    return answer


def _array(tensor: Any, raw: bytes | None) -> NDArray[Any]:
    """Return an input; raise RequestError if it is malformed."""
    shape = list(tensor.shape)
    if any(length < 0 for length in shape):
        raise RequestError(400, f"input {tensor.name!r}: the shape {shape} has a length below 0")
    if raw is not None:
        return array_of(tensor.name, tensor.datatype, shape, raw)
    dtype, count = dtype_of(tensor.name, tensor.datatype), math.prod(shape)
    contents = _CONTENTS.get(tensor.datatype)
    if contents is None:
        raise RequestError(400, f"input {tensor.name!r}: {tensor.datatype} is sent as raw bytes only")
    values = getattr(tensor.contents, contents)
    if len(values) != count:
        raise RequestError(
            400, f"input {tensor.name!r}: {shape} takes {count:,} values, and {len(values):,} came"
        )
    try:
        return np.array(values, dtype).reshape(shape)
    except OverflowError as error:
        raise RequestError(400, f"input {tensor.name!r}: {error}") from error
