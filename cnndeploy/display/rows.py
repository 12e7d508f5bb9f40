"""The columns in which a benchmark is shown: on a terminal, in Markdown and on a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result
from cnndeploy.display.units import duration, size


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and what stands below it; ``key`` is what a column of numbers is sorted by."""

    heading: str
    text: Callable[[Result], str]
    key: Callable[[Result], float | None] | None = None


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _quantile(name: str) -> Column:
    def seconds(result: Result) -> float | None:
        return getattr(result, f"{name}_s")  # type: ignore[no-any-return]

    def text(result: Result) -> str:
        missing = (result.more_calls_needed or {}).get(name)
        return f"+{missing:,} calls" if missing and seconds(result) is None else _seconds(seconds(result))

    return Column(name, text, seconds)


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


def _bytes(count: int | None) -> str:
    return "-" if count is None else size(count)


def _cold(part: str) -> Column:
    def seconds(result: Result) -> float | None:
        return None if result.cold_start is None else getattr(result.cold_start, part)

    heading = part.removesuffix("_s").replace("_", " ")
    return Column(heading, lambda result: _seconds(seconds(result)), seconds)


_WHO = (
    Column("file", lambda r: r.artifact),
    Column("runtime", lambda r: r.runtime if r.device == "cpu" else f"{r.runtime} on {r.device}"),
    Column("threads", _threads, lambda r: r.threads),
)
LATENCY = (
    *_WHO,
    Column("batch", lambda r: str(r.batch_size), lambda r: r.batch_size),
    Column("times as fast", _ratio, lambda r: r.ratio),
    Column("verdict", lambda r: "FAILED" if r.failure else r.verdict or "-"),
    *map(_quantile, ("p50", "p90", "p99")),
    Column(
        "images/s", lambda r: f"{r.images_per_s:,.0f}" if r.images_per_s else "-", lambda r: r.images_per_s
    ),
)
DEPLOYMENT = (
    *_WHO,
    *map(_cold, ("import_s", "open_s", "first_run_s", "second_run_s")),
    Column("peak memory", lambda r: _bytes(r.peak_memory_bytes), lambda r: r.peak_memory_bytes),
    Column("file size", lambda r: _bytes(r.file_bytes), lambda r: r.file_bytes),
    Column("accuracy", lambda r: "-" if r.accuracy is None else f"{r.accuracy:.4f}", lambda r: r.accuracy),
)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Map each path to its file name, or to itself if two files have the same name."""
    ambiguous = len({Path(path).name for path in paths}) < len(set(paths))
    return {path: path if ambiguous else Path(path).name for path in paths}


def shortened(report: BenchmarkReport) -> BenchmarkReport:
    """Return the report with its files' names as they are shown."""
    names = short_names([row.artifact for row in report.results])
    shown = {path: "".join(c if c.isprintable() else "?" for c in name) for path, name in names.items()}
    return replace(
        report, results=tuple(replace(row, artifact=shown[row.artifact]) for row in report.results)
    )


def failure_lines(report: BenchmarkReport) -> list[str]:
    """Return what failed, and why."""
    return [f"{row.artifact} on {row.runtime}: {row.failure}" for row in report.failures]


def candidates(report: BenchmarkReport) -> list[Result]:
    """Return the rows of the first batch size: one for each candidate."""
    first = report.results[0].batch_size if report.results else None
    return [row for row in report.results if row.batch_size == first]


def as_markdown(columns: Sequence[Column], rows: Sequence[Result]) -> str:
    """Return a table with numbers flush right."""
    lines = [
        [column.heading for column in columns],
        ["---:" if column.key else "---" for column in columns],
        *([column.text(row).replace("|", "\\|") for column in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
