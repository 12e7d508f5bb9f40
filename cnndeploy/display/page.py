"""Pages of HTML, each of which stands in one file and loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.cells import machine_line, size
from cnndeploy.display.document import document, sortable, table
from cnndeploy.display.headline import headline
from cnndeploy.display.plots import Plot, benchmark_plots, training_plots
from cnndeploy.display.rows import (
    LATENCY,
    UNSURE_NOTE,
    candidates,
    deployment_columns,
    failure_lines,
    is_unsure,
    shortened,
)
from cnndeploy.display.samples import Sample, render_samples
from cnndeploy.verification.report import EquivalenceReport

# What a reader looks for first; "batch" is the heading of a group of rows.
_FIRST = ("file", "speed-up", "verdict", "p50")
_COLUMNS = (
    *(column for name in _FIRST for column in LATENCY if column.heading == name),
    *(column for column in LATENCY if column.heading not in (*_FIRST, "batch")),
)
_NOTE = (
    "Each candidate runs in a process of its own. They take turns in random order, and a speed-up is a ratio taken "
    "within a turn. Its interval, of 95% for all rows together, decides the verdict; 2% count as the same. Click a "
    "heading to sort."
)


def render(
    artifacts: Sequence[Artifact],
    equivalence: Sequence[EquivalenceReport],
    timings: BenchmarkReport,
    command: str,
    samples: Sequence[Sample] = (),
) -> str:
    """Return the page, HTML that loads nothing from anywhere.

    The first of ``artifacts`` is the checkpoint. The others were exported from it, and ``equivalence`` has a report on
    each. ``command`` is what to type to measure ``timings`` again; ``samples`` are test images as the checkpoint
    labels them.
    """
    manifest = artifacts[0].require_manifest()
    accuracy = manifest.training.get("test_accuracy")
    summary = "untrained weights" if accuracy is None else f"test accuracy {accuracy:.2%}"
    equivalent = [Path(report.artifact.path).name for report in equivalence if report.passed]
    if len(equivalent) == len(equivalence):
        verdict = '<p class="good">Every exported file is equivalent to its checkpoint.</p>'
    else:
        verdict = '<p class="bad">NOT every exported file is equivalent to its checkpoint.</p>'
    sections = (
        f"<h1>{escape(headline(timings, equivalent))}</h1>",
        f"<p>{escape(manifest.architecture)}, {escape(summary)}</p>{verdict}",
        *_speed(timings),
        _equivalence(equivalence),
        _training(artifacts[0], timings.environment, samples),
        _files(artifacts),
        *_conditions(timings, command),
    )
    return document(f"cnndeploy: {manifest.architecture}", sections)


def render_benchmark(report: BenchmarkReport, command: str = "") -> str:
    """Return the page of a benchmark; ``command`` is what to type to measure again."""
    names = ", ".join(dict.fromkeys(Path(row.artifact).name for row in report.results))
    sections = (f"<h1>{escape(headline(report))}</h1>", *_speed(report), *_conditions(report, command))
    return document(f"cnndeploy bench: {names}", sections)


def _speed(report: BenchmarkReport) -> Sequence[str]:
    """Return tables and plots of a benchmark, below what failed and what to doubt."""
    plots = map(_figure, benchmark_plots(report).values())
    report = shortened(report)
    failures = "".join(f'<p class="bad">{escape(line)}</p>' for line in failure_lines(report))
    warnings = "".join(f'<p class="warn">{escape(warning)}</p>' for warning in report.warnings)
    unsure = f"<p>{escape(UNSURE_NOTE)}</p>" if any(map(is_unsure, report.results)) else ""
    groups: dict[str, list[Result]] = {}
    for row in report.results:
        groups.setdefault(f"Batch {row.batch_size}", []).append(row)
    first = candidates(report)
    return (
        f"<h2>Speed</h2>{failures}{warnings}{sortable(_COLUMNS, groups.items())}",
        f"{unsure}<p>{_NOTE}</p>",
        f'<div class="plots">{"".join(plots)}</div>',
        f"<h2>Cold start and size</h2>{sortable(deployment_columns(first), [('', first)])}",
    )


def _conditions(report: BenchmarkReport, command: str) -> Sequence[str]:
    """Return what was measured on, and how to do it again."""
    how = f"<h2>Measure again</h2><p><code>{escape(command)}</code></p>" if command else ""
    return f"<h2>Machine</h2><p>{escape(machine_line(report.environment))}</p>", how


def _equivalence(reports: Sequence[EquivalenceReport]) -> str:
    rows = [
        (
            escape(Path(report.artifact.path).name),
            _verdict(report),
            f"{report.top1_agreement:.2%}",
            "-" if report.max_rel_error is None else f"{report.max_rel_error:.2e}",
            f"{report.images:,}",
            escape(f"{report.runtime} on {report.device}"),
        )
        for report in reports
    ]
    heads = ("file", "verdict", "same label", "max error", "images", "runtime")
    sizes = ", ".join(map(str, sorted({size for report in reports for size in report.batch_sizes})))
    note = (
        "Each file as saved, against eager PyTorch on real images. Errors are relative to the largest logit. "
        f"Batch sizes: {sizes or 'none'}."
    )
    return f"<h2>Equivalence</h2><p>{note}</p>{table(heads, rows, numbers=(2, 3, 4))}"


def _verdict(report: EquivalenceReport) -> str:
    if report.passed:
        return '<span class="good">equivalent</span>'
    return f'<span class="bad">NOT equivalent</span><br>{escape("; ".join(report.reasons))}'


def _training(checkpoint: Artifact, environment: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """Return what is known of the network's training, and some of its answers."""
    manifest = checkpoint.require_manifest()
    training, plots = manifest.training, training_plots(manifest, environment)
    rows = []
    for epoch in training.get("epochs", []):
        loss, on_train, on_test = (epoch[name] for name in ("train_loss", "train_accuracy", "test_accuracy"))
        rows.append((str(epoch["epoch"]), f"{loss:.3f}", f"{on_train:.4f}", f"{on_test:.4f}"))
    if not rows:
        return ""
    trained_on = training.get("train_images", training.get("images"))  # as older checkpoints call it
    note = f"On {training['test_images']:,} test images; trained on {trained_on:,}."
    heads = ("epoch", "training loss", "training accuracy", "test accuracy")
    figures = f"<details><summary>Every epoch</summary>{table(heads, rows, numbers=range(4))}</details>"
    shown = f'<div class="plots">{"".join(map(_figure, plots.values()))}</div>'
    return f"<h2>Accuracy</h2><p>{note}</p>{shown}{figures}{render_samples(samples)}"


def _files(artifacts: Iterable[Artifact]) -> str:
    rows = []
    for artifact in artifacts:
        path, sha256 = artifact.path, artifact.sha256
        short = f'<code>{sha256[:12]}<span class="rest">{sha256[12:]}</span><span></span></code>'
        rows.append((escape(path.name), size(path.stat().st_size), escape(artifact.format), short))
    return f"<h2>Files</h2>{table(('file', 'size', 'format', 'SHA-256'), rows, numbers=(1,))}"


def _figure(plot: Plot) -> str:
    picture = f'<figure role="img" aria-label="{escape(plot.title)}">{plot.inline()}</figure>'
    return f"<section><h3>{escape(plot.title)}</h3><p>{escape(plot.note)}</p>{picture}</section>"
