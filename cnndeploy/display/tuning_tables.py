"""The table of ``cnndeploy tune``: what became of every candidate."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.display.cells import add_row
from cnndeploy.display.units import duration, machine_line
from cnndeploy.tuning.report import TuneReport


def tuning_table(report: TuneReport) -> Group:
    """A row for each contender, fastest first, with what became of it and why."""
    table = Table(title=f"Tuned for {report.objective}, batch {report.batch_size}", title_justify="left")
    for heading in ("file", "runtime"):
        table.add_column(heading)
    for heading in ("threads", "times as fast as eager", "a call", "accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("outcome", overflow="fold", min_width=40)
    for row in report.rows:
        low, high = row.ratio_interval or (0, 0)
        add_row(
            table,
            row.variant,
            ", ".join([row.runtime, *(f"{name} {value}" for name, value in row.options.items())]),
            str(row.threads),
            "-" if row.ratio is None else f"{row.ratio:.3g} ({low:.3g} to {high:.3g})",
            "-" if row.p50_s is None else duration(row.p50_s),
            "unknown" if row.accuracy is None else f"{row.accuracy:.4f}",
            Text(f"{row.outcome}: {row.reason}", "bold green" if row.outcome == "chosen" else ""),
        )
    notes = [Text(note, "yellow") for note in report.notes]
    if not report.complete:
        notes.append(
            Text("The time was over: this is the best so far. --max-minutes gives it more.", "yellow")
        )
    wrote = f"Wrote {report.folder} in {report.seconds / 60:.1f} minutes. Open it with: "
    opened = f"cnndeploy.load({report.folder!r})"
    return Group(table, Text(machine_line(report.environment)), *notes, Text(wrote + opened))
