"""The columns in which a benchmark is shown: on a terminal, in Markdown and on a page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result
from cnndeploy.display.cells import NOTHING, duration, settings_line, size
from cnndeploy.formats import FORMATS
from cnndeploy.words import counted

UNSURE = "?"
"""What follows a quantile whose interval is not known."""
UNSURE_NOTE = f"{UNSURE} not known to within a factor of two: more calls are needed"
_FORMATS_BY_SUFFIX = {".pt": "checkpoint", ".pte": "executorch"}  # other suffixes are their format's name


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and what stands below it; ``key`` is what a column of numbers is sorted by.

    On a terminal that is too narrow columns are left out in the order of ``drop``, those with 0 never. A ``setting``,
    which tells rows apart, is left out if it is the same in all rows. ``phrase`` is how a cell reads in a sentence,
    and ``topic`` what the table's title calls it.
    """

    heading: str
    text: Callable[[Result], str]
    key: Callable[[Result], float | None] | None = None
    drop: int = 0
    setting: bool = False
    phrase: Callable[[str], str] = str
    topic: str = ""


def _number(
    heading: str, value: Callable[[Result], Any], show: Callable[[Any], str], topic: str, *, drop: int = 0
) -> Column:
    def text(row: Result) -> str:
        return NOTHING if (number := value(row)) is None else show(number)

    return Column(heading, text, value, drop, phrase=_after(heading), topic=topic)


def _after(heading: str) -> Callable[[str], str]:
    """Return what puts the heading before a cell."""
    return lambda cell: f"{heading} {cell}"


def _quantile(name: str, drop: int) -> Column:
    def text(row: Result) -> str:
        if (seconds := getattr(row, f"{name}_s")) is None:
            return NOTHING
        return duration(seconds) + UNSURE * _is_unsure(row, name)

    return Column(name, text, attrgetter(f"{name}_s"), drop, phrase=_after(name), topic="latency")


def _cold(part: str, drop: int) -> Column:
    heading = part.removesuffix("_s").replace("_", " ")
    return _number(
        heading, lambda row: getattr(row.cold_start, part, None), duration, "cold start", drop=drop
    )


def _ratio(result: Result) -> str:
    if result.ratio is None:
        return NOTHING
    if result.verdict == "REFERENCE":
        return "1"
    text = f"{times(result.ratio)} ({times(result.ratio_low)} to {times(result.ratio_high)})"
    return f"[{text}]" if _is_unjudged(result) else text


def _verdict(result: Result) -> str:
    if result.failure:
        return "FAILED"
    return "BUSY" if _is_unjudged(result) else result.verdict or NOTHING


def _is_unjudged(result: Result) -> bool:
    """Return whether there is a ratio and no verdict, because the machine was busy."""
    return result.ratio is not None and result.verdict is None


def times(ratio: float | None) -> str:
    """Return three digits, and no fewer if it is nearly 1."""
    if ratio is None or ratio <= 0:
        return NOTHING
    decimals = 3 if 0.1 <= ratio < 2 else max(0, 2 - math.floor(math.log10(ratio)))
    return f"{ratio:,.{decimals}f}"


def times_as_fast(cell: str) -> str:
    """Return a ratio as a sentence says it, ``10.8 times as fast (10.7 to 10.9)``; empty for the reference's own."""
    ratio, *interval = cell.split(" ", 1)
    return " ".join((ratio, "times as fast", *interval)) if interval else ""


def _runtime(row: Result) -> str:
    runtime = row.runtime if row.device == "cpu" else f"{row.runtime} on {row.device}"
    return ", ".join(filter(None, (runtime, settings_line(row.options))))


def implied_runtime(name: str) -> str:
    """Return the runtime that a file of this name has by default; empty if its suffix does not tell."""
    suffix = Path(name).suffix
    kind = _FORMATS_BY_SUFFIX.get(suffix, suffix.removeprefix("."))
    return FORMATS.get(kind).default_runtime if kind in FORMATS.names() else ""


def _threads(result: Result) -> str:
    if result.auto_threads:
        return "auto" if result.threads is None else f"{result.threads} (auto)"
    return str(result.threads)


def threads_phrase(cell: str) -> str:
    """Return the number of threads as a sentence says it: ``1 thread``, ``2 threads (auto)``."""
    count, *auto = cell.split(" ", 1)
    return " ".join((counted(count, "thread"), *auto))


FILE = Column("file", lambda row: row.artifact)
RUNTIME = Column("runtime", _runtime, setting=True)
_WHO = (
    FILE,
    RUNTIME,
    Column("threads", _threads, lambda row: row.threads, setting=True, phrase=threads_phrase),
)
LATENCY = (
    *_WHO,
    Column("batch", lambda row: str(row.batch_size), lambda row: row.batch_size, 0, True, _after("batch")),
    Column("speed-up", _ratio, lambda row: row.ratio, phrase=times_as_fast),
    Column("verdict", _verdict),
    *(_quantile(name, drop) for name, drop in (("p50", 0), ("p90", 4), ("p99", 3))),
    _number("images/s", lambda row: row.images_per_s, "{:,.0f}".format, "throughput", drop=2),
)
_GPU_MEMORY = _number("GPU memory", lambda row: row.gpu_memory_bytes, size, "memory", drop=6)
_DEPLOYMENT = (
    *_WHO,
    *map(_cold, ("import_s", "open_s", "first_run_s", "second_run_s"), (5, 3, 7, 2)),
    _number("peak memory", lambda row: row.peak_memory_bytes, size, "memory", drop=6),
    _GPU_MEMORY,
    _number("file size", lambda row: row.file_bytes, size, "size", drop=4),
    _number("accuracy", lambda row: row.accuracy, "{:.4f}".format, "accuracy", drop=8),
)


def deployment_columns(rows: Sequence[Result]) -> list[Column]:
    """Return the columns on starting and size; that of GPU memory only if a row has it."""
    has_gpu_memory = any(row.gpu_memory_bytes for row in rows)
    return [column for column in _DEPLOYMENT if has_gpu_memory or column is not _GPU_MEMORY]


def is_unsure(row: Result) -> bool:
    """Return whether a quantile is shown that is not known to within a factor of two."""
    quantiles = (f"p{share}" for share in (50, 90, 99))
    return any(getattr(row, f"{name}_s") is not None and _is_unsure(row, name) for name in quantiles)


def _is_unsure(row: Result, quantile: str) -> bool:
    """Return whether the interval of a quantile is not known, or its ends differ by more than a factor of two."""
    interval = getattr(row, f"{quantile}_interval_s")
    return interval is None or interval[1] > 2 * interval[0]


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
    return [f"{row.artifact} on {_runtime(row)}: {row.failure}" for row in report.failures]


def candidates(report: BenchmarkReport) -> list[Result]:
    """Return the rows of the first batch size: one for each candidate."""
    first = report.results[0].batch_size if report.results else None
    return [row for row in report.results if row.batch_size == first]


def as_csv(report: BenchmarkReport) -> str:
    """Return every figure of every row; an interval's ends and the parts of a cold start have columns of their own."""
    rows = []
    for values in report.to_dict()["results"]:
        values["options"] = settings_line(values["options"])
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
