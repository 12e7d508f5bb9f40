"""Tables of what was found of a file: equivalence, a loss of accuracy against its budget, accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from rich.console import Group
from rich.text import Text

from cnndeploy.display.cells import add_row, pairs, run_line, size, table_of, yes_or_no
from cnndeploy.evaluation import Evaluation, wilson
from cnndeploy.verification.divergence import ModuleError
from cnndeploy.verification.report import BudgetReport, EquivalenceReport, SideFacts, Verdict

if TYPE_CHECKING:
    from cnndeploy.quantization.quantize import Quantized

T = TypeVar("T")
_Cell = Callable[[EquivalenceReport], str | Text]


def verdict_table(verdict: Verdict) -> Group:
    """Show a verdict of either kind with its figures."""
    if isinstance(verdict, BudgetReport):
        return budget_table(verdict)
    return equivalence_table([cast(EquivalenceReport, verdict)])


def _against(verdict: Verdict) -> str:
    """Return the checkpoint's name if it lies beside the artifact, else its path: another may have the same name."""
    artifact, against = (Path(one.path) for one in (verdict.artifact, verdict.against))
    return against.name if against.absolute().parent == artifact.absolute().parent else str(against)


def _error(error: float | None) -> str:
    return "not compared" if error is None else f"{error:.3g}"


def _flipped(flipped: Sequence[int]) -> str:
    first = ", ".join(map(str, flipped[:5]))
    return f"{len(flipped)}: images {first}{' ...' if len(flipped) > 5 else ''}" if flipped else "0"


def _side(side: SideFacts) -> str:
    """Count the parts on each place, and list the settings."""
    placed = (f"{count} parts on {place}" for place, count in Counter(side.placement.values()).items())
    words = {True: "on", False: "off"}
    settings = {name: words[v] if isinstance(v, bool) else v for name, v in side.settings.items()}
    return f"{', '.join(placed)}; {pairs(settings)}"


def _growth(modules: Sequence[ModuleError]) -> str:
    """Show the errors of the modules around the first that departs, and of the last one."""
    last = len(modules) - 1
    first = next((index for index, module in enumerate(modules) if module.departs), last)
    lines: list[str] = []
    for index, module in enumerate(modules):
        if abs(index - first) <= 2 or index == last:
            error = module.artifact_error
            shown = "not finite, or of another shape" if error is None else f"{error:.1e}"
            lines.append(f"{module.module} ({module.kind}): {shown}, eager {module.eager_error:.1e}")
        elif lines and lines[-1] != "...":
            lines.append("...")
    return "\n".join(lines) or "-"


def _part(part: Callable[[EquivalenceReport], T | None], show: Callable[[T], str]) -> _Cell:
    return lambda report: "-" if (value := part(report)) is None else show(value)


_ROWS: dict[str, _Cell] = {
    "equivalent": lambda r: yes_or_no(r.passed),
    "against": _against,
    "runtime": lambda r: run_line(r.runtime, r.device, r.threads),
    "images": lambda r: f"{r.images:,}",
    "batch sizes": lambda r: ", ".join(map(str, r.batch_sizes)),
    "max absolute error": lambda r: _error(r.max_abs_error),
    "max relative error": lambda r: f"{_error(r.max_rel_error)} (tolerance {r.tolerance.relative:g})",
    "top-1 agreement": lambda r: f"{r.top1_agreement:.2%}" if r.images else "not compared",
    "against float64": _part(
        lambda r: r.oracle,
        lambda o: f"{o.ratio:.2f} times eager's own error (limit {o.limit:g}), {o.images:,} images",
    ),
    "alone or in a batch": _part(
        lambda r: r.batch_invariance, lambda i: f"spread {i.max_rel_spread:.3g} (limit {i.limit:g})"
    ),
    "labels that flipped": _part(lambda r: r.decisions, lambda d: _flipped(d.flipped)),
    "no flip was possible": _part(lambda r: r.decisions, lambda d: f"{d.certified:,} images"),
    "test accuracy": _part(
        lambda r: r.decisions,
        lambda d: (
            f"{d.artifact_accuracy:.4f}, checkpoint {d.checkpoint_accuracy:.4f} (p = {d.mcnemar_p:.2g})"
        ),
    ),
    "artifact was run": _part(lambda r: r.artifact_side, _side),
    "checkpoint was run": _part(lambda r: r.against_side, _side),
    "images of other sizes": lambda r: ", ".join(f"{h} x {w}" for h, w in r.other_image_sizes) or "-",
    "first divergence": _part(lambda r: r.divergence, lambda d: d.description),
    "error growth": _part(lambda r: r.divergence, lambda d: _growth(d.modules)),
}
_RARE = {
    "images of other sizes": "other_image_sizes",
    "first divergence": "divergence",
    "error growth": "divergence",
}
"""Rows that are shown only if a report has this."""


def equivalence_table(reports: Sequence[EquivalenceReport]) -> Group:
    """Show verdicts and figures, a column for each artifact."""
    cells = (
        (label, *map(cell, reports))
        for label, cell in _ROWS.items()
        if label not in _RARE or any(getattr(report, _RARE[label]) for report in reports)
    )
    names = ("", *(Path(report.artifact.path).name for report in reports))
    return Group(table_of("Equivalence with eager PyTorch", names, cells, folds=range(1, len(names))))


def budget_table(report: BudgetReport) -> Group:
    """Show a lossy file's verdict and figures."""
    rows: dict[str, str | Text] = {
        "within budget": yes_or_no(report.passed),
        "budget": f"{report.budget_points:g} percentage points",
        "against": _against(report),
        "runtime": run_line(report.runtime, report.device, report.threads),
    }
    if report.options:
        rows["options"] = pairs(report.options)
    if report.images:
        rows |= {
            "images": f"{report.images:,}",
            "test accuracy": f"{report.artifact_accuracy:.4f}, checkpoint {report.checkpoint_accuracy:.4f}",
            "loss": f"{report.loss_points:.2f} points",
            "paired 95% interval": f"{report.loss_low_points:.2f} to {report.loss_high_points:.2f} points",
            "right before, wrong now": f"{report.lost:,} images",
            "wrong before, right now": f"{report.gained:,} images",
            "top-1 agreement": f"{report.top1_agreement:.2%}",
        }
    return Group(table_of(f"Loss of {Path(report.artifact.path).name}", ("", ""), rows.items(), folds=(1,)))


def quantized_table(quantized: Quantized) -> Group:
    """Show the settings that were tried, and what became of the one that was chosen."""
    cells = []
    for trial in quantized.trials:
        shares = (f"{trial.logit_error:.2%}", f"{trial.changed:.2%}")
        loss = f"up to {trial.predicted_high_points:.2f} points"
        cells.append((trial.method, f"{len(trial.float_layers)}", *shares, loss))
    title = f"Settings tried on {quantized.trials[0].images if cells else 0:,} training images"
    headings = ("method", "layers in float", "logit error", "labels changed", "loss expected on test images")
    trials = [table_of(title, headings, cells, numbers=range(1, 5))] if cells else []
    return Group(*trials, budget_table(quantized.report), *map(Text, _outcome(quantized)))


def _outcome(quantized: Quantized) -> Iterator[str]:
    settings = quantized.settings
    precision = str(settings["precision"])
    bytes_now = quantized.artifact.path.stat().st_size
    yield f"Size: {size(bytes_now)}, float32 {size(quantized.float_bytes)}"
    if precision == "int8":
        left = ", ".join(quantized.float_layers) or "none"
        yield f"Layers left in float: {len(quantized.float_layers)} of {settings['layers']}: {left}"
    if (row := quantized.speed) is not None:
        yield (
            f"Speed here, {row.runtime} on {row.device}: {row.ratio:.2f} times as fast as float32 "
            f"({row.ratio_low:.2f} to {row.ratio_high:.2f}): {row.verdict}"
        )
        if row.verdict == "SLOWER":
            yield f"{precision} is slower than float32 here: ship the float file."
        elif row.verdict != "FASTER":
            yield f"{precision} is not seen to be faster than float32 here: ship the float file, unless size counts."
    yield from (f"Warning: {warning}" for warning in quantized.speed_warnings)
    if precision == "float16" and quantized.report.device == "cpu":
        yield "float16 is meant for CUDA; on the CPU most of it is cast to float32 and back."


def evaluation_table(evaluation: Evaluation) -> Group:
    """Show the accuracy on all images and for each class."""
    title = f"Accuracy of {Path(evaluation.artifact).name}"
    headings = ("class", "images", "right", "accuracy", "95% interval")
    classes = (_accuracy(one.label, one.correct, one.images) for one in evaluation.per_class if one.images)
    table = table_of(title, headings, classes, numbers=range(1, 5))
    table.add_section()
    add_row(table, *_accuracy("all", evaluation.correct, evaluation.images))
    return Group(table, Text(run_line(evaluation.runtime, evaluation.device, evaluation.threads)))


def _accuracy(label: str, correct: int, images: int) -> tuple[str, ...]:
    low, high = wilson(correct, images)
    return label, f"{images:,}", f"{correct:,}", f"{correct / images:.4f}", f"{low:.4f} to {high:.4f}"
