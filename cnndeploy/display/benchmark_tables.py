"""Tables of a benchmark, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.benchmark.baseline import Comparison
from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.cells import add_row
from cnndeploy.display.rows import (
    DEPLOYMENT,
    LATENCY,
    Column,
    as_markdown,
    candidates,
    failure_lines,
    shortened,
)
from cnndeploy.display.units import machine_line


def benchmark_table(report: BenchmarkReport) -> Group:
    """Show a row for each result; what it takes to start each candidate; the machine, and what to doubt."""
    report = shortened(report)
    tables = [_of_rows("Latency and throughput", LATENCY, report.results)]
    if any(row.cold_start or row.peak_memory_bytes for row in candidates(report)):
        tables.append(_of_rows("Cold start and size", DEPLOYMENT, candidates(report)))
    failures = (Text(line, "red") for line in failure_lines(report))
    warnings = (Text(f"Warning: {warning}", "yellow") for warning in report.warnings)
    ended = [Text("Interrupted: the figures are of what was measured until then.", "red")]
    return Group(
        *tables,
        Text(machine_line(report.environment)),
        *failures,
        *warnings,
        *(ended if report.interrupted else []),
    )


def _of_rows(title: str, columns: Sequence[Column], results: Sequence[Result]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.key else "left", overflow="fold")
    for result in results:
        add_row(table, *(column.text(result) for column in columns))
    return table


def benchmark_markdown(report: BenchmarkReport) -> str:
    """Return the same tables in Markdown."""
    report = shortened(report)
    parts = [as_markdown(LATENCY, report.results), as_markdown(DEPLOYMENT, candidates(report))]
    notes = [machine_line(report.environment), *(f"Warning: {warning}" for warning in report.warnings)]
    return "\n".join([*parts, *(f"{note}\n" for note in (*notes, *failure_lines(report)))])


def comparison_table(comparison: Comparison) -> Group:
    """Show a row for each line that is in both reports."""
    table = Table(title="Against the baseline", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("runtime")
    for heading in ("threads", "batch", "times as fast as then"):
        table.add_column(heading, justify="right")
    table.add_column("by")
    table.add_column("verdict")
    for change in comparison.changes:
        add_row(
            table,
            Path(change.artifact).name,
            change.runtime,
            str(change.threads),
            str(change.batch_size),
            f"{change.ratio:.3f} ({change.ratio_low:.3f} to {change.ratio_high:.3f})",
            "ratio to the reference" if change.by == "ratio" else "time",
            Text(change.verdict, "bold red" if change.verdict == "SLOWER" else ""),
        )
    undecided = (Text(f"Not judged: {why}", "bold red") for why in comparison.undecided)
    return Group(table, *undecided, *(Text(note) for note in comparison.notes))
