"""A benchmark on one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.html import document
from cnndeploy.display.plots import Plot, benchmark_plots
from cnndeploy.display.rows import DEPLOYMENT, LATENCY, Column, candidates, failure_lines, shortened
from cnndeploy.display.units import machine_line

# Sorts a table by the column whose heading is clicked; by its numbers where the cells carry them.
_SORT = """
for (const head of document.querySelectorAll('table.sortable th button')) {
  head.addEventListener('click', () => {
    const cell = head.parentElement, table = cell.closest('table'), body = table.tBodies[0];
    const up = cell.getAttribute('aria-sort') !== 'ascending', at = cell.cellIndex;
    const key = row => row.cells[at].dataset.key ?? row.cells[at].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      return x === '' ? 1 : y === '' ? -1 : (isNaN(x - y) ? x.localeCompare(y) : x - y) * (up ? 1 : -1);
    };
    body.append(...[...body.rows].sort(order));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    cell.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  });
}
"""


def render_benchmark(report: BenchmarkReport, command: str = "") -> str:
    """The page; ``command`` is what to type to measure again."""
    names = ", ".join(dict.fromkeys(Path(row.artifact).name for row in report.results))
    return document(f"cnndeploy bench: {names}", ("<h1>Benchmark</h1>", *benchmark_sections(report, command)))


def benchmark_sections(report: BenchmarkReport, command: str = "") -> Sequence[str]:
    """The parts of a page that show a benchmark, with plots, tables that sort, and the machine."""
    report = shortened(report)
    problems = (*report.warnings, *failure_lines(report))
    warnings = "".join(f'<p class="bad">{escape(problem)}</p>' for problem in problems)
    how = f"<h2>Measure again</h2><p><code>{escape(command)}</code></p>" if command else ""
    note = (
        "Each candidate runs in a process of its own. They take turns in random order, and ratios are taken within a "
        "turn; the interval, of 95% for all rows together, decides the verdict, and 2% count as the same. Click a "
        "heading to sort."
    )
    return (
        f"<h2>Speed</h2>{warnings}<p>{note}</p>",
        _table(LATENCY, report.results),
        *map(_figure, benchmark_plots(report).values()),
        f"<h2>Cold start and size</h2>{_table(DEPLOYMENT, candidates(report))}",
        f"<h2>Machine</h2><p>{escape(machine_line(report.environment))}</p>",
        how,
        f"<script>{_SORT}</script>",
    )


def _figure(plot: Plot) -> str:
    picture = f'<figure role="img" aria-label="{plot.title}">{plot.inline()}</figure>'
    return f"<h2>{plot.title}</h2><p>{plot.note}</p>{picture}"


def _table(columns: Sequence[Column], rows: Sequence[Result]) -> str:
    heads = "".join(
        f'<th{_right(column)}><button type="button">{escape(column.heading)}</button></th>'
        for column in columns
    )
    body = "".join(f"<tr>{''.join(_cell(column, row) for column in columns)}</tr>" for row in rows)
    inner = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="sortable">{inner}</table></div>'


def _cell(column: Column, row: Result) -> str:
    if column.key is None:
        return f"<td>{escape(column.text(row))}</td>"
    key = column.key(row)
    return f'<td{_right(column)} data-key="{"" if key is None else key}">{escape(column.text(row))}</td>'


def _right(column: Column) -> str:
    return ' class="n"' if column.key else ""
