"""One self-contained HTML page: accuracy, equivalence, latency, files, the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import BenchmarkReport
from cnndeploy.equivalence.report import EquivalenceReport
from cnndeploy.report.units import duration, machine_line, size

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
"""


def render(
    artifacts: Sequence[Artifact], equivalence: Sequence[EquivalenceReport], timings: BenchmarkReport
) -> str:
    """The page.

    Args:
        artifacts: The checkpoint first, then what was exported from it.
        equivalence: What verification found, for each exported file.
        timings: What the benchmark measured.

    Returns:
        HTML that loads nothing from anywhere.
    """
    manifest = artifacts[0].require_manifest()
    accuracy = manifest.training.get("test_accuracy")
    summary = "untrained weights" if accuracy is None else f"test accuracy {accuracy:.2%}"
    passed = all(report.equivalent for report in equivalence)
    verdict = (
        "every exported file is equivalent to its checkpoint" if passed else "NOT every file is equivalent"
    )
    sections = (
        f"<h1>{escape(manifest.architecture)}: {escape(summary)}</h1>",
        f'<p class="{"good" if passed else "bad"}">{verdict}</p>',
        _accuracy(artifacts[0]),
        _equivalence(equivalence),
        _latency(timings),
        *(f'<p class="bad">{escape(warning)}</p>' for warning in timings.warnings),
        _files(artifacts),
        f"<h2>Machine</h2><p>{escape(machine_line(timings.environment))}</p>",
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>cnndeploy: {escape(manifest.architecture)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _accuracy(checkpoint: Artifact) -> str:
    training = checkpoint.require_manifest().training
    epochs = training.get("epochs", [])
    rows = [
        (
            str(epoch["epoch"]),
            f"{epoch['train_loss']:.3f}",
            f"{epoch['train_accuracy']:.4f}",
            f"{epoch['test_accuracy']:.4f}",
            _bar(epoch["test_accuracy"]),
        )
        for epoch in epochs
    ]
    if not rows:
        return ""
    note = f"On {training['test_images']:,} test images; trained on {training['images']:,}."
    heads = ("epoch", "training loss", "training accuracy", "test accuracy", "")
    return f"<h2>Accuracy</h2><p>{note}</p>{_table(heads, rows, numbers=range(4))}"


def _equivalence(reports: Sequence[EquivalenceReport]) -> str:
    rows = [
        (
            escape(Path(report.artifact.path).name),
            '<span class="good">equivalent</span>'
            if report.equivalent
            else f'<span class="bad">NOT equivalent</span><br>{escape("; ".join(report.reasons))}',
            f"{report.max_rel_error:.2e}",
            f"{report.top1_agreement:.2%}",
            f"{report.images:,}",
            escape(f"{report.runtime} on {report.device}"),
            ", ".join(map(str, report.batch_sizes)),
        )
        for report in reports
    ]
    heads = ("file", "verdict", "max error", "same label", "images", "runtime", "batch sizes")
    note = (
        "Each file as saved, against eager PyTorch on real images. Errors are relative to the largest logit."
    )
    return f"<h2>Equivalence</h2><p>{note}</p>{_table(heads, rows, numbers=(2, 3, 4))}"


def _latency(timings: BenchmarkReport) -> str:
    parts = []
    for batch_size in dict.fromkeys(result.batch_size for result in timings.results):
        results = [result for result in timings.results if result.batch_size == batch_size]
        slowest = max(result.p50_s for result in results)
        rows = [
            (
                escape(Path(result.target).name),
                f"{result.ratio:.2f}",
                duration(result.p50_s),
                duration(result.p90_s),
                f"{result.images_per_s:,.0f}",
                escape(f"{result.runtime} on {result.device}"),
                _bar(result.p50_s / slowest),
            )
            for result in results
        ]
        threads = ", ".join(str(count) for count in sorted({result.threads for result in results}))
        heads = ("file", "times as fast", "p50", "p90", "images/s", "runtime", "p50, shorter is better")
        parts.append(
            f"<h2>Latency at batch {batch_size}, {threads} threads</h2>{_table(heads, rows, numbers=range(1, 5))}"
        )
    return "".join(parts)


def _files(artifacts: Iterable[Artifact]) -> str:
    rows = [
        (
            escape(artifact.path.name),
            escape(artifact.format),
            size(artifact.path.stat().st_size),
            f"<code>{artifact.sha256}</code>",
        )
        for artifact in artifacts
    ]
    return f"<h2>Files</h2>{_table(('file', 'format', 'size', 'SHA-256'), rows, numbers=(2,))}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
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


def _bar(share: float) -> str:
    return f'<i style="width:{100 * share:.1f}%"></i>'
