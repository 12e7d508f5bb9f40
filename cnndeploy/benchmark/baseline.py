"""Baseline: whether a line of a report got slower since an earlier one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cnndeploy.benchmark.intervals import Verdict, change_interval, rounds_needed, verdict
from cnndeploy.benchmark.report import BenchmarkReport, Result, round_ratios, with_old_keys
from cnndeploy.errors import BenchmarkError
from cnndeploy.serial import jsonable

Line = tuple[Any, ...]
Pair = tuple[Result, Result]
"""The same line in the earlier report and in the later one."""


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


def compare(now: BenchmarkReport, before: BenchmarkReport, *, any_machine: bool = False) -> Comparison:
    """Compare each line with the same line of an earlier report.

    The reference is SLOWER only if it takes more time and another line's ratio to it rose: if all lines became
    slower together, it is the machine. Raise BenchmarkError if the reports are of different machines, or have no line
    in common.
    """
    check_machine(now.environment, before, any_machine=any_machine)
    olds, news = _lines(before), _lines(now)
    pairs = [(olds[line], row) for line, row in news.items() if line in olds]
    if not pairs:
        raise BenchmarkError(
            f"the baseline has no line in common with this run. It has: {'; '.join(map(_named, olds))}. "
            f"This has: {'; '.join(map(_named, news))}."
        )
    missing = (f"only in the baseline: {_named(line)}" for line in olds if line not in news)
    added = (f"not in the baseline: {_named(line)}" for line in news if line not in olds)
    versions = before.environment.get("versions", {}), now.environment["versions"]
    notes = (*missing, *added, *_differences(*versions, sorted({*versions[0], *versions[1]})))
    return Comparison(_changes(pairs, _references(now), _references(before)), notes, tuple(_undecided(pairs)))


def check_machine(environment: Any, before: BenchmarkReport, *, any_machine: bool) -> None:
    """Refuse a baseline of another machine; raise BenchmarkError."""
    differences = "; ".join(_differences(before.environment, environment, ("cpu", "usable_cpus", "gpus")))
    if differences and not any_machine:
        advice = "Measure a baseline here, or allow any machine."
        raise BenchmarkError(f"the baseline is of another machine: {differences}. {advice}")


def _changes(pairs: list[Pair], now: dict[int, Result], before: dict[int, Result]) -> tuple[Change, ...]:
    changes = [
        _change(old, new, before.get(old.batch_size), now.get(new.batch_size), len(pairs))
        for old, new in pairs
    ]
    risen = {change.batch_size for change in changes if change.by == "ratio" and change.verdict == "FASTER"}
    return tuple(
        replace(change, verdict="AMBIGUOUS")
        if change.verdict == "SLOWER" and new is now.get(new.batch_size) and new.batch_size not in risen
        else change
        for (_, new), change in zip(pairs, changes, strict=True)
    )


def _change(old: Result, new: Result, then: Result | None, today: Result | None, comparisons: int) -> Change:
    """Compare by the ratio if both were measured against the same reference and are not that themselves."""
    by: Literal["ratio", "time"] = "time"
    earlier, later = old.round_p50_s, new.round_p50_s
    if then and today and then.identity == today.identity and new is not today:
        by = "ratio"
        earlier = tuple(1 / ratio for ratio in round_ratios(then, old))
        later = tuple(1 / ratio for ratio in round_ratios(today, new))
    low, high = change_interval(earlier, later, comparisons)
    judged = verdict((low, high), min(len(earlier), len(later)), comparisons)
    ratio = statistics.median(earlier) / statistics.median(later)
    return Change(new.artifact, new.runtime, new.threads, new.batch_size, by, ratio, low, high, judged)


def _undecided(pairs: list[Pair]) -> Iterator[str]:
    needed = rounds_needed(len(pairs))
    for old, new in pairs:
        rounds = (len(old.round_p50_s), len(new.round_p50_s))
        if min(rounds) < needed:
            name = _named(new.identity)
            yield f"{name} has {rounds[0]} rounds in the baseline and {rounds[1]} here; {needed} are needed"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    values = ((name, old.get(name), new.get(name)) for name in names)
    return (f"{name} was {was}, is {now}" for name, was, now in values if was != now)


def _named(line: Line) -> str:
    name, runtime, device, threads, batch_size, end_to_end = line
    whole = ", end to end" if end_to_end else ""
    return f"{name} on {runtime}, {device}, {threads} threads, batch {batch_size}{whole}"


def _lines(report: BenchmarkReport) -> dict[Line, Result]:
    rows = [row for row in report.results if not row.failure]
    lines = {row.identity: row for row in rows}
    if any(len(row.round_p50_s) < 2 for row in rows):
        older = "a report of an older cnndeploy, or one that was cut short"
        raise BenchmarkError(f"{older}: measure the baseline again")
    if len(lines) < len(rows):
        alike = "two lines of a report have the same file name and settings"
        raise BenchmarkError(f"{alike}; give them other names")
    return lines


def _references(report: BenchmarkReport) -> dict[int, Result]:
    """Return what the rows of each batch size were measured against; none if a row was alone."""
    rows = [row for row in report.results if not row.failure]
    sizes = Counter(row.batch_size for row in rows)
    references = [row for row in rows if row.verdict == "REFERENCE" and sizes[row.batch_size] > 1]
    return {row.batch_size: row for row in reversed(references)}
