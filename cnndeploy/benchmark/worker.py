"""The worker process: opens one candidate and times it when told. ``python -m cnndeploy.benchmark.worker``."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from cnndeploy.benchmark.raw import RAW
from cnndeploy.benchmark.subjects import Call, Subject, open_subject
from cnndeploy.errors import ArtifactError, BenchmarkError, missing_dependency
from cnndeploy.machine import peak_memory_bytes, reset_peak_memory
from cnndeploy.process import Message, serve
from cnndeploy.run import Run
from cnndeploy.runtimes import RUNTIMES


def main(path: str, settings: str) -> None:
    """Say how the artifact was opened, then answer each request with the seconds of its calls."""
    told = json.loads(settings)
    run = Run.from_dict(told["run"])

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        _import_package_of(run.runtime)
        imported = time.time()
        subject = open_subject(path, run, told["end_to_end"])
        with contextlib.closing(subject):
            yield {
                "import_s": imported - told["started"],
                "open_s": time.time() - imported,
                "clock_s": _clock_s(),
                "device": subject.device,
                "threads": subject.threads,
                "settings": subject.settings,
            }
            call, batch_size = None, 0
            for request in requests:
                if call is None or request["batch_size"] != batch_size:
                    batch_size = request["batch_size"]
                    call = _prepared(subject, batch_size)
                    reset_peak_memory()
                seconds = _time(subject, call, request["samples"], request["repeats"])
                yield {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}

    serve(path, answers)


def _import_package_of(runtime: str) -> None:
    package = RAW.get(runtime) or RUNTIMES.get(runtime).package
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


def _prepared(subject: Subject, batch_size: int) -> Call:
    try:
        return subject.prepare(batch_size)
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        raise BenchmarkError(f"it cannot be fed a batch of {batch_size}: {error}") from error


def _time(subject: Subject, call: Call, samples: int, repeats: int) -> list[float]:
    """Return seconds per call; every call has its results on the host, so one on a GPU has ended when it returns."""
    stamps = []
    subject.synchronize()
    gc.collect()
    gc.disable()
    try:
        stamps.append(time.perf_counter())
        for _ in range(samples):
            for _ in range(repeats):
                outputs = call()
            stamps.append(time.perf_counter())
        subject.synchronize()
    finally:
        gc.enable()
    if not all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f"):
        raise ArtifactError("it gives NaN or infinite values")
    return [(end - start) / repeats for start, end in pairwise(stamps)]


def _clock_s() -> float:
    """Return the seconds that reading the clock takes; the least of several tries, for anything may come between."""
    count, tries = 200, 20
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        for _ in range(count):
            time.perf_counter()
        seconds.append((time.perf_counter() - started) / count)
    return min(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
