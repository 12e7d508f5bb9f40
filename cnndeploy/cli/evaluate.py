"""``cnndeploy evaluate``: the test accuracy of a checkpoint, an exported file or a deployment."""

from __future__ import annotations

from pathlib import Path

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    console_for,
    json_file_option,
    measured_on,
    progress_bar,
    run_options,
    write_json,
)
from cnndeploy.machine import patient_threads
from cnndeploy.run import Run


@click.command()
@click.argument("file", type=PATH)
@run_options
@click.option("--batch-size", type=POSITIVE, default=256, show_default=True, help="Images in one call.")
@measured_on
@json_file_option
def command(
    file: Path, run: Run, batch_size: int, images: int | None, data_dir: Path | None, json_file: str | None
) -> None:
    """Measure the accuracy of a checkpoint, an exported file or a deployment on the test images.

    A folder that cnndeploy tune wrote runs as its plan says; options override the plan.

    \b
    Example:
      cnndeploy evaluate lenet.onnx
    """
    from cnndeploy.display.verdict_tables import evaluation_table
    from cnndeploy.evaluation import evaluate

    with progress_bar(f"Evaluating {file.name}") as update, patient_threads():
        evaluation = evaluate(
            file, run=run, images=images, batch_size=batch_size, data_dir=data_dir, progress=update
        )
    if json_file is not None:
        write_json(json_file, evaluation.to_dict())
    console_for(json_file).print(evaluation_table(evaluation))
