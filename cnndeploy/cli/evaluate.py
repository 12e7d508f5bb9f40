"""``cnndeploy evaluate``: the test accuracy of a checkpoint, an exported file or a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._run_options import run_and_precision
from cnndeploy.machine import patient_threads


@click.command(context_settings={"allow_extra_args": True})  # to say what they are for
@click.argument("file", type=common.PATH)
@run_and_precision
@click.option("--batch-size", type=common.COUNT, help="Images in one call; 256 by default.")
@click.option(
    "--what-if", is_flag=True, help="Show what the usual mistakes of preprocessing would cost this network."
)
@common.measured_on
@common.source_option
@common.json_file_option
def command(
    file: Path, json_file: str | None, what_if: bool, batch_size: int | None, **settings: Any
) -> None:
    """Measure the accuracy of a file on the test images.

    The file is a checkpoint or what was exported from it. A folder that cnndeploy tune wrote runs as its plan says;
    options override the plan. A folder of images, --data, has a folder for each class; it may be split into train and
    val or test, and if it is not, a fifth of the images are held out. To classify images that nobody has labelled, use
    cnndeploy predict.

    \b
    Examples:
      cnndeploy evaluate lenet.onnx
      cnndeploy evaluate lenet.pt --images 1000 --json accuracy.json
      cnndeploy evaluate shoes.pt --data photos
      cnndeploy evaluate shoes.pt --what-if
    """
    from cnndeploy.display.verdict_tables import evaluation_table, what_if_table
    from cnndeploy.evaluation import evaluate
    from cnndeploy.what_if import what_if as accuracies_of_mistakes

    if others := click.get_current_context().args:
        predict = common.command_line("predict", file, *others, *common.source_given())
        raise click.UsageError(
            f"evaluate takes one model file and runs the test images of the data set. For images of your own: {predict}"
        )
    if what_if and batch_size is not None:
        raise click.UsageError("--batch-size does not apply to --what-if")
    common.say_split(settings["data"], file, settings["images"])
    with progress_bar(f"Evaluating {file.name}") as update, patient_threads():
        if what_if:
            mistakes = accuracies_of_mistakes(file, progress=update, **settings)
        else:
            evaluation = evaluate(file, progress=update, batch_size=batch_size or 256, **settings)
    if what_if:
        common.show(mistakes, what_if_table, json_file)
    else:
        common.show(evaluation, evaluation_table, json_file)
