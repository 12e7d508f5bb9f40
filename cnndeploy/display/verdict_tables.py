"""Tables of verdicts: equivalence, and a loss of accuracy against its budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.display.cells import add_row, run_line, yes_or_no
from cnndeploy.verification.budget_report import BudgetReport
from cnndeploy.verification.divergence import ModuleError
from cnndeploy.verification.report import EquivalenceReport, SideFacts
from cnndeploy.verification.verdict import Verdict


def verdict_table(verdict: Verdict) -> Group:
    """Show a verdict of either kind with its figures."""
    return _TABLES[verdict.kind](verdict)


def equivalence_table(reports: Sequence[EquivalenceReport]) -> Group:
    """Show verdicts and figures, a column for each artifact."""
    table = Table(title="Equivalence with eager PyTorch", title_justify="left")
    table.add_column("")
    for report in reports:
        table.add_column(Text(Path(report.artifact.path).name), overflow="fold")
    rows: dict[str, Callable[[EquivalenceReport], str | Text]] = {
        "equivalent": lambda r: yes_or_no(r.passed),
        "against": lambda r: Path(r.against.path).name,
        "runtime": lambda r: run_line(r.runtime, r.device, r.threads),
        "images": lambda r: f"{r.images:,}",
        "batch sizes": lambda r: ", ".join(map(str, r.batch_sizes)),
        "max absolute error": lambda r: _error(r.max_abs_error),
        "max relative error": lambda r: f"{_error(r.max_rel_error)} (tolerance {r.tolerance.relative:g})",
        "top-1 agreement": lambda r: f"{r.top1_agreement:.2%}" if r.images else "not compared",
        "against float64": _oracle_cell,
        "alone or in a batch": _invariance_cell,
        "labels that flipped": _flipped_cell,
        "no flip was possible": lambda r: f"{r.decisions.certified:,} images" if r.decisions else "-",
        "test accuracy": _accuracy_cell,
        "artifact was run": lambda r: _side_cell(r.artifact_side),
        "checkpoint was run": lambda r: _side_cell(r.against_side),
    }
    if any(report.other_image_sizes for report in reports):
        rows["images of other sizes"] = _sizes_cell
    if any(report.divergence for report in reports):
        rows["first divergence"] = _divergence_cell
        rows["error growth"] = _growth_cell
    for label, value in rows.items():
        add_row(table, label, *(value(report) for report in reports))
    return Group(table)


def _error(error: float | None) -> str:
    return "not compared" if error is None else f"{error:.3g}"


def _oracle_cell(report: EquivalenceReport) -> str:
    if (oracle := report.oracle) is None:
        return "-"
    return f"{oracle.ratio:.2f} times eager's own error (limit {oracle.limit:g}), {oracle.images:,} images"


def _invariance_cell(report: EquivalenceReport) -> str:
    if (invariance := report.batch_invariance) is None:
        return "-"
    return f"spread {invariance.max_rel_spread:.3g} (limit {invariance.limit:g})"


def _sizes_cell(report: EquivalenceReport) -> str:
    return ", ".join(f"{height} x {width}" for height, width in report.other_image_sizes) or "-"


def _side_cell(side: SideFacts | None) -> str:
    """Count the parts on each place, and list the settings."""
    if side is None:
        return "-"
    places = Counter(side.placement.values())
    placed = ", ".join(f"{count} parts on {place}" for place, count in places.items())
    settings = ", ".join(
        f"{name} {('off', 'on')[value] if isinstance(value, bool) else value}"
        for name, value in side.settings.items()
    )
    return f"{placed}; {settings}"


def _divergence_cell(report: EquivalenceReport) -> str:
    return report.divergence.description if report.divergence else "-"


def _growth_cell(report: EquivalenceReport) -> str:
    """Show the errors of the modules around the first that departs, and of the last one."""
    if report.divergence is None or not report.divergence.modules:
        return "-"
    modules = report.divergence.modules
    last = len(modules) - 1
    first = next((index for index, module in enumerate(modules) if module.departs), last)
    shown = [index for index in range(len(modules)) if first - 2 <= index <= first + 2 or index == last]
    lines: list[str] = []
    for index in shown:
        if lines and index - 1 not in shown:
            lines.append("...")
        lines.append(_growth_line(modules[index]))
    return "\n".join(lines)


def _growth_line(module: ModuleError) -> str:
    error = module.artifact_error
    shown = "not finite, or of another shape" if error is None else f"{error:.1e}"
    return f"{module.module} ({module.kind}): {shown}, eager {module.eager_error:.1e}"


def _flipped_cell(report: EquivalenceReport) -> str:
    if report.decisions is None:
        return "-"
    flipped = report.decisions.flipped
    if not flipped:
        return "0"
    return f"{len(flipped)}: images {', '.join(map(str, flipped[:5]))}{' ...' if len(flipped) > 5 else ''}"


def _accuracy_cell(report: EquivalenceReport) -> str:
    if (decisions := report.decisions) is None:
        return "-"
    accuracies = f"{decisions.artifact_accuracy:.4f}, checkpoint {decisions.checkpoint_accuracy:.4f}"
    return f"{accuracies} (p = {decisions.mcnemar_p:.2g})"


def budget_table(report: BudgetReport) -> Group:
    """Show a lossy file's verdict and figures."""
    table = Table(title=f"Loss of {Path(report.artifact.path).name}", title_justify="left")
    table.add_column("")
    table.add_column("", overflow="fold")
    rows: dict[str, str | Text] = {
        "within budget": yes_or_no(report.passed),
        "budget": f"{report.budget_points:g} percentage points",
        "against": Path(report.against.path).name,
        "runtime": run_line(report.runtime, report.device, report.threads),
    }
    if report.options:
        rows["options"] = ", ".join(f"{name} {value}" for name, value in report.options.items())
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
    for label, cell in rows.items():
        add_row(table, label, cell)
    return Group(table)


_TABLES: dict[str, Callable[[Any], Group]] = {
    "equivalence": lambda report: equivalence_table([report]),
    "budget": budget_table,
}
