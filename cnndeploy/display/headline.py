"""The headline of a page: which file is how much faster, and what that costs, in one sentence."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.cells import duration
from cnndeploy.display.names import candidate_names
from cnndeploy.display.rows import candidates, shortened, times

_EAGER = "eager PyTorch"
_WIDE = 2.0  # an interval whose ends differ by more than this factor


def headline(report: BenchmarkReport, equivalent: Collection[str] | None = None) -> str:
    """Return the answer for the first batch size; ``equivalent`` are the names of files that are, None if not known."""
    rows = candidates(shortened(report))
    named = [
        pair for pair in zip(candidate_names(rows, brief=True), rows, strict=True) if not pair[1].failure
    ]
    if not named:
        return "Nothing could be measured"
    if report.was_busy:
        return (
            "The machine was busy with other programs, so no speed is claimed: measure again when it is idle"
        )
    (first, reference), *others = named
    size = f"batch {reference.batch_size}"
    if not others:
        return f"{first} takes {duration(reference.p50_s or 0.0)} a call ({size})"
    if reference.runtime == "eager" and len({Path(row.artifact).stem for _, row in named}) == 1:
        first = _EAGER
    admitted = [pair for pair in others if equivalent is None or pair[1].artifact in equivalent]
    faster = [pair for pair in admitted if pair[1].verdict == "FASTER"]
    if faster:
        return _fastest(faster, first, reference, also="" if equivalent is None else " and equivalent")
    if all(row.verdict == "SLOWER" for _, row in others):
        return f"{first.replace('eager', 'Eager', 1) if first == _EAGER else first} is the fastest ({size})"
    known = "known to be " if any(row.verdict == "AMBIGUOUS" for _, row in admitted) else ""
    what = "file" if equivalent is None else "equivalent file"
    return f"No {what} is {known}faster than {first} ({size})"


def _fastest(faster: list[tuple[str, Result]], first: str, reference: Result, also: str) -> str:
    name, best = max(faster, key=lambda pair: pair[1].ratio or 0.0)
    low, high = best.ratio_low or 0.0, best.ratio_high or 0.0
    # on a busy machine the middle of a wide interval is not a figure to quote
    speed = times(best.ratio) if high <= _WIDE * low else f"at least {times(low)}"
    text = f"{name} is {speed} times as fast as {first} (batch {best.batch_size}){also}"
    rivals = [
        other for other, row in faster if row is not best and (row.ratio_high or 0) >= (best.ratio_low or 0)
    ]
    if rivals:
        text += f", and no winner is known between it and {' and '.join(rivals)}"
    return text + _accuracy(best.accuracy, reference.accuracy)


def _accuracy(accuracy: float | None, before: float | None) -> str:
    """Say how accurate the file is, and what that is less, or more, than before."""
    if accuracy is None:
        return ""
    points = 0.0 if before is None else round(100 * (accuracy - before), 2)
    change = f", {abs(points):.2f} points {'more' if points > 0 else 'less'}" if points else ""
    return f"; accuracy {accuracy:.2%}{change}"
