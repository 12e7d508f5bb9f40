"""The worker process: opens one artifact and times it when told. ``python -m cnndeploy.benchmark.worker``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.errors import BenchmarkError
from cnndeploy.process import Message, serve
from cnndeploy.runtimes import Session, open_session


def main(path: str, runtime: str, device: str, threads: str) -> None:
    """Say where the artifact was opened, then answer each request with the seconds of its calls."""

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        artifact = Artifact.open(path)
        with open_session(artifact, runtime=runtime, device=device, threads=int(threads)) as session:
            yield {"device": session.device}
            for request in requests:
                yield {"seconds": _time(session, request["batch_size"], request["calls"])}

    serve(path, answers)


def _time(session: Session, batch_size: int, calls: int) -> list[float]:
    feeds = _feeds(session, batch_size)
    seconds = []
    session.synchronize()
    for _ in range(calls):
        start = time.perf_counter()
        session.run(feeds)
        session.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def _feeds(session: Session, batch_size: int) -> dict[str, NDArray[Any]]:
    """Random images in the range that preprocessing gives; the same for every candidate of one input shape."""
    random = np.random.default_rng(0)
    try:
        return {
            spec.name: random.random(spec.with_batch(batch_size)).astype(spec.dtype)
            for spec in session.inputs
        }
    except (ValueError, TypeError, MemoryError) as error:
        raise BenchmarkError(
            f"{session.artifact.path} cannot be fed a batch of {batch_size}: {error}"
        ) from error


if __name__ == "__main__":
    main(*sys.argv[1:])
