"""Candidate: an artifact in a process of its own, spoken to in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from cnndeploy import errors
from cnndeploy.artifact import Artifact
from cnndeploy.errors import BenchmarkError, CnndeployError


class Candidate:
    """A worker process that has opened one artifact; a context manager that ends the process."""

    def __init__(self, artifact: Artifact, *, runtime: str, device: str, threads: int) -> None:
        self.artifact = artifact
        self.runtime = runtime
        self.device = device
        self.threads = threads
        command = [sys.executable, "-m", "cnndeploy.benchmark.worker", str(artifact.path), runtime, device]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C is ours alone; __exit__ ends the worker
        )

    def wait_until_open(self) -> None:
        """Wait for the worker to open its artifact; raises the error it met."""
        self.device = self._receive()["device"]

    def at(self, batch_size: int) -> BatchOf:
        """The candidate at one batch size, as the engine takes it."""
        return BatchOf(self, batch_size)

    def call(self, batch_size: int, calls: int) -> list[float]:
        """Seconds of each of ``calls`` calls on one batch."""
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        try:
            self._process.stdin.write(json.dumps({"batch_size": batch_size, "calls": calls}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker has ended; _receive says how
        seconds: list[float] = self._receive()["seconds"]
        return seconds

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise BenchmarkError(
                f"{self.artifact.path}: its process ended with status {status} before it was measured"
                + (" (killed; out of memory?)" if status == -9 else "")
            )
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            kind: type[CnndeployError] = getattr(errors, message["error"], BenchmarkError)
            error = kind.__new__(
                kind
            )  # the text is the message already made, not what the class makes it from
            error.args = (message["text"],)
            raise error
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that the worker did not live to read
                    pipe.close()


class BatchOf:
    """A candidate at one batch size."""

    def __init__(self, candidate: Candidate, batch_size: int) -> None:
        self._candidate = candidate
        self._batch_size = batch_size

    def run(self, calls: int) -> list[float]:
        """Seconds per call."""
        return self._candidate.call(self._batch_size, calls)
