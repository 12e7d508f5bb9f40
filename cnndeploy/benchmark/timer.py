"""Timer: the worker process that opens one candidate and times it when told."""

from __future__ import annotations

import json
import time
from typing import Any

from cnndeploy.benchmark.report import Result
from cnndeploy.deployment import Candidate
from cnndeploy.errors import CnndeployError
from cnndeploy.process import WorkerProcess
from cnndeploy.progress import ShouldStop, never


class Timer(WorkerProcess):
    """A worker process that opens one candidate; a context manager that ends the process.

    With ``end_to_end`` a call goes from raw uint8 images to labels. A request that takes longer than ``timeout_s``
    ends the process; ``failure`` says why it does not run. Once it is open, ``facts`` are what the worker says of
    itself.
    """

    def __init__(
        self,
        candidate: Candidate,
        *,
        timeout_s: float,
        end_to_end: bool = False,
        should_stop: ShouldStop = never,
    ) -> None:
        self.candidate = candidate
        self.end_to_end = end_to_end
        self.failure = ""
        self.facts: dict[str, Any] = {}
        self._timeout_s = timeout_s
        self._should_stop = should_stop
        path = str(candidate.artifact.path)
        super().__init__(
            "cnndeploy.benchmark.worker",
            path,
            json.dumps({"run": candidate.run.to_dict(), "end_to_end": end_to_end, "started": time.time()}),
            subject=path,
        )

    def wait_until_open(self) -> None:
        """Wait for the worker to open its artifact; raise the error that it met."""
        self.facts = self.receive(self._timeout_s, self._should_stop)

    def try_to_open(self) -> CnndeployError | None:
        """Wait for the worker to open its artifact; return the error that it met, which is then its failure."""
        try:
            self.wait_until_open()
        except CnndeployError as error:
            self.failure = str(error)
            return error
        return None

    def call(self, batch_size: int, samples: int, repeats: int) -> dict[str, Any]:
        """Return ``seconds`` per call for each sample of ``repeats`` calls, and ``peak_memory_bytes`` at this size."""
        self.send({"batch_size": batch_size, "samples": samples, "repeats": repeats})
        return self.receive(self._timeout_s, self._should_stop)

    def row(self, batch_size: int) -> Result:
        """Return its row of a report, without figures."""
        artifact, run = self.candidate.artifact, self.candidate.run
        manifest = artifact.manifest
        return Result(
            artifact=str(self.candidate.folder or artifact.path),
            runtime=run.runtime,
            device=self.facts.get("device", run.device),
            threads=self.facts.get("threads", None if run.threads == "auto" else run.threads),
            auto_threads=run.threads == "auto",
            batch_size=batch_size,
            end_to_end=self.end_to_end,
            failure=self.failure,
            file_bytes=artifact.path.stat().st_size,
            accuracy=None if manifest is None else manifest.training.get("test_accuracy"),
            settings=self.facts.get("settings"),
        )


class BatchOf:
    """A candidate at one batch size, as the engine takes it."""

    def __init__(self, timer: Timer, batch_size: int) -> None:
        self.clock_s: float = timer.facts["clock_s"]
        self.peak_memory_bytes: int | None = None
        self._timer = timer
        self._batch_size = batch_size

    def run(self, samples: int, repeats: int) -> list[float]:
        """Return seconds per call."""
        answer = self._timer.call(self._batch_size, samples, repeats)
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        seconds: list[float] = answer["seconds"]
        return seconds
