"""Baseline: whether a line of a report got slower since an earlier one."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cnndeploy.benchmark.intervals import Verdict, change_interval, rounds_needed, verdict
from cnndeploy.benchmark.report import BenchmarkReport, Result, round_ratios
from cnndeploy.errors import BenchmarkError

Line = tuple[Any, ...]
_SAME_MACHINE = ("cpu", "usable_cpus", "gpus")


@dataclass(frozen=True, slots=True)
class Change:
    """A line in both reports; ``ratio`` is how many times as fast it is now, with a 95% interval for all lines.

    ``by`` says of what: of the ``ratio`` to the reference, which a machine that is slower as a whole does not change;
    or of the ``time``, of the reference itself and where it was not the same in both.
    """

    target: str
    runtime: str
    threads: int | None
    batch_size: int
    by: Literal["ratio", "time"]
    ratio: float
    ratio_low: float
    ratio_high: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed, and what could not be compared: in words. ``undecided`` lines have too few rounds to be judged."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def slower(self) -> tuple[Change, ...]:
        """The regressions."""
        return tuple(change for change in self.changes if change.verdict == "SLOWER")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return asdict(self)


def compare(now: BenchmarkReport, before: BenchmarkReport, *, any_machine: bool = False) -> Comparison:
    """Hold each line against the same line of an earlier report.

    The reference is SLOWER only where it takes more time and another line's ratio to it rose: where all lines became
    slower together, it is the machine.

    Raises:
        BenchmarkError: The reports are of different machines, or have no line in common.
    """
    check_machine(now.environment, before, any_machine=any_machine)
    olds, news = _lines(before), _lines(now)
    pairs = [(olds[line], news[line]) for line in news if line in olds]
    if not pairs:
        raise BenchmarkError(
            f"the baseline has no line in common with this run. It has: {'; '.join(map(_named, olds))}. This has: "
            f"{'; '.join(map(_named, news))}."
        )
    changes = [_change(old, before, new, now, len(pairs)) for old, new in pairs]
    risen = {change.batch_size for change in changes if change.by == "ratio" and change.verdict == "FASTER"}
    references = {id(each) for row in news.values() if (each := _reference(row, now)) is not None}
    changes = [
        replace(change, verdict="AMBIGUOUS")
        if id(new) in references and change.verdict == "SLOWER" and change.batch_size not in risen
        else change
        for change, (_, new) in zip(changes, pairs, strict=True)
    ]
    missing = [_named(line) for line in olds if line not in news]
    added = [_named(line) for line in news if line not in olds]
    notes = [f"only in the baseline: {line}" for line in missing] + [
        f"not in the baseline: {line}" for line in added
    ]
    old_versions, versions = before.environment.get("versions", {}), now.environment["versions"]
    notes += [
        f"{name} was {old_versions.get(name)}, is {versions.get(name)}"
        for name in sorted({*old_versions, *versions})
        if old_versions.get(name) != versions.get(name)
    ]
    needed = rounds_needed(len(pairs))
    undecided = tuple(
        f"{_named(new.identity)} has {len(old.round_p50_s)} rounds in the baseline and {len(new.round_p50_s)} here; "
        f"{needed} are needed"
        for old, new in pairs
        if min(len(old.round_p50_s), len(new.round_p50_s)) < needed
    )
    return Comparison(tuple(changes), tuple(notes), undecided)


def check_machine(environment: Any, before: BenchmarkReport, *, any_machine: bool) -> None:
    """Refuse a baseline of another machine; raises BenchmarkError."""
    differences = [
        f"{name} was {before.environment.get(name)}, is {environment[name]}"
        for name in _SAME_MACHINE
        if before.environment.get(name) != environment[name]
    ]
    if differences and not any_machine:
        raise BenchmarkError(
            f"the baseline is of another machine: {'; '.join(differences)}. Measure a baseline here, or compare "
            "all the same by --any-machine."
        )


def _named(line: Line) -> str:
    name, runtime, device, threads, batch_size, end_to_end = line
    whole = ", end to end" if end_to_end else ""
    return f"{name} on {runtime}, {device}, {threads} threads, batch {batch_size}{whole}"


def _lines(report: BenchmarkReport) -> dict[Line, Result]:
    rows = [row for row in report.results if not row.failure]
    if any(len(row.round_p50_s) < 2 for row in rows):
        raise BenchmarkError(
            "a report of an older cnndeploy, or one that was cut short: measure the baseline again"
        )
    lines = {row.identity: row for row in rows}
    if len(lines) < len(rows):
        raise BenchmarkError(
            "two lines of a report have the same file name and settings; give them other names"
        )
    return lines


def _change(
    old: Result, before: BenchmarkReport, new: Result, now: BenchmarkReport, comparisons: int
) -> Change:
    """By the ratio, where both were measured beside the same reference and are not that themselves."""
    then, today = _reference(old, before), _reference(new, now)
    kind: Literal["ratio", "time"] = "time"
    earlier, later = old.round_p50_s, new.round_p50_s
    if then is not None and today is not None and then.identity == today.identity and new is not today:
        kind = "ratio"
        earlier, later = (
            tuple(1 / ratio for ratio in round_ratios(*pair)) for pair in ((then, old), (today, new))
        )
    low, high = change_interval(earlier, later, comparisons)
    return Change(
        new.target,
        new.runtime,
        new.threads,
        new.batch_size,
        kind,
        statistics.median(earlier) / statistics.median(later),
        low,
        high,
        verdict((low, high), min(len(earlier), len(later)), comparisons),
    )


def _reference(row: Result, report: BenchmarkReport) -> Result | None:
    """What the row was measured against, where it was not alone."""
    beside = [each for each in report.results if each.batch_size == row.batch_size and not each.failure]
    return next((each for each in beside if each.verdict == "REFERENCE"), None) if len(beside) > 1 else None
