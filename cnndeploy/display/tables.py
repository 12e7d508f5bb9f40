"""Tables that fit the width of a terminal, and split no word and no number.

If a table is too wide it leaves columns out, in the order that its columns say; then it goes without a frame; and if
even that is too wide it becomes a few short lines for each row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from cnndeploy.display.cells import NOTHING

Cell = str | Text
Row = tuple[Text, ...]
_GAP, _INDENT = 2, 4  # blanks between columns without a frame, and before what belongs to the line above
# A file's name is shortened to no less than the first of these as long as columns can be left out instead.
_NAME_WIDTHS = (24, 12)
_WIDER = "A wider terminal shows them, and so does COLUMNS=160."
_LABEL = 21  # a table of facts wraps longer labels if its figures need the width


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A heading, and how the cells below it may be changed to fit.

    A ``piece`` stays as it is, a ``name`` may be shortened in its middle, a ``text`` is wrapped between words, to no
    less than ``least``. Columns that have a ``drop`` leave a table that is too wide, the lowest number first. A
    ``setting`` tells rows apart: if it is the same in all rows it leaves before all others, and the title says it.
    ``below`` is for a long text: if it does not fit into the table, it stands below its row. ``phrase`` is how a cell
    reads in a sentence. ``topic`` is a word for the title, which names the topics of the columns that are shown.
    """

    heading: str
    kind: Literal["piece", "name", "text"] = "piece"
    right: bool = False
    drop: int = 0
    setting: bool = False
    below: bool = False
    least: int = 20
    phrase: Callable[[str], str] = str
    topic: str = ""

    def words_of(self, cell: Text) -> Text:
        """Return a cell as it reads in a sentence, in its own style; nothing of an empty one."""
        if cell.plain == NOTHING:
            return Text()
        return Text(self.phrase(cell.plain).replace("\n", "; "), cell.style)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns that are shown, by their numbers, with their widths.

    ``said`` goes into the title; ``missing`` are the headings of columns that did not fit.
    """

    widths: Mapping[int, int]
    said: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class FittedTable:
    """A table that is laid out for the width that it is printed in.

    Rows from ``section`` on stand below a line of their own. The columns after the first of a table that is ``alike``
    have the same rows for several files; if they do not fit beside each other, each gets a table of its own. The
    ``note`` explains the mark that it begins with, and follows if that ends a cell that is shown.
    """

    title: str
    columns: tuple[TableColumn, ...]
    rows: tuple[Row, ...]
    section: int | None = None
    alike: bool = False
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Print the widest form that fits."""
        width = options.max_width
        layout = self._layout(width, framed=True)
        if layout is None and self.alike and len(self.columns) > 2:
            yield from self._title()
            yield from self._one_for_each()
        elif layout is not None:
            yield from self._title(layout)
            yield self._framed(layout)
        elif (layout := self._layout(width, framed=False)) is not None:
            yield from self._title(layout)
            yield from self._unframed(layout, console, width)
        else:
            gone = self._turns()
            layout = self._laid_out(dict.fromkeys(self._shown(gone), width), gone)
            yield from self._title(layout)
            yield from self._lines(layout, console, width)
        yield from self._notes(layout)

    def _title(self, layout: _Layout | None = None) -> Iterator[Text]:
        shown = layout.widths if layout else range(len(self.columns))
        topics = list(dict.fromkeys(topic for at in shown if (topic := self.columns[at].topic)))
        listed = " and ".join(filter(None, (", ".join(topics[:-1]), *topics[-1:]))).capitalize()
        if title := listed or self.title:
            yield Text(", ".join((title, *(layout.said if layout else ()))), "table.title")

    def _notes(self, layout: _Layout | None) -> Iterator[Text]:
        shown = layout.widths if layout else range(len(self.columns))
        if self.note and any(row[at].plain.endswith(self.note[0]) for row in self.rows for at in shown):
            yield Text(self.note)
        if layout and layout.missing:
            yield Text(f"Left out, because they do not fit: {', '.join(layout.missing)}. {_WIDER}")

    def _one_for_each(self) -> Iterator[FittedTable]:
        """Split a table of several files; of each file what is not known is left out."""
        for at in range(1, len(self.columns)):
            rows = tuple((row[0], row[at]) for row in self.rows if row[at].plain != NOTHING)
            yield replace(self, title="", columns=(self.columns[0], self.columns[at]), rows=rows)

    def _turns(self) -> dict[int, int]:
        """Return the columns that may be left out, by their numbers in the order in which they are."""
        turns = {at: column.drop for at, column in enumerate(self.columns) if column.drop}
        for at, column in enumerate(self.columns):
            if column.setting and len({row[at].plain for row in self.rows}) <= 1:
                turns[at] = 0
        return dict(sorted(turns.items(), key=lambda item: item[1]))

    def _shown(self, gone: Collection[int]) -> list[int]:
        return [at for at in range(len(self.columns)) if at not in gone]

    def _laid_out(self, widths: Mapping[int, int], gone: Collection[int]) -> _Layout:
        # a setting leaves only if it is the same in all rows, or can be told from what is shown
        missing = (
            column.heading for column in map(self.columns.__getitem__, sorted(gone)) if not column.setting
        )
        return _Layout(widths, self._said(gone), tuple(missing))

    def _said(self, gone: Collection[int]) -> tuple[str, ...]:
        """Return for the title what is the same in all rows and is left out."""
        settings = (at for at in sorted(gone) if self._turns()[at] == 0 and self.rows)
        return tuple(self.columns[at].words_of(self.rows[0][at]).plain for at in settings)

    def _layout(self, width: int, *, framed: bool) -> _Layout | None:
        """Choose the columns that are shown; None if no choice fits."""
        turns = list(self._turns())
        below = set() if framed else {at for at, column in enumerate(self.columns) if column.below}
        for name_width in _NAME_WIDTHS:
            for count in range(len(turns) + 1):
                gone = turns[:count]
                if widths := self._widths(self._shown({*gone, *below}), width, framed, name_width):
                    return self._laid_out(widths, gone)
        return None

    def _widths(
        self, shown: Sequence[int], width: int, framed: bool, name_width: int
    ) -> dict[int, int] | None:
        """Share the width out: what each column needs, then more for the narrowest that can use it."""
        room = width - (3 * len(shown) + 1 if framed else _GAP * (len(shown) - 1))
        headings = _distinct([self.columns[at].heading for at in shown[1:]]) if self.alike else 0
        needs, likes = dict[int, int](), dict[int, int]()
        for at in shown:
            column, cells = self.columns[at], [row[at].plain for row in self.rows]
            heading = cell_len(column.heading)
            likes[at] = max(heading, _longest(cell.split("\n") for cell in cells))
            spare = min(heading, headings) if self.alike else _longest([column.heading.split()])
            needs[at] = max(1, spare, _need(column, cells, name_width))
        if sum(needs.values()) > room:
            return None
        while sum(needs.values()) < room and (growing := [at for at in shown if needs[at] < likes[at]]):
            needs[min(growing, key=lambda at: (self.alike and at == 0, needs[at]))] += 1
        return needs

    def _cells(self, row: Sequence[Text], layout: _Layout) -> Iterator[Text]:
        """Yield what is shown of a row, fitted to its columns."""
        for at, width in layout.widths.items():
            if self.columns[at].kind == "name":
                yield Text(shortened(row[at].plain, width), row[at].style)
            else:
                yield fitted(row[at], width)

    def _headings(self, layout: _Layout) -> list[Text]:
        return [fitted(Text(self.columns[at].heading), width) for at, width in layout.widths.items()]

    def _framed(self, layout: _Layout) -> Table:
        headings = self._headings(layout)
        table = Table(show_header=any(map(str, headings)))
        for (at, width), heading in zip(layout.widths.items(), headings, strict=True):
            table.add_column(heading, justify="right" if self.columns[at].right else "left", width=width)
        for number, row in enumerate(self.rows):
            if number == self.section:
                table.add_section()
            table.add_row(*self._cells(row, layout))
        return table

    def _unframed(self, layout: _Layout, console: Console, width: int) -> Iterator[Text]:
        """Yield rows whose columns are held apart by blanks, each followed by what stands below it."""
        headings = self._headings(layout)
        if any(map(str, headings)):
            for heading in headings:
                heading.stylize("table.header")
            yield from self._unframed_row(headings, layout, console)
        for number, row in enumerate(self.rows):
            if number == self.section:
                yield Text("─" * (sum(layout.widths.values()) + _GAP * (len(layout.widths) - 1)))
            yield from self._unframed_row(self._cells(row, layout), layout, console)
            for column, cell in zip(self.columns, row, strict=True):
                if column.below and cell.plain != NOTHING:
                    yield from _indented(cell, console, width)

    def _unframed_row(self, cells: Iterable[Text], layout: _Layout, console: Console) -> Iterator[Text]:
        wrapped = {
            at: cell.wrap(console, width, justify="right" if self.columns[at].right else "left")
            for (at, width), cell in zip(layout.widths.items(), cells, strict=True)
        }
        for number in range(max(map(len, wrapped.values()))):
            parts = (
                lines[number] if number < len(lines) else Text(" " * layout.widths[at])
                for at, lines in wrapped.items()
            )
            line = Text(" " * _GAP).join(parts)
            line.rstrip()
            yield line

    def _lines(self, layout: _Layout, console: Console, width: int) -> Iterator[Text]:
        """Yield each row as a sentence: what it is, a colon, and its figures."""
        for row in self.rows:
            who, what = list[Text](), list[Text]()
            for at in layout.widths:
                column = self.columns[at]
                if words := column.words_of(row[at]):
                    (who if at == 0 or column.setting else what).append(words)
            head, figures = (Text(", ").join(words) for words in (who, what))
            if cell_len(head.plain) + len(": ") + cell_len(figures.plain) <= width:
                yield Text.assemble(head, ": ", figures)
            else:
                yield from fitted(Text.assemble(_packed(who, width), ":"), width).wrap(console, width)
                yield from _indented(_packed(what, width - _INDENT), console, width)


def table_of(
    title: str,
    columns: Iterable[TableColumn],
    rows: Iterable[Iterable[Cell]],
    *,
    section: int | None = None,
    alike: bool = False,
    note: str = "",
) -> FittedTable:
    """Return a :class:`FittedTable`, without the columns that may be dropped and that show nothing."""
    columns = list(columns)
    cells = [[safe(cell) for cell in row] for row in rows]
    shown = [
        (at, column)
        for at, column in enumerate(columns)
        if not column.drop or any(row[at].plain != NOTHING for row in cells)
    ]
    kept = tuple(tuple(row[at] for at, _ in shown) for row in cells)
    return FittedTable(safe(title).plain, tuple(column for _, column in shown), kept, section, alike, note)


def safe(cell: Cell) -> Text:
    """Return a cell without characters that a terminal obeys, as a file name may hold; line ends stay."""
    text = Text(cell) if isinstance(cell, str) else cell
    if text.plain.replace("\n", "").isprintable():
        return text
    return Text("".join(one if one.isprintable() or one == "\n" else "?" for one in text.plain), text.style)


def facts_of(
    title: str, files: Sequence[str], facts: Iterable[Sequence[Cell]], section: int | None = None
) -> FittedTable:
    """Return a table of facts: labels, and beside them a column for each of ``files``; none if there is one, ``""``.

    A fact that is known of no file is left out.
    """
    known = [row for row in facts if any(str(cell) != NOTHING for cell in row[1:])]
    columns = [
        TableColumn("", "text", least=_LABEL),
        *(TableColumn(safe(name).plain, "text") for name in files),
    ]
    return table_of(title, columns, known, section=section, alike=True)


def _need(column: TableColumn, cells: Sequence[str], name_width: int) -> int:
    """Return the width below which a column's cells would be split, or shortened too much."""
    whole = _longest(cell.split("\n") for cell in cells)
    if column.kind == "name":
        return max(min(whole, name_width), _distinct(cells))
    if column.kind == "text":
        return max(_longest(map(_pieces, cells)), min(whole, column.least))
    return whole


def _longest(groups: Iterable[Iterable[str]]) -> int:
    return max((cell_len(text) for group in groups for text in group), default=0)


def _pieces(text: str) -> list[str]:
    """Return what must not be split: words, and the parts of a path."""
    return re.findall(r"[^\s/]*/|[^\s/]+", text)


def _distinct(names: Iterable[str]) -> int:
    """Return the width at which shortened names still differ, and are not shortened beyond recognition."""
    different = set(names)
    longest = _longest([different])
    widths = range(min(longest, _NAME_WIDTHS[-1]), longest)
    fits = (
        width for width in widths if len({shortened(name, width) for name in different}) == len(different)
    )
    return next(fits, longest)


def shortened(text: str, width: int) -> str:
    """Return a text that is too long with an ellipsis in its middle."""
    if cell_len(text) <= width:
        return text
    tail = set_cell_size(text[::-1], width // 2)[::-1]
    return f"{set_cell_size(text, (width - 1) // 2)}…{tail}"


def fitted(text: Text, width: int) -> Text:
    """Break words that are longer than the width: paths after a slash, others are shortened in their middle."""

    def broken(match: re.Match[str]) -> str:
        if cell_len(match[0]) <= width:
            return match[0]
        lines = [""]
        for piece in (shortened(piece, width) for piece in _pieces(match[0])):
            if cell_len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
        return "\n".join(lines)

    if _longest([text.plain.split()]) <= width:
        return text
    return Text(re.sub(r"\S+", broken, text.plain), text.style)


def _packed(parts: Iterable[Text], width: int) -> Text:
    """Join parts with commas; break the line between two of them before it is too long."""
    lines: list[list[Text]] = [[]]
    for part in parts:
        if lines[-1] and cell_len(", ".join(one.plain for one in (*lines[-1], part))) >= width:
            lines.append([])
        lines[-1].append(part)
    return Text(",\n").join(Text(", ").join(line) for line in lines)


def _indented(text: Text, console: Console, width: int) -> Iterator[Text]:
    room = max(1, width - _INDENT)
    for line in fitted(text, room).wrap(console, room):
        yield Text.assemble(" " * _INDENT, line)
