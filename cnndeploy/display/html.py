"""Pieces of a page that stands in one file and loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5c6675; --line: #d9dee6; --bar: #3b6fd4;
  --paper: #ffffff; --good: #17793c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b5; --line: #333c4a;
  --bar: #6f9bf0; --paper: #151a21; --good: #5ccb86; --bad: #ff8a80; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { color: var(--soft); margin-top: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td.n, th.n { text-align: right; } td.n { white-space: nowrap; }
td.bar { min-width: 8rem; width: 30%; } td.bar i { display: block; height: .8rem; margin-top: .35rem;
  background: var(--bar); border-radius: 2px; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding-right: .5rem; } }
code { font-size: .8rem; overflow-wrap: anywhere; } .good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; max-width: 46rem; height: auto; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--bar); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page of HTML; ``title`` is text, ``sections`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    """Cells are HTML; the columns in ``numbers`` are set flush right."""
    right = set(numbers)

    def cell(tag: str, column: int, content: str) -> str:
        kind = ' class="n"' if column in right else ' class="bar"' if content.startswith("<i ") else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", column, escape(text)) for column, text in enumerate(heads))
    body = "".join(
        f"<tr>{''.join(cell('td', column, content) for column, content in enumerate(row))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bar(share: float) -> str:
    """A bar of a table's cell, as long as ``share`` of it."""
    return f'<i style="width:{100 * share:.1f}%"></i>'
