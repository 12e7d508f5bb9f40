"""The columns in which a benchmark is shown: on a terminal, in Markdown and on a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result
from cnndeploy.display.cells import duration, size


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and what stands below it; ``key`` is what a column of numbers is sorted by."""

    heading: str
    text: Callable[[Result], str]
    key: Callable[[Result], float | None] | None = None


def _number(heading: str, value: Callable[[Result], Any], show: Callable[[Any], str]) -> Column:
    return Column(heading, lambda row: "-" if (number := value(row)) is None else show(number), value)


def _quantile(name: str) -> Column:
    def text(result: Result) -> str:
        seconds, missing = getattr(result, f"{name}_s"), (result.more_calls_needed or {}).get(name)
        if seconds is None:
            return f"+{missing:,} calls" if missing else "-"
        return duration(seconds)

    return Column(name, text, attrgetter(f"{name}_s"))


def _cold(part: str) -> Column:
    heading = part.removesuffix("_s").replace("_", " ")
    return _number(heading, lambda row: getattr(row.cold_start, part, None), duration)


def _ratio(result: Result) -> str:
    if result.ratio is None:
        return "-"
    if result.verdict == "REFERENCE":
        return "1"
    return f"{_times(result.ratio)} ({_times(result.ratio_low)} to {_times(result.ratio_high)})"


def _times(ratio: float | None) -> str:
    """Return three digits, and no fewer if it is nearly 1."""
    if ratio is None or ratio <= 0:
        return "-"
    decimals = 3 if 0.1 <= ratio < 2 else max(0, 2 - math.floor(math.log10(ratio)))
    return f"{ratio:,.{decimals}f}"


def _threads(result: Result) -> str:
    if result.auto_threads:
        return "auto" if result.threads is None else f"{result.threads} (auto)"
    return str(result.threads)


_WHO = (
    Column("file", lambda row: row.artifact),
    Column("runtime", lambda row: row.runtime if row.device == "cpu" else f"{row.runtime} on {row.device}"),
    Column("threads", _threads, lambda row: row.threads),
)
LATENCY = (
    *_WHO,
    _number("batch", lambda row: row.batch_size, str),
    Column("times as fast", _ratio, lambda row: row.ratio),
    Column("verdict", lambda row: "FAILED" if row.failure else row.verdict or "-"),
    *map(_quantile, ("p50", "p90", "p99")),
    _number("images/s", lambda row: row.images_per_s, "{:,.0f}".format),
)
DEPLOYMENT = (
    *_WHO,
    *map(_cold, ("import_s", "open_s", "first_run_s", "second_run_s")),
    _number("peak memory", lambda row: row.peak_memory_bytes, size),
    _number("file size", lambda row: row.file_bytes, size),
    _number("accuracy", lambda row: row.accuracy, "{:.4f}".format),
)


def shortened(report: BenchmarkReport) -> BenchmarkReport:
    """Return the report with its files' names as they are shown: without folders if they differ all the same."""
    paths = {row.artifact for row in report.results}
    ambiguous = len({Path(path).name for path in paths}) < len(paths)

    def shown(path: str) -> str:
        name = path if ambiguous else Path(path).name
        return "".join(letter if letter.isprintable() else "?" for letter in name)

    rows = tuple(replace(row, artifact=shown(row.artifact)) for row in report.results)
    return replace(report, results=rows)


def failure_lines(report: BenchmarkReport) -> list[str]:
    """Return what failed, and why."""
    return [f"{row.artifact} on {row.runtime}: {row.failure}" for row in report.failures]


def candidates(report: BenchmarkReport) -> list[Result]:
    """Return the rows of the first batch size: one for each candidate."""
    first = report.results[0].batch_size if report.results else None
    return [row for row in report.results if row.batch_size == first]


def as_csv(report: BenchmarkReport) -> str:
    """Return every figure of every row; an interval's ends and the parts of a cold start have columns of their own."""
    rows = []
    for values in report.to_dict()["results"]:
        for name in ("quantiles_s", "round_p50_s", "settings", "more_calls_needed"):
            del values[name]
        for name in ("p50", "p90", "p99"):
            low, high = values.pop(f"{name}_interval_s") or (None, None)
            values |= {f"{name}_low_s": low, f"{name}_high_s": high}
        start = values.pop("cold_start") or dict.fromkeys(ColdStart.__dataclass_fields__)
        rows.append(values | {f"cold_{name}": value for name, value in start.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
