"""Candidate: an artifact in a process of its own."""

from __future__ import annotations

from cnndeploy.artifact import Artifact
from cnndeploy.process import WorkerProcess


class Candidate(WorkerProcess):
    """A worker process that opens one artifact; a context manager that ends the process."""

    def __init__(self, artifact: Artifact, *, runtime: str, device: str, threads: int) -> None:
        self.artifact = artifact
        self.runtime = runtime
        self.device = device
        self.threads = threads
        arguments = (str(artifact.path), runtime, device, str(threads))
        super().__init__("cnndeploy.benchmark.worker", *arguments, subject=str(artifact.path))

    def wait_until_open(self) -> None:
        """Wait for the worker to open its artifact; raises the error it met."""
        self.device = self.receive()["device"]

    def at(self, batch_size: int) -> BatchOf:
        """The candidate at one batch size, as the engine takes it."""
        return BatchOf(self, batch_size)

    def call(self, batch_size: int, calls: int) -> list[float]:
        """Seconds of each of ``calls`` calls on one batch."""
        self.send({"batch_size": batch_size, "calls": calls})
        seconds: list[float] = self.receive()["seconds"]
        return seconds


class BatchOf:
    """A candidate at one batch size."""

    def __init__(self, candidate: Candidate, batch_size: int) -> None:
        self._candidate = candidate
        self._batch_size = batch_size

    def run(self, calls: int) -> list[float]:
        """Seconds per call."""
        return self._candidate.call(self._batch_size, calls)
