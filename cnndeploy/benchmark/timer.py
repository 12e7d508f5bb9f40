"""Timer: the worker process that opens one candidate and times it when told; and what starting it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from cnndeploy import nvml
from cnndeploy.benchmark.report import ColdStart, Result
from cnndeploy.certificate import known_accuracy
from cnndeploy.deployment import Candidate
from cnndeploy.errors import CnndeployError, Stopped
from cnndeploy.process import Message, WorkerProcess
from cnndeploy.progress import Progress, ShouldStop, never, silent


class Timer(WorkerProcess):
    """A worker process that opens one candidate; a context manager that ends the process.

    With ``end_to_end`` a call goes from raw uint8 images, of the data set ``data``, to labels. A request that takes
    longer than ``timeout_s`` ends the process; ``failure`` says why it does not run. ``facts``, once it is open, are
    the worker's own.
    """

    def __init__(
        self,
        candidate: Candidate,
        timeout_s: float,
        end_to_end: bool = False,
        data: str | None = None,
        should_stop: ShouldStop = never,
    ) -> None:
        self.candidate, self.end_to_end, self.failure = candidate, end_to_end, ""
        self.facts: Message = {}
        self._wait = timeout_s, should_stop
        path = str(candidate.artifact.path)
        told = {
            "run": candidate.run.to_dict(),
            "end_to_end": end_to_end,
            "data": data,
            "started": time.time(),
        }
        super().__init__("cnndeploy.benchmark.worker", path, json.dumps(told), subject=path)

    def wait_until_open(self) -> None:
        """Wait for the worker to open its artifact; raise the error that it met."""
        self.facts = self.receive(*self._wait)

    def try_to_open(self) -> CnndeployError | None:
        """Wait for the worker to open its artifact; return the error that it met, which is then its failure."""
        try:
            self.wait_until_open()
        except Stopped:  # what asks whether to stop may raise
            raise
        except CnndeployError as error:
            self.failure = str(error)
            return error
        return None

    def call(self, batch_size: int, samples: int, repeats: int) -> Message:
        """Return ``seconds`` per call for each sample of ``repeats`` calls, and ``peak_memory_bytes`` at this size."""
        self.send({"batch_size": batch_size, "samples": samples, "repeats": repeats})
        return self.receive(*self._wait)

    def gpu_memory_bytes(self) -> int | None:
        """Return how much of the GPU's memory its process holds; None on the CPU, and if it is unknown."""
        gpu: str | None = self.facts.get("gpu")
        return None if gpu is None else nvml.memory_bytes(gpu, self._process.pid)

    def row(self, batch_size: int) -> Result:
        """Return its row of a report, without figures."""
        artifact, run = self.candidate.artifact, self.candidate.run
        known = known_accuracy(artifact, run)
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
            accuracy=None if known is None else known.accuracy,
            accuracy_images=None if known is None else known.images,
            settings=self.facts.get("settings"),
            options=run.choices.changed,
        )


class BatchOf:
    """A candidate at one batch size, as the engine takes it."""

    def __init__(self, timer: Timer, batch_size: int) -> None:
        self._timer, self._batch_size = timer, batch_size
        self.clock_s: float = timer.facts["clock_s"]
        self.peak_memory_bytes: int | None = None

    def run(self, samples: int, repeats: int) -> list[float]:
        """Return seconds per call."""
        answer = self._timer.call(self._batch_size, samples, repeats)
        self.peak_memory_bytes = answer["peak_memory_bytes"]
        return list(answer["seconds"])


def cold_start(timer: Timer, batch_size: int) -> ColdStart:
    """Return the times of a process that was just started, and end it; raise the error that it met."""
    with timer:
        timer.wait_until_open()
        (first,), (second,) = (timer.call(batch_size, 1, 1)["seconds"] for _ in range(2))
        return ColdStart(timer.facts["import_s"], timer.facts["open_s"], first, second)


def cold_starts(
    candidates: Sequence[Candidate],
    count: int,
    batch_size: int,
    start: Callable[[Candidate], Timer],
    *,
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> tuple[list[ColdStart | None], list[str]]:
    """Start every candidate ``count`` times, in turns.

    Return the median of each candidate's starts, None if it has none; and what kept candidates from starting.
    """
    starts: list[list[ColdStart]] = [[] for _ in candidates]
    failures: dict[int, str] = {}
    turns = list(range(len(candidates))) * count
    for done, index in enumerate(turns):
        if should_stop():
            break
        progress(done, len(turns), "Cold starts")
        if index in failures:
            continue
        try:
            starts[index].append(cold_start(start(candidates[index]), batch_size))
        except CnndeployError as error:
            name, runtime = candidates[index].artifact.path.name, candidates[index].run.runtime
            failures[index] = f"{name} on {runtime} did not start afresh: {error}"
    return [ColdStart.median(some) if some else None for some in starts], list(failures.values())
