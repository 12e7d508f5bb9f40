"""Tables of a benchmark, for a terminal and in Markdown, and of a tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.benchmark.baseline import Comparison
from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display import rows
from cnndeploy.display.cells import duration, machine_line, pairs, table_of
from cnndeploy.display.rows import DEPLOYMENT, LATENCY, Column
from cnndeploy.tuning.report import Row, TuneReport


def benchmark_table(report: BenchmarkReport) -> Group:
    """Show a row for each result; what it takes to start each candidate; the machine, and what to doubt."""
    report = rows.shortened(report)
    tables = [_of_rows("Latency and throughput", LATENCY, report.results)]
    candidates = rows.candidates(report)
    if any(row.cold_start or row.peak_memory_bytes for row in candidates):
        tables.append(_of_rows("Cold start and size", DEPLOYMENT, candidates))
    failures = (Text(line, "red") for line in rows.failure_lines(report))
    warnings = (Text(f"Warning: {warning}", "yellow") for warning in report.warnings)
    ended = "Interrupted: the figures are of what was measured until then."
    notes = (*failures, *warnings, *[Text(ended, "red")] * report.interrupted)
    return Group(*tables, Text(machine_line(report.environment)), *notes)


def _of_rows(title: str, columns: Sequence[Column], results: Sequence[Result]) -> Table:
    return table_of(
        title,
        [column.heading for column in columns],
        ([column.text(result) for column in columns] for result in results),
        numbers=[at for at, column in enumerate(columns) if column.key],
        folds=range(len(columns)),
    )


def benchmark_markdown(report: BenchmarkReport) -> str:
    """Return the same tables in Markdown."""
    report = rows.shortened(report)
    notes = [machine_line(report.environment), *(f"Warning: {warning}" for warning in report.warnings)]
    tables = (_as_markdown(LATENCY, report.results), _as_markdown(DEPLOYMENT, rows.candidates(report)))
    return "\n".join([*tables, *(f"{note}\n" for note in (*notes, *rows.failure_lines(report)))])


def _as_markdown(columns: Sequence[Column], results: Sequence[Result]) -> str:
    lines = [
        [column.heading for column in columns],
        ["---:" if column.key else "---" for column in columns],
        *([column.text(result).replace("|", "\\|") for column in columns] for result in results),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comparison_table(comparison: Comparison) -> Group:
    """Show a row for each line that is in both reports."""
    cells = (
        (
            Path(change.artifact).name,
            change.runtime,
            str(change.threads),
            str(change.batch_size),
            f"{change.ratio:.3f} ({change.ratio_low:.3f} to {change.ratio_high:.3f})",
            "ratio to the reference" if change.by == "ratio" else "time",
            Text(change.verdict, "bold red" if change.verdict == "SLOWER" else ""),
        )
        for change in comparison.changes
    )
    headings = ("file", "runtime", "threads", "batch", "times as fast as then", "by", "verdict")
    table = table_of("Against the baseline", headings, cells, numbers=(2, 3, 4), folds=(0,))
    undecided = (Text(f"Not judged: {why}", "bold red") for why in comparison.undecided)
    return Group(table, *undecided, *map(Text, comparison.notes))


def tuning_table(report: TuneReport) -> Group:
    """A row for each contender, fastest first, with what became of it and why."""
    title = f"{report.objective}, batch {report.batch_size}"
    title = f"Tuned for {title}" if report.timed else f"Not tuned for {title}: nothing was timed"
    headings = ("file", "runtime", "threads", "times as fast as eager", "a call", "accuracy", "outcome")
    table = table_of(title, headings, map(_contender_cells, report.rows), numbers=range(2, 6), folds=(6,))
    table.columns[-1].min_width = 40
    minutes = f"in {report.seconds / 60:.1f} minutes"
    why = "nothing can be deployed" if report.timed else "nothing was timed"
    notes, end = list(report.notes), f"Nothing was written {minutes}: {why}."
    if best := ": this is the best so far" * any(row.outcome == "chosen" for row in report.rows):
        end = f"Wrote {report.folder} {minutes}. Open it with: cnndeploy.load({report.folder!r})"
    if not report.complete:
        notes.append(f"The time was over{best}. --max-minutes gives it more.")
    machine = Text(machine_line(report.environment))
    return Group(table, machine, *(Text(note, "yellow") for note in notes), Text(end))


def _contender_cells(row: Row) -> tuple[str | Text, ...]:
    interval = "" if row.ratio_interval is None else " ({:.3g} to {:.3g})".format(*row.ratio_interval)
    return (
        row.variant,
        f"{row.runtime}, {pairs(row.options)}" if row.options else row.runtime,
        str(row.threads),
        "-" if row.ratio is None else f"{row.ratio:.3g}{interval}",
        "-" if row.p50_s is None else duration(row.p50_s),
        "unknown" if row.accuracy is None else f"{row.accuracy:.4f}",
        Text(f"{row.outcome}: {row.reason}", "bold green" if row.outcome == "chosen" else ""),
    )
