"""Tables of a benchmark, for a terminal and in Markdown, and of a tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from cnndeploy.benchmark.baseline import Comparison
from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display import rows
from cnndeploy.display.cells import NOTHING, duration, machine_line, settings_line
from cnndeploy.display.rows import FILE, LATENCY, RUNTIME, Column
from cnndeploy.display.tables import Cell, FittedTable, TableColumn, table_of
from cnndeploy.tuning.report import Row, TuneReport

_MOST_UNDECIDED = 3  # rows that tell nothing apart
_VARIANTS = {"float": "plain", "simplified": "simplified", "int8": "int8", "float16": "float16"}


def benchmark_table(report: BenchmarkReport) -> Group:
    """Show a row for each result; what it takes to start each candidate; the machine, and what to doubt."""
    report = rows.shortened(report)
    tables = [_of_rows(LATENCY, report.results)]
    candidates = rows.candidates(report)
    if any(row.cold_start or row.peak_memory_bytes for row in candidates):
        tables.append(_of_rows(rows.deployment_columns(candidates), candidates))
    failures = (Text(line, "red") for line in rows.failure_lines(report))
    warnings = (Text(f"Warning: {warning}", "yellow") for warning in report.warnings)
    ended = "Interrupted: the figures are of what was measured until then."
    notes = (*failures, *warnings, *[Text(ended, "red")] * report.interrupted)
    return Group(*tables, Text(machine_line(report.environment)), *notes)


def _of_rows(columns: Sequence[Column], results: Sequence[Result]) -> FittedTable:
    implied = all(RUNTIME.text(row) == rows.implied_runtime(row.artifact) for row in results)
    shown = (
        TableColumn(
            column.heading,
            "name" if column is FILE else "piece",
            right=column.key is not None,
            drop=1 if column is RUNTIME and implied else column.drop,
            setting=column.setting,
            phrase=column.phrase,
            topic=column.topic,
        )
        for column in columns
    )
    cells = ([column.text(result) for column in columns] for result in results)
    return table_of("", shown, cells, note=rows.UNSURE_NOTE)


def benchmark_markdown(report: BenchmarkReport) -> str:
    """Return the same tables in Markdown."""
    report = rows.shortened(report)
    notes = [machine_line(report.environment), *(f"Warning: {warning}" for warning in report.warnings)]
    if any(map(rows.is_unsure, report.results)):
        notes.insert(0, rows.UNSURE_NOTE)
    candidates = rows.candidates(report)
    deployment = _as_markdown(rows.deployment_columns(candidates), candidates)
    tables = (_as_markdown(LATENCY, report.results), deployment)
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
    implied = all(
        change.runtime == rows.implied_runtime(change.artifact) and not change.options
        for change in comparison.changes
    )
    columns = (
        TableColumn("file", "name"),
        TableColumn("runtime", drop=implied, setting=True),
        TableColumn("threads", right=True, setting=True, phrase=rows.threads_phrase),
        TableColumn("batch", right=True, setting=True, phrase="batch {}".format),
        TableColumn("speed-up since then", right=True, phrase=rows.times_as_fast),
        TableColumn("by", drop=2, phrase="by {}".format),
        TableColumn("verdict"),
    )
    cells = (
        (
            Path(change.artifact).name,
            ", ".join(filter(None, (change.runtime, settings_line(change.options)))),
            "auto" if change.threads is None else str(change.threads),
            str(change.batch_size),
            f"{change.ratio:.3f} ({change.ratio_low:.3f} to {change.ratio_high:.3f})",
            "ratio to the reference" if change.by == "ratio" else "time",
            Text(change.verdict, "bold red" if change.verdict == "SLOWER" else ""),
        )
        for change in comparison.changes
    )
    undecided = (Text(f"Not judged: {why}", "bold red") for why in comparison.undecided)
    table = table_of("Against the baseline", columns, cells)
    return Group(table, *undecided, *map(Text, comparison.notes))


def tuning_table(report: TuneReport, written: bool = True, words: Callable[[str], str] = str) -> Group:
    """Show a row for each contender, fastest first, with what became of it and why; many undecided ones are counted.

    ``written`` says whether the deployment's folder was. ``words`` says what a message says in the caller's own.
    """
    columns = (
        TableColumn("file", "text", least=15),
        TableColumn("runtime", "text", setting=True, least=12),
        TableColumn("threads", right=True, setting=True, phrase=rows.threads_phrase),
        TableColumn(f"speed-up over {report.reference_runtime}", right=True, phrase=rows.times_as_fast),
        TableColumn("a call", right=True, drop=1, phrase="{} a call".format),
        TableColumn("accuracy", right=True, setting=True, phrase="accuracy {}".format),
        TableColumn("outcome", "text", below=True, least=32),
    )
    title = f"Tuned for {report.objective}, batch {report.batch_size}"
    undecided = [row for row in report.rows if row.outcome == "undecided"]
    if len(undecided) <= _MOST_UNDECIDED:
        undecided = []
    table = table_of(
        title, columns, (_contender_cells(row, words) for row in report.rows if row not in undecided)
    )
    minutes = f"{report.seconds / 60:.1f} minutes"
    best = ": this is the best so far" * any(row.outcome == "chosen" for row in report.rows)
    why = "the folder could not be" if best else "nothing can be deployed"
    notes, end = list(map(words, report.notes)), f"Nothing was written after {minutes}: {why}."
    if best and written:
        end = f"Wrote {report.folder} after {minutes}."
    if undecided:
        said = "candidates are undecided: they ran too few rounds to tell whether they are slower."
        listed = f" {Path(report.folder, 'tuning.json')} lists them." if best and written else ""
        notes.append(f"{len(undecided)} {said}{listed}")
    if not report.complete:
        notes.append(f"The time was over{best}. --max-minutes gives it more.")
    machine = Text(machine_line(report.environment))
    return Group(table, machine, *(Text(note, "yellow") for note in notes), Text(end))


def variant_words(row: Row) -> str:
    """Say which file a contender is: ``PyTorch``, ``ONNX simplified``, ``TorchScript plain``."""
    if row.variant == "checkpoint":
        return "PyTorch"
    kind = {"executorch": "ExecuTorch", "torchscript": "TorchScript"}.get(row.runtime, "ONNX")
    return f"{kind} {_VARIANTS[row.variant]}" if row.variant in _VARIANTS else row.variant


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 1000 else f"{ratio:.3g}"


def _contender_cells(row: Row, words: Callable[[str], str]) -> tuple[Cell, ...]:
    interval = "" if row.ratio_interval is None else " ({} to {})".format(*map(_times, row.ratio_interval))
    reason = f"{row.outcome}: {words(row.reason)}" if row.reason else row.outcome
    return (
        variant_words(row),
        ", ".join(filter(None, (row.runtime, settings_line(row.options)))),
        str(row.threads),
        NOTHING if row.ratio is None else f"{_times(row.ratio)}{interval}",
        NOTHING if row.p50_s is None else duration(row.p50_s),
        "unknown" if row.accuracy is None else f"{row.accuracy:.4f}",
        Text(reason, "bold green" if row.outcome == "chosen" else ""),
    )
