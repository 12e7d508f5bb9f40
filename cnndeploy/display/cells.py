"""What several tables and pages share: tables for a terminal, and figures in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row that shows its text as it is; rich would read brackets in file names as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def table_of(
    title: str,
    headings: Iterable[str],
    rows: Iterable[Iterable[str | Text]],
    *,
    numbers: Collection[int] = (),
    folds: Collection[int] = (),
) -> Table:
    """Return a table whose columns ``numbers`` are set flush right and ``folds`` are never cut short."""
    table = Table(title=title, title_justify="left")
    for column, heading in enumerate(headings):
        table.add_column(
            Text(heading),
            justify="right" if column in numbers else "left",
            overflow="fold" if column in folds else "ellipsis",
        )
    for row in rows:
        add_row(table, *row)
    return table


def pairs(values: Mapping[str, Any]) -> str:
    """Return names with their values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def run_line(runtime: str, device: str, threads: int) -> str:
    """Say in one line how a file was run."""
    return f"{runtime} on {device}, {threads} {'thread' if threads == 1 else 'threads'}"


def yes_or_no(passed: bool) -> Text:
    """Return the verdict's cell."""
    return Text("yes", "green") if passed else Text("NO", "bold red")


def duration(seconds: float) -> str:
    """Three digits with the unit that suits: ``40.4 µs``, ``2.31 ms``, ``1.20 s``."""
    scale, unit = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")
    value = seconds / scale
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def size(count: int) -> str:
    """Bytes as kB or MB, powers of ten."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def machine_line(environment: Mapping[str, Any]) -> str:
    """One line on the machine and the versions."""
    gpus = ", ".join(environment["gpus"]) or "no GPU"
    versions = pairs(environment["versions"])
    processor = f"{environment['cpu']}, {environment['usable_cpus']} usable CPUs"
    return f"{processor}, {gpus}; {environment['system']}; {versions}"
