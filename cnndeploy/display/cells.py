"""Cells and rows that several tables share."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row that shows its text as it is; rich would read brackets in file names as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def run_line(runtime: str, device: str, threads: int) -> str:
    """Say in one line how a file was run."""
    return f"{runtime} on {device}, {threads} {'thread' if threads == 1 else 'threads'}"


def yes_or_no(passed: bool) -> Text:
    """Return the verdict's cell."""
    return Text("yes", "green") if passed else Text("NO", "bold red")
