"""Rows: what became of each contender and why, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cnndeploy.tuning.choice import Choice
from cnndeploy.tuning.contenders import Contender
from cnndeploy.tuning.report import Row
from cnndeploy.verification.budget_report import BudgetReport


def rows_of(contenders: Sequence[Contender], choice: Choice, checkpoint_accuracy: float | None) -> list[Row]:
    """Return a row for each contender, fastest first; a lossless one is as accurate as its checkpoint."""
    rows = [_row(contender, choice, checkpoint_accuracy) for contender in contenders]
    return sorted(rows, key=lambda row: -(row.ratio or 0))


def _row(contender: Contender, choice: Choice, checkpoint_accuracy: float | None) -> Row:
    race, run, verdict = choice.race, contender.candidate.run, contender.verdict
    row = Row(
        contender.variant,
        run.runtime,
        run.thread_count,
        run.choices.changed,
        contender.lossy,
        "as fast",
        f"no faster than {choice.chosen}, as far as {race.rounds(contender)} rounds tell",
        accuracy=None if contender.lossy else checkpoint_accuracy,
    )
    if isinstance(verdict, BudgetReport):
        row = replace(row, accuracy=verdict.accuracy, loss_high_points=verdict.loss_high_points)
    if (p50_s := race.median_s(contender)) is not None:
        row = replace(row, ratio=race.ratio(contender), ratio_interval=race.interval(contender), p50_s=p50_s)
    if contender is choice.chosen:
        return replace(row, outcome="chosen", reason=choice.verdict.summary)
    if verdict is not None and contender.rejected:
        return replace(row, outcome="rejected", reason=verdict.summary)
    if contender in race.failures:
        return replace(row, outcome="failed", reason=race.failures[contender])
    if p50_s is None:
        return replace(row, outcome="not tried", reason="the time was over before its first round was")
    if contender in race.slower:
        ratio, (low, high) = race.slower[contender]
        reason = f"{ratio:.3g} ({low:.3g} to {high:.3g}) of the leader's speed"
        return replace(row, outcome="slower", reason=reason)
    return row
