"""The choice: race all contenders, and verify the fastest until one may be deployed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from cnndeploy.benchmark.timer import BatchOf, Timer
from cnndeploy.errors import ArtifactError, BenchmarkError
from cnndeploy.tuning.contenders import Contender, Files, Job
from cnndeploy.tuning.race import FIRST_ROUNDS, Race
from cnndeploy.tuning.report import Row
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.report import BudgetReport, EquivalenceReport, Verdict
from cnndeploy.verification.verify import verify
from cnndeploy.words import counted

# A contender that computes for so long at its first run, as torch.compile may, is left out.
_ANSWER_S = 120.0
# A lossless contender is preferred to a lossy one that is no faster than this.
_AS_FAST = 0.98
# Lossy contenders that test images measure, beside what quantization measured; each is one chance to err.
_MOST_LOSSY = 2
_MEASURED_ENOUGH = f"test images measured {_MOST_LOSSY} lossy candidates already"
# If the time does not suffice for all test images, a lossless file is verified on no fewer than these.
_FEWEST_IMAGES = 256
# The share of the time limit by which the check of a lossy contender may go beyond it: else the fastest one would be
# lost to a slower one for want of seconds.
_OVERTIME = 0.1
# Verification runs the checkpoint in float64 on some images too, and starts two processes.
_ALLOWANCE = 1.5
_ORDER = ("chosen", "as fast", "undecided", "slower", "failed", "not tried")  # of the rows


@dataclass(frozen=True, slots=True)
class Choice:
    """The race that was run, and the contender that is deployed, whose verdict is a pass; None if there is none.

    ``late`` says that the time was over before the race; then only the simplest contenders raced.
    """

    race: Race[Contender]
    chosen: Contender | None
    late: bool = False

    @property
    def complete(self) -> bool:
        """Whether the race was decided and all contenders were in it."""
        return self.race.decided and not self.late

    def rows(self, contenders: Sequence[Contender], checkpoint_accuracy: float | None) -> list[Row]:
        """Return a row for each contender, fastest first.

        Above the chosen one are only rejected ones. Below it are first those that nothing tells apart from it.
        """
        ranked = self.race.ranked(contenders)
        anchor = self.chosen or (ranked[0] if ranked else None)
        rows = [self.row(contender, anchor, checkpoint_accuracy) for contender in contenders]
        best = max((row.ratio or 0 for row in rows if row.outcome == "chosen"), default=math.inf)
        return sorted(rows, key=lambda row: _place(row, best))

    def row(self, contender: Contender, anchor: Contender | None, checkpoint_accuracy: float | None) -> Row:
        """Return the contender's row; a lossless one is as accurate as its checkpoint, if it runs.

        Its figures are those of the ``anchor``, times how many times as fast it is in the rounds that both ran: the
        machine may have been slower in others.
        """
        race, verdict, rounds = self.race, contender.verdict, self.race.rounds(contender)
        best = "the chosen one" if self.chosen else "the fastest"
        row = contender.row("as fast", f"not told apart from {best} in {counted(rounds, 'round')}")
        if rounds and anchor is not None:
            row = replace(row, **_figures(race, contender, anchor))
            if not (contender.lossy or contender.rejected):
                row = replace(row, accuracy=checkpoint_accuracy)
        if isinstance(verdict, BudgetReport):
            row = replace(row, accuracy=verdict.accuracy, loss_high_points=verdict.loss_high_points)
        if verdict is not None and (contender is self.chosen or contender.rejected):
            return replace(
                row, outcome="rejected" if contender.rejected else "chosen", reason=verdict.summary
            )
        if contender in race.failures:
            return replace(row, outcome="failed", reason=race.failures[contender])
        if not rounds:
            return replace(row, outcome="not tried", reason="the time was over before it could be timed")
        if contender in race.slower:
            ratio, (low, high) = race.slower[contender].ratio, race.slower[contender].interval
            reason = f"{ratio:.3g} ({low:.3g} to {high:.3g}) times as fast as the fastest"
            return replace(row, outcome="slower", reason=reason)
        if rounds < FIRST_ROUNDS:
            known = "1 round does" if rounds == 1 else f"{rounds} rounds do"
            return replace(
                row, outcome="undecided", reason=f"{known} not tell whether it is slower than the chosen one"
            )
        return row


def _figures(race: Race[Contender], contender: Contender, anchor: Contender) -> dict[str, Any]:
    """Return the times of a row that was timed, comparable with those of the anchor's."""
    ratio, ends, p50_s = race.ratio(anchor), race.interval(anchor), race.median_s(anchor) or 0.0
    if contender == race.reference:
        return {"ratio": 1.0, "ratio_interval": (1.0, 1.0), "p50_s": p50_s * ratio}
    relative, (low, high) = race.comparable(contender, anchor)
    few = min(race.rounds(contender), race.rounds(anchor)) < FIRST_ROUNDS
    return {
        "ratio": ratio * relative,
        "ratio_interval": None if few else (ends[0] * low, ends[1] * high),
        "p50_s": p50_s / relative,
    }


def _place(row: Row, best: float) -> tuple[int, float]:
    """Return what rows are sorted by; ``best`` is the ratio of the chosen one, above which only rejected ones stand."""
    ratio = row.ratio or 0.0
    if row.outcome == "rejected":
        return -1 if ratio > best else _ORDER.index("slower"), -ratio
    return _ORDER.index(row.outcome), -ratio


def choose(job: Job, files: Files, contenders: Sequence[Contender]) -> Choice:
    """Time all contenders, and verify the fastest until one passes; choose none if none does.

    The first is eager PyTorch, which all are timed against. If the time is over already, only the simplest are timed.
    Raise BenchmarkError if the first does not run, and Stopped if the caller asks for the end.
    """
    with _race(job, contenders) as race:
        looks = 0
        late = job.deadline.is_over()
        considered = _simplest(job, contenders) if late else contenders
        while pool := [contender for contender in considered if not contender.rejected]:
            job.check_stop()
            best = _best(job, pool, race)
            if best is None:
                break
            if best.lossy and best.verdict is None:
                looks += 1
                if looks > _MOST_LOSSY:
                    for contender in (one for one in pool if one.lossy and one.verdict is None):
                        contender.verdict = _undecided(job, contender, _MEASURED_ENOUGH)
                    continue
            eager_image_s = files.eager_image_s
            if eager_image_s is None:
                eager_image_s = (race.median_s(contenders[0]) or 0.0) / job.batch_size
            image_s = (race.median_s(best) or 0.0) / job.batch_size
            verdict = best.verdict or _verify(job, best, image_s, eager_image_s)
            job.reference.release()  # what waits for work may disturb what is timed
            for contender in contenders:
                if contender.numbers == best.numbers:
                    contender.verdict = verdict
            if verdict.passed:
                return Choice(race, best, late)
        job.check_stop()
    return Choice(race, None, late)


def _simplest(job: Job, contenders: Sequence[Contender]) -> Sequence[Contender]:
    """Return the contenders that race if the time is already over: a few rather than none."""
    first, *others = contenders
    passed = {one for one in others if one.verdict is not None and one.verdict.passed}
    return [first, *(one for one in others if one in passed or one.is_simple(job.threads))]


class Entrant:
    """A contender as the race times it: it has a process from its first call until it leaves the race.

    Processes start one after the other, for many that start together disturb each other. One that waits for its turn
    is blocked on a pipe, so that it takes memory and no CPU time.
    """

    def __init__(self, job: Job, contender: Contender) -> None:
        self.clock_s = 0.0  # known once it is open
        self._job, self._contender = job, contender
        self._open = contextlib.ExitStack()
        self._batches: BatchOf | None = None

    def run(self, samples: int, repeats: int) -> list[float]:
        """Return seconds per call; raise the error that it met, in opening its file too."""
        if self._batches is None:
            self._job.progress(0, 0, f"Opening {self._contender}")
            stop = self._job.deadline.should_stop
            timer = Timer(self._contender.candidate, timeout_s=_ANSWER_S, should_stop=stop)
            self._open.enter_context(timer).wait_until_open()
            self._batches = BatchOf(timer, self._job.batch_size)
            self.clock_s = self._batches.clock_s
        return self._batches.run(samples, repeats)

    def close(self) -> None:
        """End its process; the next call starts another."""
        self._open.close()
        self._batches = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _race(job: Job, contenders: Sequence[Contender]) -> Iterator[Race[Contender]]:
    """Yield a race of all contenders against the first of them, and end their processes afterwards.

    Its first round is always finished. Opening the contenders takes most of that round, and would be wasted otherwise.
    """
    with contextlib.ExitStack() as stack:
        entrants = {contender: stack.enter_context(Entrant(job, contender)) for contender in contenders}

        timed = False

        def on_round(rounds: int, running: int) -> None:
            nonlocal timed
            timed = True
            job.progress(0, 0, f"Timing {running} candidates, round {rounds}")

        def should_stop() -> bool:
            return job.deadline.is_over() if timed else job.deadline.should_stop()

        yield Race(
            entrants,
            reference=contenders[0],
            should_stop=should_stop,
            on_round=on_round,
            on_leave=lambda contender: entrants[contender].close(),
        )


def _best(job: Job, pool: Sequence[Contender], race: Race[Contender]) -> Contender | None:
    """Return the fastest that the race leaves, or a lossless one that is as fast.

    Return None if those left have failed and there is no other, or no time for one.
    """
    try:
        standing = race.run(pool)
    except BenchmarkError:
        job.check_stop()  # eager PyTorch's process may have been ended for that
        raise
    if not standing:  # the last leaders broke down; those that were slower than they may do
        remaining = [contender for contender in pool if contender not in race.failures]
        over = job.deadline.is_over() or not (race.failures and any(race.rounds(one) for one in remaining))
        return None if over else _best(job, remaining, race)
    leader = standing[0]
    lossless = (contender for contender in standing if not contender.lossy)
    return next((contender for contender in lossless if race.ratio(contender, leader) >= _AS_FAST), leader)


def _verify(job: Job, contender: Contender, image_s: float, eager_image_s: float) -> Verdict:
    """Verify a contender, on fewer images if the time demands it.

    It takes ``image_s`` seconds an image, eager PyTorch takes ``eager_image_s``, which is 0 if its logits are known.
    """
    candidate, reference, tests = contender.candidate, job.reference, len(job.reference.test)
    artifact, run, stopped, progress = candidate.artifact, candidate.run, job.stopped, job.progress
    try:
        if not contender.lossy:
            seconds = _ALLOWANCE * (image_s + eager_image_s)
            affordable = int(max(0.0, job.deadline.left_s) / seconds)
            images = None if affordable >= tests else min(tests, max(_FEWEST_IMAGES, affordable))
            return verify(artifact, reference, run=run, images=images, deadline=stopped, progress=progress)
        if image_s * tests <= job.deadline.left_s + 60 * _OVERTIME * job.max_minutes:
            return verify_budget(
                artifact, reference, budget=job.budget, run=run, deadline=stopped, progress=progress
            )
        needs = image_s * tests
        reason = (
            f"checking what it loses on {tests:,} test images would take about {counted(math.ceil(needs), 'second')}, "
            f"more than is left; max_minutes={math.ceil(job.max_minutes + needs / 60)} would do"
        )
    except ArtifactError as error:  # its process died, say; another contender may do
        reason = f"it could not be verified: {error}"
    return _undecided(job, contender, reason)


def _undecided(job: Job, contender: Contender, reason: str) -> Verdict:
    kind: type[Verdict] = BudgetReport if contender.lossy else EquivalenceReport
    return kind.undecided(contender.candidate.artifact.path, job.reference.artifact.path, reason)
