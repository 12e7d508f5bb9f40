"""One self-contained HTML page: accuracy, equivalence, latency, files, the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import BenchmarkReport
from cnndeploy.display.benchmark_page import benchmark_sections
from cnndeploy.display.html import bar, document, table
from cnndeploy.display.units import size
from cnndeploy.verification.report import EquivalenceReport


def render(
    artifacts: Sequence[Artifact],
    equivalence: Sequence[EquivalenceReport],
    timings: BenchmarkReport,
    command: str,
) -> str:
    """Return the page, HTML that loads nothing from anywhere.

    Args:
        artifacts: The checkpoint first, then what was exported from it.
        equivalence: What verification found, for each exported file.
        timings: What the benchmark measured.
        command: What to type to measure it again.
    """
    manifest = artifacts[0].require_manifest()
    accuracy = manifest.training.get("test_accuracy")
    summary = "untrained weights" if accuracy is None else f"test accuracy {accuracy:.2%}"
    passed = all(report.passed for report in equivalence)
    verdict = (
        "every exported file is equivalent to its checkpoint" if passed else "NOT every file is equivalent"
    )
    sections = (
        f"<h1>{escape(manifest.architecture)}: {escape(summary)}</h1>",
        f'<p class="{"good" if passed else "bad"}">{verdict}</p>',
        _accuracy(artifacts[0]),
        _equivalence(equivalence),
        _files(artifacts),
        *benchmark_sections(timings, command),
    )
    return document(f"cnndeploy: {manifest.architecture}", sections)


def _accuracy(checkpoint: Artifact) -> str:
    training = checkpoint.require_manifest().training
    epochs = training.get("epochs", [])
    rows = [
        (
            str(epoch["epoch"]),
            f"{epoch['train_loss']:.3f}",
            f"{epoch['train_accuracy']:.4f}",
            f"{epoch['test_accuracy']:.4f}",
            bar(epoch["test_accuracy"]),
        )
        for epoch in epochs
    ]
    if not rows:
        return ""
    trained_on = training.get("train_images", training["images"])  # as older checkpoints call it
    note = f"On {training['test_images']:,} test images; trained on {trained_on:,}."
    heads = ("epoch", "training loss", "training accuracy", "test accuracy", "")
    return f"<h2>Accuracy</h2><p>{note}</p>{table(heads, rows, numbers=range(4))}"


def _equivalence(reports: Sequence[EquivalenceReport]) -> str:
    rows = [
        (
            escape(Path(report.artifact.path).name),
            '<span class="good">equivalent</span>'
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
    note = (
        "Each file as saved, against eager PyTorch on real images. Errors are relative to the largest logit."
    )
    return f"<h2>Equivalence</h2><p>{note}</p>{table(heads, rows, numbers=(2, 3, 4))}"


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
    return f"<h2>Files</h2>{table(('file', 'format', 'size', 'SHA-256'), rows, numbers=(2,))}"
