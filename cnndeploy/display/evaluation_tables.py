"""The table of an evaluation."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.display.cells import add_row, run_line
from cnndeploy.evaluation import Evaluation, wilson


def evaluation_table(evaluation: Evaluation) -> Group:
    """Show the accuracy on all images and for each class."""
    table = Table(title=f"Accuracy of {Path(evaluation.artifact).name}", title_justify="left")
    table.add_column("class")
    for heading in ("images", "right", "accuracy", "95% interval"):
        table.add_column(heading, justify="right")
    for label, correct, images in (
        *((one.label, one.correct, one.images) for one in evaluation.per_class if one.images),
        ("all", evaluation.correct, evaluation.images),
    ):
        if label == "all":
            table.add_section()
        low, high = wilson(correct, images)
        add_row(
            table,
            label,
            f"{images:,}",
            f"{correct:,}",
            f"{correct / images:.4f}",
            f"{low:.4f} to {high:.4f}",
        )
    return Group(table, Text(run_line(evaluation.runtime, evaluation.device, evaluation.threads)))
