"""A connection to Ray: on this machine, started for the purpose, or to a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from cnndeploy.errors import ClusterError, DeviceUnavailableError, missing_dependency
from cnndeploy.machine import usable_cpus
from cnndeploy.own_warnings import no_standard_error
from cnndeploy.run import Run

SHARE = 0.5
"""The CPUs of a task that reads, and of each thread of a worker: either waits while the other works."""

_PATIENCE_S = 10  # for a cluster to answer
# Ray would report its use to its makers, and prints bars and tables of its own.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_FOR_WORKERS = (
    "CNNDEPLOY_SOURCES",
    "CNNDEPLOY_LIMITS",
)  # settings of the user's, which a cluster does not inherit


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster at ``address``; this machine if that is None.

    ``workers`` is the number of processes with a copy of the model. By default there are as many as have CPUs for the
    threads of a call, or one for each GPU if it runs there.
    """

    address: str | None = None
    workers: int | None = None


def check_reachable(cluster: Cluster) -> None:
    """Raise ClusterError if nothing answers at ``HOST:PORT``, for which Ray would wait for minutes."""
    address = cluster.address or ""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):  # another form of Ray's, such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        advice = "start one with: ray start --head"
        raise ClusterError(f"no cluster answers at {address} ({error}); {advice}") from error


@contextlib.contextmanager
def connected(cluster: Cluster, run: Run) -> Iterator[Any]:
    """Connect to Ray, check that a worker fits which runs a model as ``run`` says, and yield Ray.

    Raise ClusterError if that fails, if Ray gives up, or if this process is connected already, and
    DeviceUnavailableError if there is no GPU for a ``run`` on one.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        from ray.data.exceptions import ExecutionTimeoutError
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    if ray.is_initialized():
        raise ClusterError("this process is connected to Ray already; call ray.shutdown() first")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised too
    folder = ""
    try:
        folder = _start(ray, cluster, run)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.max_errored_blocks = False, 0
        _check_room(ray, cluster, run)
        yield ray
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise ClusterError(f"Ray gave up: {_reason(error)}") from error
    finally:
        try:
            _wait_for_executors()
        finally:
            ray.shutdown()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


def pool(ray: Any, cluster: Cluster, run: Run, most: int) -> Any:
    """Return a pool of at most ``most`` workers.

    It starts with as many as leave room for a reading task, and grows if the cluster does.
    """
    cpus, gpus = _capacity(ray)
    share = SHARE * run.thread_count
    room, usual = (cpus - SHARE) / share, cpus / run.thread_count
    if run.device == "cuda":
        room, usual = min(gpus, room), gpus
    workers = min(most, cluster.workers or max(1, int(usual)))
    at_first = min(workers, max(1, int(room)))
    return ray.data.ActorPoolStrategy(min_size=at_first, max_size=workers)


def results(ray: Any, dataset: Any) -> Iterator[Any]:
    """Yield a dataset's rows as they come.

    ``dataset.iter_rows()`` does so by threads that go on after Ray's end, and may start Ray again: that crashed the
    next run in this process.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in ray.get(bundle.block_refs):
            yield from ray.data.block.BlockAccessor.for_block(block).iter_rows(public_row_format=True)


def _wait_for_executors() -> None:
    """Wait for Ray Data's threads, which have been told to end: they too would start Ray again."""
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(_PATIENCE_S)


def _start(ray: Any, cluster: Cluster, run: Run) -> str:
    """Start Ray or connect to it; return the folder that it leaves behind here, empty for a cluster's own."""
    share = SHARE * run.thread_count
    here: dict[str, Any] = {
        "address": "local",
        # room for all workers that are asked for, and for two tasks
        "num_cpus": max(usable_cpus(), ceil(share * (cluster.workers or 1) + 2 * SHARE)),
        "include_dashboard": False,
    }
    settings = {name: os.environ[name] for name in _FOR_WORKERS if name in os.environ}
    there = {"address": cluster.address, "runtime_env": {"env_vars": settings}}
    with _signals_kept(), no_standard_error():
        try:
            where = here if cluster.address is None else there
            context = ray.init(log_to_driver=False, logging_level="ERROR", **where)
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"Ray cannot be started or reached: {_reason(error)}") from error
    return str(context.address_info.get("session_dir", "")) if cluster.address is None else ""


def _capacity(ray: Any) -> tuple[float, float]:
    """Return the CPUs and the GPUs of all machines."""
    resources = ray.cluster_resources()
    return resources.get("CPU", 0), resources.get("GPU", 0)


def _check_room(ray: Any, cluster: Cluster, run: Run) -> None:
    """Raise an error if there is no room for a worker on one machine, and a task: Ray would wait until there is."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if run.device == "cuda":
        machines = [resources for resources in machines if resources.get("GPU", 0) >= 1]
        if not machines:
            raise DeviceUnavailableError(
                "Ray knows no GPU here; run on the CPU, or in a cluster that has GPUs"
            )
    share = SHARE * run.thread_count
    largest = max((resources.get("CPU", 0) for resources in machines), default=0)
    if largest < share or _capacity(ray)[0] < share + SHARE:
        where = f"the cluster at {cluster.address}" if cluster.address else "this machine"
        raise ClusterError(
            f"no machine of {where} has CPUs for {run.thread_count} threads; ask for fewer threads"
        )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what signals do, which Ray changes: it exits with the signal's number, too."""
    if threading.current_thread() is not threading.main_thread():  # which alone may, Ray too
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended = False
    try:
        yield
    except SystemExit as error:
        ended = error.code == signal.SIGTERM
        if not ended:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended:
        _handle(before[signal.SIGTERM])


def _handle(handler: Any) -> None:
    """Do what would have been done on SIGTERM."""
    if callable(handler):
        handler(signal.SIGTERM, None)
    sys.exit(128 + signal.SIGTERM)


def _reason(error: BaseException) -> str:
    """Return the last line of an error's first cause that says anything; Ray wraps tracebacks of other processes."""
    while error.__cause__ is not None and str(error.__cause__).strip():
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
