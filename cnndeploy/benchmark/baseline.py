"""Baseline: whether a line of a report got slower since an earlier one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from cnndeploy.benchmark.intervals import Verdict, change_interval, rounds_needed, verdict
from cnndeploy.benchmark.report import BenchmarkReport, Result, round_ratios, with_old_keys
from cnndeploy.errors import BenchmarkError
from cnndeploy.serial import jsonable

Line = tuple[Any, ...]
_SAME_MACHINE = ("cpu", "usable_cpus", "gpus")


@dataclass(frozen=True, slots=True)
class Change:
    """A line in both reports; ``ratio`` is how many times as fast it is now, with a 95% interval for all lines.

    ``by`` says of what: of the ``ratio`` to the reference, which a machine that is slower as a whole does not change;
    or of the ``time``, of the reference itself and if it was not the same in both.
    """

    artifact: str
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
        """JSON-ready, field by field, with the old names of keys beside the new ones."""
        values = jsonable(self)
        return {**values, "changes": [with_old_keys(change) for change in values["changes"]]}


@dataclass(frozen=True, slots=True)
class Pair:
    """The same line in both reports, and what it was measured against in each, None if it was alone."""

    old: Result
    new: Result
    old_reference: Result | None
    new_reference: Result | None

    @property
    def is_reference(self) -> bool:
        """Whether the other lines are measured against this one now."""
        return self.new_reference is self.new

    def change(self, comparisons: int) -> Change:
        """Compare by the ratio if both were measured against the same reference and are not that themselves."""
        by: Literal["ratio", "time"] = "time"
        earlier, later = self.old.round_p50_s, self.new.round_p50_s
        references = (self.old_reference, self.new_reference)
        if references[0] and references[1] and not self.is_reference:
            if references[0].identity == references[1].identity:
                by = "ratio"
                earlier = tuple(1 / ratio for ratio in round_ratios(references[0], self.old))
                later = tuple(1 / ratio for ratio in round_ratios(references[1], self.new))
        low, high = change_interval(earlier, later, comparisons)
        return Change(
            self.new.artifact,
            self.new.runtime,
            self.new.threads,
            self.new.batch_size,
            by,
            statistics.median(earlier) / statistics.median(later),
            low,
            high,
            verdict((low, high), min(len(earlier), len(later)), comparisons),
        )


def compare(now: BenchmarkReport, before: BenchmarkReport, *, any_machine: bool = False) -> Comparison:
    """Compare each line with the same line of an earlier report.

    The reference is SLOWER only if it takes more time and another line's ratio to it rose: if all lines became
    slower together, it is the machine.

    Raises:
        BenchmarkError: The reports are of different machines, or have no line in common.
    """
    check_machine(now.environment, before, any_machine=any_machine)
    olds, news = _lines(before), _lines(now)
    pairs = [
        Pair(olds[line], row, _reference(olds[line], before), _reference(row, now))
        for line, row in news.items()
        if line in olds
    ]
    if not pairs:
        raise BenchmarkError(
            f"the baseline has no line in common with this run. It has: {'; '.join(map(_named, olds))}. This has: "
            f"{'; '.join(map(_named, news))}."
        )
    missing = (f"only in the baseline: {_named(line)}" for line in olds if line not in news)
    added = (f"not in the baseline: {_named(line)}" for line in news if line not in olds)
    notes = (*missing, *added, *_other_versions(now, before))
    return Comparison(_changes(pairs), notes, tuple(_undecided(pairs)))


def check_machine(environment: Any, before: BenchmarkReport, *, any_machine: bool) -> None:
    """Refuse a baseline of another machine; raise BenchmarkError."""
    differences = [
        f"{name} was {before.environment.get(name)}, is {environment[name]}"
        for name in _SAME_MACHINE
        if before.environment.get(name) != environment[name]
    ]
    if differences and not any_machine:
        raise BenchmarkError(
            f"the baseline is of another machine: {'; '.join(differences)}. Measure a baseline here, or allow any "
            "machine."
        )


def _changes(pairs: list[Pair]) -> tuple[Change, ...]:
    changes = [pair.change(len(pairs)) for pair in pairs]
    risen = {change.batch_size for change in changes if change.by == "ratio" and change.verdict == "FASTER"}
    return tuple(
        replace(change, verdict="AMBIGUOUS")
        if pair.is_reference and change.verdict == "SLOWER" and change.batch_size not in risen
        else change
        for pair, change in zip(pairs, changes, strict=True)
    )


def _undecided(pairs: list[Pair]) -> Iterator[str]:
    needed = rounds_needed(len(pairs))
    for pair in pairs:
        rounds = (len(pair.old.round_p50_s), len(pair.new.round_p50_s))
        if min(rounds) < needed:
            name = _named(pair.new.identity)
            yield f"{name} has {rounds[0]} rounds in the baseline and {rounds[1]} here; {needed} are needed"


def _other_versions(now: BenchmarkReport, before: BenchmarkReport) -> Iterator[str]:
    olds, news = before.environment.get("versions", {}), now.environment["versions"]
    for name in sorted({*olds, *news}):
        if olds.get(name) != news.get(name):
            yield f"{name} was {olds.get(name)}, is {news.get(name)}"


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


def _reference(row: Result, report: BenchmarkReport) -> Result | None:
    """Return what the row was measured against, None if it was alone."""
    group = [other for other in report.results if other.batch_size == row.batch_size and not other.failure]
    return next((other for other in group if other.verdict == "REFERENCE"), None) if len(group) > 1 else None
