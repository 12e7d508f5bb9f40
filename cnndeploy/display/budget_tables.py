"""Tables of lossy files: the loss against its budget, and the settings that were tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.display.units import size
from cnndeploy.verification.budget_report import BudgetReport

if TYPE_CHECKING:
    from cnndeploy.quantization.quantize import Quantized


def budget_table(report: BudgetReport) -> Group:
    """Verdict and figures."""
    table = Table(title=f"Loss of {Path(report.artifact.path).name}", title_justify="left")
    table.add_column("")
    table.add_column("", overflow="fold")
    rows: dict[str, str | Text] = {
        "within budget": Text("yes", "green") if report.within_budget else Text("NO", "bold red"),
        "budget": f"{report.budget_points:g} percentage points",
        "against": Path(report.against.path).name,
        "runtime": f"{report.runtime} on {report.device}, {report.threads} threads",
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
        table.add_row(label, cell if isinstance(cell, Text) else Text(cell))
    return Group(table)


def quantized_table(found: Quantized) -> Group:
    """The settings that were tried, and what became of the one that was chosen."""
    return Group(*_trials(found), budget_table(found.report), *map(Text, _outcome(found)))


def _trials(found: Quantized) -> Iterator[Table]:
    if not found.trials:
        return
    table = Table(title=f"Settings tried on {found.trials[0].images:,} training images", title_justify="left")
    table.add_column("method")
    for heading in ("layers in float", "logit error", "labels changed", "loss expected on test images"):
        table.add_column(heading, justify="right")
    for trial in found.trials:
        cells = (
            trial.method,
            f"{len(trial.float_layers)}",
            f"{trial.logit_error:.2%}",
            f"{trial.changed:.2%}",
            f"up to {trial.predicted_high_points:.2f} points",
        )
        table.add_row(*map(Text, cells))
    yield table


def _outcome(found: Quantized) -> Iterator[str]:
    quantization = found.artifact.require_manifest().quantization or {}
    precision = str(quantization["precision"])
    bytes_now = found.artifact.path.stat().st_size
    yield f"Size: {size(bytes_now)}, float32 {size(found.float_bytes)}"
    if precision == "int8":
        left = ", ".join(found.float_layers) or "none"
        yield f"Layers left in float: {len(found.float_layers)} of {quantization['layers']}: {left}"
    if (row := found.speed) is not None:
        yield (
            f"Speed here, {row.runtime} on {row.device}: {row.ratio:.2f} times as fast as float32 "
            f"({row.ratio_low:.2f} to {row.ratio_high:.2f}): {row.verdict}"
        )
        if row.verdict == "SLOWER":
            yield f"{precision} is slower than float32 here: ship the float file."
        elif row.verdict != "FASTER":
            yield f"{precision} is not seen to be faster than float32 here: ship the float file, unless size counts."
    for warning in found.speed_warnings:
        yield f"Warning: {warning}"
    if precision == "float16" and found.report.device == "cpu":
        yield "float16 is meant for CUDA; on the CPU most of it is cast to float32 and back."
