"""The worker process: opens one artifact and times it when told. ``python -m cnndeploy.benchmark.worker``."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.errors import BenchmarkError, CnndeployError
from cnndeploy.runtimes import Session, open_session


def main(path: str, runtime: str, device: str, threads: str) -> None:
    """Answer each line of JSON on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    try:
        with open_session(
            Artifact.open(path), runtime=runtime, device=device, threads=int(threads)
        ) as session:
            _send(answers, {"device": session.device})
            for line in sys.stdin:
                request = json.loads(line)
                _send(answers, {"seconds": _time(session, request["batch_size"], request["calls"])})
    except BrokenPipeError:
        pass  # the parent has gone
    except CnndeployError as error:
        _send(answers, {"error": type(error).__name__, "text": str(error)})
    except Exception as error:  # noqa: BLE001 - a batch that no memory holds, a runtime's own fault: the parent tells
        _send(answers, {"error": "BenchmarkError", "text": f"{path} could not be measured: {error!r}"})


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
    except (ValueError, TypeError) as error:
        raise BenchmarkError(
            f"{session.artifact.path} cannot be fed a batch of {batch_size}: {error}"
        ) from error


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
