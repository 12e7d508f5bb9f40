"""Pages of HTML, each of which stands in one file and loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.cells import machine_line, size
from cnndeploy.display.plots import Plot, benchmark_plots
from cnndeploy.display.rows import DEPLOYMENT, LATENCY, Column, candidates, failure_lines, shortened
from cnndeploy.verification.report import EquivalenceReport

_Cells = Iterable[str | tuple[str, object]]
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


def render(
    artifacts: Sequence[Artifact],
    equivalence: Sequence[EquivalenceReport],
    timings: BenchmarkReport,
    command: str,
) -> str:
    """Return the page, HTML that loads nothing from anywhere.

    Of ``artifacts`` the first is the checkpoint, the others were exported from it, and ``equivalence`` has a report on
    each. ``command`` is what to type to measure ``timings`` again.
    """
    manifest = artifacts[0].require_manifest()
    accuracy = manifest.training.get("test_accuracy")
    summary = "untrained weights" if accuracy is None else f"test accuracy {accuracy:.2%}"
    if all(report.passed for report in equivalence):
        verdict = '<p class="good">every exported file is equivalent to its checkpoint</p>'
    else:
        verdict = '<p class="bad">NOT every file is equivalent</p>'
    sections = (
        f"<h1>{escape(manifest.architecture)}: {escape(summary)}</h1>",
        verdict,
        _accuracy(manifest.training),
        _equivalence(equivalence),
        _files(artifacts),
        *_benchmark_sections(timings, command),
    )
    return _document(f"cnndeploy: {manifest.architecture}", sections)


def _accuracy(training: Mapping[str, Any]) -> str:
    rows = []
    for epoch in training.get("epochs", []):
        loss, on_train, on_test = (epoch[name] for name in ("train_loss", "train_accuracy", "test_accuracy"))
        bar = f'<i style="width:{100 * on_test:.1f}%"></i>'
        rows.append((str(epoch["epoch"]), f"{loss:.3f}", f"{on_train:.4f}", f"{on_test:.4f}", bar))
    if not rows:
        return ""
    trained_on = training.get("train_images", training["images"])  # as older checkpoints call it
    note = f"On {training['test_images']:,} test images; trained on {trained_on:,}."
    heads = ("epoch", "training loss", "training accuracy", "test accuracy", "")
    return f"<h2>Accuracy</h2><p>{note}</p>{_table(heads, rows, numbers=range(4))}"


def _equivalence(reports: Sequence[EquivalenceReport]) -> str:
    good = '<span class="good">equivalent</span>'
    rows = [
        (
            escape(Path(report.artifact.path).name),
            good
            if report.passed
            else f'<span class="bad">NOT equivalent</span><br>{escape("; ".join(report.reasons))}',
            "-" if report.max_rel_error is None else f"{report.max_rel_error:.2e}",
            f"{report.top1_agreement:.2%}",
            f"{report.images:,}",
            escape(f"{report.runtime} on {report.device}"),
            ", ".join(map(str, report.batch_sizes)),
        )
        for report in reports
    ]
    heads = ("file", "verdict", "max error", "same label", "images", "runtime", "batch sizes")
    note = "Each file as saved, against eager PyTorch on real images."
    scale = "Errors are relative to the largest logit."
    return f"<h2>Equivalence</h2><p>{note} {scale}</p>{_table(heads, rows, numbers=(2, 3, 4))}"


def _files(artifacts: Iterable[Artifact]) -> str:
    rows = []
    for artifact in artifacts:
        path, sha256 = artifact.path, f"<code>{artifact.sha256}</code>"
        rows.append((escape(path.name), escape(artifact.format), size(path.stat().st_size), sha256))
    return f"<h2>Files</h2>{_table(('file', 'format', 'size', 'SHA-256'), rows, numbers=(2,))}"


def render_benchmark(report: BenchmarkReport, command: str = "") -> str:
    """The page; ``command`` is what to type to measure again."""
    names = ", ".join(dict.fromkeys(Path(row.artifact).name for row in report.results))
    sections = ("<h1>Benchmark</h1>", *_benchmark_sections(report, command))
    return _document(f"cnndeploy bench: {names}", sections)


def _benchmark_sections(report: BenchmarkReport, command: str) -> Sequence[str]:
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
        _sortable(LATENCY, report.results),
        *map(_figure, benchmark_plots(report).values()),
        f"<h2>Cold start and size</h2>{_sortable(DEPLOYMENT, candidates(report))}",
        f"<h2>Machine</h2><p>{escape(machine_line(report.environment))}</p>",
        how,
        f"<script>{_SORT}</script>",
    )


def _figure(plot: Plot) -> str:
    picture = f'<figure role="img" aria-label="{plot.title}">{plot.inline()}</figure>'
    return f"<h2>{plot.title}</h2><p>{plot.note}</p>{picture}"


def _document(title: str, sections: Iterable[str]) -> str:
    """A whole page of HTML; ``title`` is text, ``sections`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _table(heads: _Cells, rows: Iterable[_Cells], numbers: Collection[int], kind: str = "") -> str:
    """Return a table of HTML cells, some with what they are sorted by; ``numbers`` are columns set flush right."""

    def line(tag: str, cells: _Cells) -> str:
        parts = []
        for column, cell in enumerate(cells):
            content, key = (cell, "") if isinstance(cell, str) else (cell[0], f' data-key="{cell[1]}"')
            look = ' class="n"' if column in numbers else ' class="bar"' if content.startswith("<i ") else ""
            parts.append(f"<{tag}{look}{key}>{content}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(line("td", row) for row in rows)
    inner = f"<thead>{line('th', heads)}</thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table{kind}>{inner}</table></div>'


def _sortable(columns: Sequence[Column], rows: Sequence[Result]) -> str:
    def cell(column: Column, row: Result) -> str | tuple[str, object]:
        text = escape(column.text(row))
        key = column.key and column.key(row)
        return (text, "" if key is None else key) if column.key else text

    heads = (f'<button type="button">{escape(column.heading)}</button>' for column in columns)
    cells = ([cell(column, row) for column in columns] for row in rows)
    numbers = [at for at, column in enumerate(columns) if column.key]
    return _table(heads, cells, numbers, ' class="sortable"')
