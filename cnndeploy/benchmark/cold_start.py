"""Cold starts: what a fresh process takes until it has run a candidate twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from cnndeploy.benchmark.report import ColdStart
from cnndeploy.benchmark.timer import Timer
from cnndeploy.deployment import Candidate
from cnndeploy.errors import CnndeployError
from cnndeploy.progress import Progress, ShouldStop, never, silent


def cold_start(
    candidate: Candidate,
    batch_size: int,
    timeout_s: float,
    *,
    end_to_end: bool = False,
    should_stop: ShouldStop = never,
) -> ColdStart:
    """Start one process afresh and return its times; raise the error that it met."""
    with Timer(candidate, timeout_s=timeout_s, end_to_end=end_to_end, should_stop=should_stop) as timer:
        timer.wait_until_open()
        (first,), (second,) = (timer.call(batch_size, 1, 1)["seconds"] for _ in range(2))
        return ColdStart(timer.facts["import_s"], timer.facts["open_s"], first, second)


def cold_starts(
    candidates: Sequence[Candidate],
    count: int,
    batch_size: int,
    timeout_s: float,
    *,
    end_to_end: bool = False,
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> tuple[list[ColdStart | None], list[str]]:
    """Start every candidate ``count`` times, in turns.

    Returns:
        The median of each candidate's starts, None if it has none; and what kept candidates from starting.
    """
    starts: list[list[ColdStart]] = [[] for _ in candidates]
    failures: dict[int, str] = {}
    turns = list(product(range(count), enumerate(candidates)))
    for done, (_, (index, candidate)) in enumerate(turns):
        if should_stop():
            break
        progress(done, len(turns), "Cold starts")
        if index in failures:
            continue
        try:
            start = cold_start(
                candidate, batch_size, timeout_s, end_to_end=end_to_end, should_stop=should_stop
            )
            starts[index].append(start)
        except CnndeployError as error:
            name = candidate.artifact.path.name
            failures[index] = f"{name} on {candidate.run.runtime} did not start afresh: {error}"
    medians = [ColdStart.median(of_candidate) if of_candidate else None for of_candidate in starts]
    return medians, list(failures.values())
