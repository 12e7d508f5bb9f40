"""Baseline: whether a line of a report got slower since an earlier one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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

    ``by`` says of what: of the ``ratio`` to another line that both reports have, which a machine that is slower as a
    whole does not change; or of the ``time``, of that other line itself and of a line that is alone at its batch size.
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
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed, and what could not be compared, in words.

    ``undecided`` says what cannot be judged: lines with too few rounds, or every line if the machine was busy.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def slower(self) -> tuple[Change, ...]:
        """The regressions."""
        return tuple(change for change in self.changes if change.verdict == "SLOWER")

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, field by field, with the old names of keys beside the new ones."""
        values = jsonable(self)
        return {**values, "changes": [with_old_keys(change) for change in values["changes"]]}


def compare(now: BenchmarkReport, before: BenchmarkReport, *, any_machine: bool = False) -> Comparison:
    """Compare each line with the same line of an earlier report.

    A time alone cannot tell a slower file from a slower machine. So a line is compared by its ratio to another line
    that both reports have. That other one, the reference, is SLOWER only if it takes more time and another line's ratio
    to it rose. A line that is alone at its batch size is never called SLOWER or FASTER, and a note says so. Nothing is
    judged if other programs kept the machine busy during either report.

    Raise BenchmarkError if the reports are of different machines, or have no line in common.
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
    references = _references(pairs)
    alone = (_alone(new.identity) for _, new in pairs if new.batch_size not in references)
    notes = (*missing, *added, *alone, *_differences(*versions, sorted({*versions[0], *versions[1]})))
    changes, busy = _changes(pairs, references), tuple(_busy(now, before))
    if busy:
        changes = tuple(replace(change, verdict="AMBIGUOUS") for change in changes)
    return Comparison(changes, notes, (*busy, *_undecided(pairs)))


def check_machine(environment: Any, before: BenchmarkReport, *, any_machine: bool) -> None:
    """Refuse a baseline of another machine; raise BenchmarkError."""
    differences = "; ".join(_differences(before.environment, environment, ("cpu", "usable_cpus", "gpus")))
    if differences and not any_machine:
        advice = "Measure a baseline here, or allow any machine."
        raise BenchmarkError(f"the baseline is of another machine: {differences}. {advice}")


def _references(pairs: list[Pair]) -> dict[int, Pair]:
    """Return, for each batch size at which there are several pairs, the one that the others are compared to.

    It is the reference of the later report if the earlier one has that line too.
    """
    sizes = Counter(new.batch_size for _, new in pairs)
    several = [(old, new) for old, new in pairs if sizes[new.batch_size] > 1]
    by_choice = sorted(several, key=lambda pair: pair[1].verdict != "REFERENCE")
    return {new.batch_size: (old, new) for old, new in reversed(by_choice)}


def _changes(pairs: list[Pair], references: Mapping[int, Pair]) -> tuple[Change, ...]:
    changes = [_change(pair, references.get(pair[1].batch_size), len(pairs)) for pair in pairs]
    risen = {change.batch_size for change in changes if change.by == "ratio" and change.verdict == "FASTER"}
    return tuple(
        change if _may_be_said(change, references, risen) else replace(change, verdict="AMBIGUOUS")
        for change in changes
    )


def _may_be_said(change: Change, references: Mapping[int, Pair], risen: set[int]) -> bool:
    """Return whether the file explains the verdict, not the machine; at ``risen`` batch sizes a ratio rose."""
    if change.by == "ratio" or change.verdict not in ("SLOWER", "FASTER"):
        return True
    if change.batch_size not in references:
        return False
    return change.verdict == "FASTER" or change.batch_size in risen


def _change(pair: Pair, reference: Pair | None, comparisons: int) -> Change:
    """Compare by the ratio to the reference, if there is one and this is another."""
    by: Literal["ratio", "time"] = "time"
    old, new = pair
    earlier, later = old.round_p50_s, new.round_p50_s
    if reference is not None and new is not reference[1]:
        by = "ratio"
        earlier, later = (
            tuple(1 / ratio for ratio in round_ratios(of, row))
            for of, row in zip(reference, pair, strict=True)
        )
    low, high = change_interval(earlier, later, comparisons)
    judged = verdict((low, high), min(len(earlier), len(later)), comparisons)
    ratio = statistics.median(earlier) / statistics.median(later)
    how = (new.artifact, new.runtime, new.threads, new.batch_size)
    return Change(*how, by, ratio, low, high, judged, new.options)


def _alone(line: Line) -> str:
    return (
        f"not judged: {_named(line)}: measured alone, a slower file cannot be told from a slower machine. Measure it "
        "beside its checkpoint, for the baseline too."
    )


def _busy(now: BenchmarkReport, before: BenchmarkReport) -> Iterator[str]:
    for report, when in ((before, "the baseline was measured"), (now, "this was measured")):
        if report.was_busy:
            busy = f"other programs kept {report.environment['busy_cpus']:.1f} CPUs busy when {when}"
            yield f"{busy}; measure it again on an idle machine"


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
    name, runtime, device, threads, batch_size, end_to_end, options = line
    how = "".join(f", {option} {value}" for option, value in options)
    whole = ", end to end" if end_to_end else ""
    return f"{name} on {runtime}, {device}, {threads} threads{how}, batch {batch_size}{whole}"


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
