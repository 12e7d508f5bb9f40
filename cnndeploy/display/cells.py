"""Cells of a terminal's tables."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row whose text is shown as it is; rich would read the brackets of a file name as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
