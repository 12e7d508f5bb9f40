"""serve(): answer requests for models until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnndeploy.classifier import Classifier, load
from cnndeploy.errors import ServingError, missing_dependency
from cnndeploy.machine import usable_cpus
from cnndeploy.serving.model import ServedModel, check_name

if TYPE_CHECKING:
    import uvicorn

    from cnndeploy.serving.metrics import Metrics

_DRAIN_S = 30  # for requests that have begun, once a signal came
_IDLE_S = 75  # that a connection is kept for the next request: longer than clients and proxies keep theirs


@dataclass(frozen=True, slots=True)
class Address:
    """The host and ports of a server; ``grpc_port`` is None if it speaks REST only."""

    host: str
    port: int
    grpc_port: int | None


def serve(
    models: Mapping[str, str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = 8001,
    runtime: str | None = None,
    threads: int | None = None,
    require_verified: bool = True,
    most_images: int = 64,
    most_megabytes: float = 64.0,
    on_ready: Callable[[Address, Mapping[str, Classifier]], None] = lambda *_: None,
) -> None:
    """Answer requests by the Open Inference Protocol, version 2, until SIGTERM or Ctrl-C; then finish what has begun.

    Args:
        models: Files and folders, as :func:`cnndeploy.load` opens them, by the name that clients use.
        host: The address to listen on; ``0.0.0.0`` is every one of the machine's.
        port: Of REST; 0 takes one that is free.
        grpc_port: Of gRPC, 0 for one that is free; None serves REST only.
        runtime, threads: As :func:`cnndeploy.load`'s; a folder that ``cnndeploy tune`` wrote runs as planned.
        require_verified: Refuse files without a certificate for this run.
        most_images: The largest batch in a request.
        most_megabytes: The largest body of a request, in 10**6 bytes.
        on_ready: Called once requests are answered, with the address and the opened models.

    Raises:
        ServingError: A port cannot be had, or a name is no good.
        ArtifactError, DeviceUnavailableError: A model cannot be opened, or is not verified.
        MissingDependencyError: The extra ``serve`` is not installed.

    >>> try:
    ...     cnndeploy.serve({"lenet": "lenet.onnx"})
    ... except cnndeploy.CnndeployError as error:
    ...     print(str(error)[:29])
    lenet.onnx has no certificate
    """
    try:
        import uvicorn

        from cnndeploy.serving.metrics import Metrics
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    for name in models:
        check_name(name)
    if not models:
        raise ServingError("no model was named")
    metrics = Metrics()
    with contextlib.ExitStack() as stack:
        opened: dict[str, Classifier] = {}
        for name, path in models.items():
            opened[name] = stack.enter_context(
                load(path, runtime=runtime, threads=threads, require_verified=require_verified)
            )
            opened[name].warmup()
        served = {name: ServedModel(name, one, most_images) for name, one in opened.items()}
        most_threads = max(one.session.threads for one in opened.values())
        workers = stack.enter_context(ThreadPoolExecutor(max(1, usable_cpus() // most_threads)))
        listening = stack.enter_context(contextlib.closing(_socket(host, port)))
        most_bytes = int(1e6 * most_megabytes)
        config = uvicorn.Config(
            _app(served, workers, metrics, most_bytes),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        address = Address(host, listening.getsockname()[1], grpc_port)
        asyncio.run(_run(config, listening, address, served, workers, metrics, most_bytes, on_ready))


def _app(served: Mapping[str, ServedModel], workers: Executor, metrics: Metrics, most_bytes: int) -> Any:
    from cnndeploy.serving.app import App

    return App(served, workers, metrics, most_bytes)


async def _run(
    config: uvicorn.Config,
    listening: socket.socket,
    address: Address,
    served: Mapping[str, ServedModel],
    workers: Executor,
    metrics: Metrics,
    most_bytes: int,
    on_ready: Callable[[Address, Mapping[str, Classifier]], None],
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready(reached, {name: one.classifier for name, one in served.items()})

    async with _grpc(address, served, workers, metrics, most_bytes) as reached:
        await Server(config).serve([listening])


@contextlib.asynccontextmanager
async def _grpc(
    address: Address, served: Mapping[str, ServedModel], workers: Executor, metrics: Metrics, most_bytes: int
) -> AsyncIterator[Address]:
    """Serve gRPC for as long as the block lasts; yield the address with the port that it got."""
    if address.grpc_port is None:
        yield address
        return
    try:
        import grpc

        from cnndeploy.serving.grpc_service import Service, add_service
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    server = grpc.aio.server(
        options=(("grpc.max_receive_message_length", most_bytes), ("grpc.so_reuseport", 0))
    )
    add_service(server, Service(served, workers, metrics))
    try:
        port = server.add_insecure_port(f"{address.host}:{address.grpc_port}")
    except RuntimeError as error:
        raise ServingError(
            f"port {address.grpc_port} of {address.host} cannot be had for gRPC; choose another"
        ) from error
    await server.start()
    try:
        yield Address(address.host, address.port, port)
    finally:
        await server.stop(_DRAIN_S)


def _socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise ServingError if the port cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
        # connections inherit it; else the end of an answer waits 40 ms for the client to confirm its beginning
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServingError(f"port {port} of {host} cannot be had ({reason}); choose another") from error
