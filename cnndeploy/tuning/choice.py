"""The choice: race all contenders, and verify the fastest until one may be deployed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cnndeploy.benchmark.timer import BatchOf, Timer
from cnndeploy.errors import ArtifactError, BenchmarkError
from cnndeploy.tuning.contenders import Contender, Files, Job
from cnndeploy.tuning.race import Race
from cnndeploy.tuning.report import Row
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.report import BudgetReport, EquivalenceReport, Verdict
from cnndeploy.verification.verify import verify

# A contender that computes for so long at its first run, as torch.compile may, is left out.
_ANSWER_S = 120.0
# A lossless contender is preferred to a lossy one that is no faster than this.
_AS_FAST = 0.98
# Lossy contenders that test images measure, beside what quantization measured; each is one chance to err.
_MOST_LOSSY = 2
_MEASURED_ENOUGH = f"test images measured {_MOST_LOSSY} lossy contenders already"
# What is taken if nothing could be timed.
_UNTIMED = "onnxruntime"
# If the time does not suffice for all test images, a lossless file is verified on no fewer than these.
_FEWEST_IMAGES = 256
# Verification runs the checkpoint in float64 on some images too, and starts two processes.
_ALLOWANCE = 1.5


@dataclass(frozen=True, slots=True)
class Choice:
    """The race that was run, and the contender that is deployed, whose verdict is a pass; None if all fail."""

    race: Race[Contender]
    chosen: Contender | None

    def row(self, contender: Contender, checkpoint_accuracy: float | None) -> Row:
        """Return the contender's row of the report; a lossless one is as accurate as its checkpoint."""
        race, verdict, p50_s = self.race, contender.verdict, self.race.median_s(contender)
        tell = f"no faster than {self.chosen}, as far as {race.rounds(contender)} rounds tell"
        row = contender.row("as fast", tell)
        if not contender.lossy:
            row = replace(row, accuracy=checkpoint_accuracy)
        if isinstance(verdict, BudgetReport):
            row = replace(row, accuracy=verdict.accuracy, loss_high_points=verdict.loss_high_points)
        if p50_s is not None:
            row = replace(
                row, ratio=race.ratio(contender), ratio_interval=race.interval(contender), p50_s=p50_s
            )
        if verdict is not None and (contender is self.chosen or contender.rejected):
            return replace(
                row, outcome="rejected" if contender.rejected else "chosen", reason=verdict.summary
            )
        if contender in race.failures:
            return replace(row, outcome="failed", reason=race.failures[contender])
        if p50_s is None:
            return replace(row, outcome="not tried", reason="the time was over before its first round was")
        if contender in race.slower:
            ratio, (low, high) = race.slower[contender]
            reason = f"{ratio:.3g} ({low:.3g} to {high:.3g}) of the leader's speed"
            return replace(row, outcome="slower", reason=reason)
        return row


def choose(job: Job, files: Files, contenders: Sequence[Contender]) -> Choice:
    """Time all contenders, and verify the fastest until one passes.

    The first is eager PyTorch; raise BenchmarkError if that does not run, and Stopped if the caller asks for the end.
    """
    with _race(job, contenders) as race:
        looks = 0
        while pool := [contender for contender in contenders if not contender.rejected]:
            job.check_stop()
            best = _best(pool, race)
            if best is None:
                break
            looks += best.lossy
            if looks > _MOST_LOSSY:
                for contender in (one for one in pool if one.lossy):
                    contender.verdict = _undecided(job, contender, _MEASURED_ENOUGH)
                continue
            eager_s = 0.0 if files.labelled else race.median_s(contenders[0]) or 0.0
            image_s = (race.median_s(best) or 0.0) / job.batch_size
            verdict = best.verdict or _verify(job, best, image_s, eager_s / job.batch_size)
            for contender in contenders:
                if contender.numbers == best.numbers:
                    contender.verdict = verdict
            if verdict.passed:
                return Choice(race, best)
        job.check_stop()
    return Choice(race, None)


@contextlib.contextmanager
def _race(job: Job, contenders: Sequence[Contender]) -> Iterator[Race[Contender]]:
    """Open every contender in a process of its own, and yield a race of those that open."""
    with contextlib.ExitStack() as stack:
        stop, eager = job.deadline.should_stop, contenders[0]
        timers = {
            contender: stack.enter_context(Timer(contender.candidate, timeout_s=_ANSWER_S, should_stop=stop))
            for contender in contenders
        }
        for number, timer in enumerate(timers.values()):
            job.progress(number, len(timers), "Opening")
            job.check_stop()
            timer.try_to_open()
        if failure := timers[eager].failure:
            raise BenchmarkError(f"eager PyTorch, which all are timed against, does not run: {failure}")

        def on_round(rounds: int, running: int) -> None:
            job.progress(0, 0, f"Timing {running} candidates, round {rounds}")

        race = Race(
            {one: BatchOf(timer, job.batch_size) for one, timer in timers.items() if not timer.failure},
            reference=eager,
            should_stop=job.deadline.is_over,
            on_round=on_round,
        )
        race.failures |= {contender: timer.failure for contender, timer in timers.items() if timer.failure}
        yield race


def _best(pool: Sequence[Contender], race: Race[Contender]) -> Contender | None:
    """Return the fastest that the race leaves, or a lossless one that is as fast.

    If the time was over before anything was timed, a lossless one that runs everywhere; None if there is none.
    """
    standing = race.run(pool)
    if not standing:
        plain = (one for one in pool if not one.lossy and one not in race.failures)
        return next((one for one in plain if one.candidate.run.runtime == _UNTIMED), None)
    enough = _AS_FAST * race.ratio(standing[0])
    lossless = (contender for contender in standing if not contender.lossy)
    return next((contender for contender in lossless if race.ratio(contender) >= enough), standing[0])


def _verify(job: Job, contender: Contender, image_s: float, eager_image_s: float) -> Verdict:
    """Verify a contender, on fewer images if the time demands it.

    It takes ``image_s`` seconds for an image, eager PyTorch ``eager_image_s``, 0 if its logits are known.
    """
    candidate, reference, tests = contender.candidate, job.reference, len(job.reference.test)
    artifact, run, stopped, progress = candidate.artifact, candidate.run, job.stopped, job.progress
    try:
        if not contender.lossy:
            # 0 if the time was over before anything was timed
            seconds = max(1e-6, _ALLOWANCE * (image_s + eager_image_s))
            affordable = int(max(0.0, job.deadline.left_s) / seconds)
            images = None if affordable >= tests else min(tests, max(_FEWEST_IMAGES, affordable))
            return verify(artifact, reference, run=run, images=images, deadline=stopped, progress=progress)
        if image_s * tests <= job.deadline.left_s:
            return verify_budget(
                artifact, reference, budget=job.budget, run=run, deadline=stopped, progress=progress
            )
        minutes = math.ceil(job.max_minutes + image_s * tests / 60)
        reason = f"no time is left to see what it loses on the test images; {minutes} minutes would do"
    except ArtifactError as error:  # its process died, say; another contender may do
        reason = f"it could not be verified: {error}"
    return _undecided(job, contender, reason)


def _undecided(job: Job, contender: Contender, reason: str) -> Verdict:
    kind: type[Verdict] = BudgetReport if contender.lossy else EquivalenceReport
    return kind.undecided(contender.candidate.artifact.path, job.reference.artifact.path, reason)
