"""Candidate: an artifact in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import ColdStart, Result
from cnndeploy.process import WorkerProcess
from cnndeploy.run import RuntimeOptions, Threads

RAW_ONNXRUNTIME, RAW_OPENVINO = "raw-onnxruntime", "raw-openvino"
# As a plain script uses them, without our own layer: name to package.
RAW = {RAW_ONNXRUNTIME: "onnxruntime", RAW_OPENVINO: "openvino"}
_DEFAULT_OPTIONS = RuntimeOptions()


@dataclass(frozen=True, slots=True)
class Settings:
    """How a candidate is run.

    ``runtime`` is a runtime's name, or one of :data:`RAW`; ``threads`` a number, or ``auto``. With ``end_to_end``
    a call goes from raw uint8 images to labels. ``deployment`` is the folder whose plan these are of.
    """

    runtime: str
    device: str
    threads: Threads
    end_to_end: bool = False
    options: RuntimeOptions = _DEFAULT_OPTIONS
    deployment: str = ""

    def to_json(self) -> str:
        """For the worker."""
        return json.dumps({**asdict(self), "options": self.options.changed})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "options": RuntimeOptions.of(values["options"])})


class Candidate(WorkerProcess):
    """A worker process that opens one artifact; a context manager that ends the process.

    A request that takes longer than ``timeout_s`` ends it; ``failure`` says why it does not run. Once it is open,
    ``facts`` are what the worker says of itself.
    """

    def __init__(
        self, artifact: Artifact, settings: Settings, *, timeout_s: float, should_stop: Callable[[], bool]
    ) -> None:
        self.artifact = artifact
        self.asked = settings
        self.failure = ""
        self.facts: dict[str, Any] = {}
        self._timeout_s = timeout_s
        self._should_stop = should_stop
        super().__init__(
            "cnndeploy.benchmark.worker",
            str(artifact.path),
            settings.to_json(),
            str(time.time()),
            subject=str(artifact.path),
        )

    def wait_until_open(self) -> None:
        """Wait for the worker to open its artifact; raises the error it met."""
        self.facts = self.receive(self._timeout_s, self._should_stop)

    def call(self, batch_size: int, samples: int, repeats: int) -> dict[str, Any]:
        """``seconds`` per call of each sample of ``repeats`` calls, and ``peak_memory_bytes`` at this batch size."""
        self.send({"batch_size": batch_size, "samples": samples, "repeats": repeats})
        return self.receive(self._timeout_s, self._should_stop)

    def row(self, batch_size: int) -> Result:
        """Its row in the report, without figures."""
        manifest = self.artifact.manifest
        return Result(
            target=self.asked.deployment or str(self.artifact.path),
            runtime=self.asked.runtime,
            device=self.facts.get("device", self.asked.device),
            threads=self.facts.get("threads", None if self.asked.threads == "auto" else self.asked.threads),
            auto_threads=self.asked.threads == "auto",
            batch_size=batch_size,
            end_to_end=self.asked.end_to_end,
            failure=self.failure,
            file_bytes=self.artifact.path.stat().st_size,
            accuracy=None if manifest is None else manifest.training.get("test_accuracy"),
            settings=self.facts.get("settings"),
        )


class BatchOf:
    """A candidate at one batch size, as the engine takes it."""

    def __init__(self, candidate: Candidate, batch_size: int) -> None:
        self.clock_s: float = candidate.facts["clock_s"]
        self.peak_memory_bytes: int | None = None
        self._candidate = candidate
        self._batch_size = batch_size

    def run(self, samples: int, repeats: int) -> list[float]:
        """Seconds per call."""
        answer = self._candidate.call(self._batch_size, samples, repeats)
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        seconds: list[float] = answer["seconds"]
        return seconds


def cold_start(
    artifact: Artifact, settings: Settings, batch_size: int, timeout_s: float, should_stop: Callable[[], bool]
) -> ColdStart:
    """Start one process afresh and take its times; raises what :class:`Candidate` does."""
    with Candidate(artifact, settings, timeout_s=timeout_s, should_stop=should_stop) as candidate:
        candidate.wait_until_open()
        (first,), (second,) = (candidate.call(batch_size, 1, 1)["seconds"] for _ in range(2))
        return ColdStart(candidate.facts["import_s"], candidate.facts["open_s"], first, second)
