"""``cnndeploy evaluate``: the test accuracy of a checkpoint, an exported file or a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.machine import patient_threads


@click.command()
@click.argument("file", type=common.PATH)
@common.run_options
@click.option("--batch-size", type=common.COUNT, default=256, help="Images in one call.")
@common.measured_on
@common.json_file_option
def command(file: Path, json_file: str | None, **settings: Any) -> None:
    """Measure the accuracy of a checkpoint, an exported file or a deployment on the test images.

    A folder that cnndeploy tune wrote runs as its plan says; options override the plan. To classify images of your own,
    use cnndeploy predict.

    \b
    Examples:
      cnndeploy evaluate lenet.onnx
      cnndeploy evaluate lenet.pt --images 1000 --json accuracy.json
    """
    from cnndeploy.display.verdict_tables import evaluation_table
    from cnndeploy.evaluation import evaluate

    with common.progress_bar(f"Evaluating {file.name}") as update, patient_threads():
        evaluation = evaluate(file, progress=update, **settings)
    common.show(evaluation, evaluation_table, json_file)
