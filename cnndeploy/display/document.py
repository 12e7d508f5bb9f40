"""A page of HTML that stands in one file and loads nothing: its frame, its look, and tables that sort."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from cnndeploy.benchmark.report import Result
from cnndeploy.display.rows import Column

Cells = Iterable[str | tuple[str, object]]
# On a narrow screen a table may be scrolled, but its first columns, which matter most, fit.
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5c6675; --line: #d9dee6; --accent: #3b6fd4;
  --paper: #ffffff; --good: #17793c; --warn: #875300; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b5; --line: #333c4a;
  --accent: #6f9bf0; --paper: #151a21; --good: #5ccb86; --warn: #e8b04b; --bad: #ff8a80; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: 0; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0; }
p { color: var(--soft); margin: .3rem 0 .6rem; max-width: 60rem; }
.good { color: var(--good); font-weight: 600; } .warn { color: var(--warn); }
.bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; } td.n, th.n { text-align: right; }
td.n { white-space: nowrap; } td:first-child { overflow-wrap: anywhere; }
tr.group th { color: var(--ink); padding-top: .9rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
code { font-size: .8rem; overflow-wrap: anywhere; }
figure { margin: .6rem 0; } figure svg { display: block; width: 100%; max-width: 36rem; height: auto; }
.plots { display: grid; gap: 0 3rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.samples { display: flex; flex-wrap: wrap; gap: .8rem; } .samples figure { width: 6.5rem; margin: .3rem 0; }
.samples img { width: 100%; image-rendering: pixelated; display: block; border-radius: 3px; }
figcaption { font-size: .8rem; line-height: 1.3; margin-top: .25rem; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { margin-top: 1rem; } h1 { font-size: 1.35rem; } table { font-size: .8rem; }
  th, td { padding-right: .5rem; } code .rest { display: none; } code .rest + span::after { content: "\\2026"; }
  td:first-child { min-width: 4.6rem; } td.n span { display: block; } }
"""
# Sorts each part of a table by the column whose heading is clicked; by its numbers where the cells carry them.
_SORT = """
for (const head of document.querySelectorAll('table.sortable thead button')) {
  head.addEventListener('click', () => {
    const cell = head.parentElement, table = cell.closest('table');
    const up = cell.getAttribute('aria-sort') !== 'ascending', at = cell.cellIndex;
    const key = row => row.cells[at].dataset.key ?? row.cells[at].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      return x === '' ? 1 : y === '' ? -1 : (isNaN(x - y) ? x.localeCompare(y) : x - y) * (up ? 1 : -1);
    };
    for (const body of table.tBodies) body.append(...[...body.querySelectorAll('tr:not(.group)')].sort(order));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    cell.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  });
}
"""


def document(title: str, sections: Iterable[str]) -> str:
    """Return a whole page; ``title`` is text, ``sections`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(sections)}<script>{_SORT}</script></body></html>\n"
    )


def table(heads: Cells, rows: Iterable[Cells], numbers: Collection[int]) -> str:
    """Return a table of HTML cells; ``numbers`` are columns set flush right."""
    return _framed(heads, [("", rows)], numbers, "")


def sortable(columns: Sequence[Column], groups: Iterable[tuple[str, Sequence[Result]]]) -> str:
    """Return a table whose groups, each below its heading, are sorted by the column that is clicked."""

    def cell(column: Column, row: Result) -> str | tuple[str, object]:
        text = escape(column.text(row))
        if column.key is None:
            return text
        figure, bracket, interval = text.partition(" (")
        if bracket:  # a narrow screen shows an interval below its figure
            text = f"{figure} <span>({interval}</span>"
        key = column.key(row)
        return text, "" if key is None else key

    heads = (f'<button type="button">{escape(column.heading)}</button>' for column in columns)
    cells = [
        (escape(group), [[cell(column, row) for column in columns] for row in rows]) for group, rows in groups
    ]
    numbers = [at for at, column in enumerate(columns) if column.key]
    return _framed(heads, cells, numbers, ' class="sortable"')


def _framed(
    heads: Cells, groups: Iterable[tuple[str, Iterable[Cells]]], numbers: Collection[int], kind: str
) -> str:
    def line(tag: str, cells: Cells) -> str:
        parts = []
        for column, cell in enumerate(cells):
            content, key = (cell, "") if isinstance(cell, str) else (cell[0], f' data-key="{cell[1]}"')
            look = ' class="n"' if column in numbers else ""
            parts.append(f"<{tag}{look}{key}>{content}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    heading, bodies = line("th", heads), []
    for name, rows in groups:
        above = f'<tr class="group"><th colspan="{heading.count("<th")}">{name}</th></tr>' if name else ""
        bodies.append(f"<tbody>{above}{''.join(line('td', row) for row in rows)}</tbody>")
    return f'<div class="scroll"><table{kind}><thead>{heading}</thead>{"".join(bodies)}</table></div>'
