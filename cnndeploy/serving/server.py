"""serve(): answer requests for models until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cnndeploy.classifier import Classifier, load
from cnndeploy.errors import ServingError, missing_dependency
from cnndeploy.machine import usable_cpus
from cnndeploy.serving.model import ServedModel, check_name

if TYPE_CHECKING:
    import uvicorn

    from cnndeploy.serving.metrics import Metrics

_DRAIN_S = 30  # for requests that have begun, once a signal came
_MOST_AT_ONCE = 1000  # connections, and calls by gRPC; others are told to ask again
_MOST_BYTES = 2**31 - 1  # gRPC counts no further
_IDLE_S = 75  # that a connection is kept for the next request: longer than clients and proxies keep theirs
_TO_ASK_S = 75  # until all of a request's headers are there, from its first byte, or the connection's opening
_SETTINGS: Any = {  # of uvicorn
    "loop": "asyncio",
    "lifespan": "off",
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "limit_concurrency": _MOST_AT_ONCE,
    "timeout_keep_alive": _IDLE_S,
    "timeout_graceful_shutdown": _DRAIN_S,
}


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
    device: str | None = None,
    threads: int | None = None,
    require_verified: bool = True,
    most_images: int = 64,
    most_megabytes: float = 64.0,
    on_ready: Callable[[Address, Mapping[str, Classifier]], None] = lambda *_: None,
) -> None:
    """Answer requests by the Open Inference Protocol, version 2, until SIGTERM or Ctrl-C; then finish what has begun.

    Args:
        models: Files and folders, as :func:`cnndeploy.load` opens them, by the name that clients use.
        host: The address to listen on; ``0.0.0.0`` listens on all.
        port: Port for REST; 0 chooses a free one.
        grpc_port: Port for gRPC, 0 for a free one; None serves REST only.
        runtime, device, threads: As :func:`cnndeploy.load`'s; a folder that ``cnndeploy tune`` wrote runs as planned.
        require_verified: Refuse files without a certificate for this run.
        most_images: The largest batch in a request.
        most_megabytes: The largest body of a request, in 10**6 bytes.
        on_ready: Called once requests are answered, with the address and the opened models.

    Raises:
        ServingError: A port is not available, or a model name is not valid.
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

        from cnndeploy.serving.app import App
        from cnndeploy.serving.metrics import Metrics

        if grpc_port is not None:
            importlib.import_module("cnndeploy.serving.grpc_service")
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    if not models:
        raise ServingError("no model was named")
    for name in models:
        check_name(name)
    most_bytes = min(int(1e6 * most_megabytes), _MOST_BYTES)
    with contextlib.ExitStack() as stack:
        if grpc_port:
            _socket(host, grpc_port).close()  # is it free? models may take minutes to open
        listening = stack.enter_context(contextlib.closing(_socket(host, port)))
        served = {}
        for name, path in models.items():
            model = stack.enter_context(
                load(path, runtime=runtime, device=device, threads=threads, require_verified=require_verified)
            )
            model.warmup()
            at_once = max(1, usable_cpus() // model.session.threads)
            workers = stack.enter_context(ThreadPoolExecutor(at_once, thread_name_prefix=name))
            served[name] = ServedModel(name, model, workers, most_images)
        metrics = Metrics()
        config = uvicorn.Config(App(served, metrics, most_bytes), http=_protocol(), **_SETTINGS)
        grpc_server = (
            None if grpc_port is None else partial(_grpc, host, grpc_port, served, metrics, most_bytes)
        )

        def ready(got_grpc_port: int | None) -> None:
            address = Address(host, listening.getsockname()[1], got_grpc_port)
            on_ready(address, {name: one.classifier for name, one in served.items()})

        asyncio.run(_run(config, listening, grpc_server, ready))


def _protocol() -> Any:
    """Return uvicorn's HTTP protocol, which also closes connections that send no request, or never all of its headers.

    They would count towards the limit of connections for ever.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and self.cycle.response_complete and self._patience is None:
                self._wait()  # these were the first bytes of another request

        def on_headers_complete(self) -> None:
            self._wait_no_more()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._patience = self.loop.call_later(_TO_ASK_S, self.transport.close)

        def _wait_no_more(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return Protocol


async def _run(
    config: uvicorn.Config,
    listening: socket.socket,
    grpc_server: Callable[[asyncio.Event], AbstractAsyncContextManager[int]] | None,
    ready: Callable[[int | None], None],
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals to serve(): this would end the process before gRPC has answered."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(port)

    rest, stopped = Server(config), asyncio.Event()

    def stop() -> None:
        rest.force_exit = rest.should_exit  # a second signal waits for nobody
        rest.should_exit = True
        stopped.set()

    async with contextlib.AsyncExitStack() as stack:
        port = None if grpc_server is None else await stack.enter_async_context(grpc_server(stopped))
        with _on_signals(stop):
            await rest.serve([listening])


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and Ctrl-C for as long as the block lasts; only the main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.asynccontextmanager
async def _grpc(
    host: str,
    port: int,
    served: Mapping[str, ServedModel],
    metrics: Metrics,
    most_bytes: int,
    stopped: asyncio.Event,
) -> AsyncIterator[int]:
    """Serve gRPC for as long as the block lasts, but nothing new once ``stopped``; yield the port."""
    import grpc

    from cnndeploy.serving.grpc_service import Service, add_service

    server = grpc.aio.server(
        maximum_concurrent_rpcs=_MOST_AT_ONCE,
        options=(
            ("grpc.max_receive_message_length", most_bytes),
            ("grpc.so_reuseport", 0),
            (
                "grpc.compression_enabled_algorithms_bitset",
                1,
            ),  # none: a small message must not become a large one
        ),
    )
    add_service(server, Service(served, metrics))
    try:
        got = server.add_insecure_port(f"{bracketed(host)}:{port}")
    except RuntimeError:
        got = 0
    if not got:
        raise ServingError(f"port {port} of {host} is not available for gRPC; choose another")
    await server.start()

    async def drain() -> None:
        await stopped.wait()
        await server.stop(_DRAIN_S)

    draining = asyncio.create_task(drain())
    try:
        yield got
    finally:
        stopped.set()
        await draining


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: in brackets if it is an IPv6 address."""
    return f"[{host}]" if ":" in host else host


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
        raise ServingError(f"port {port} of {host} is not available ({reason}); choose another") from error
