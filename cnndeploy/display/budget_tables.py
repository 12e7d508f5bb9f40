"""The tables of ``cnndeploy quantize``: the settings that were tried, and what became of the chosen one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.display.units import size
from cnndeploy.display.verdict_tables import budget_table

if TYPE_CHECKING:
    from cnndeploy.quantization.quantize import Quantized


def quantized_table(found: Quantized) -> Group:
    """Show the settings that were tried, and what became of the one that was chosen."""
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
