"""``cnndeploy evaluate``: the test accuracy of a checkpoint or an exported file."""

from __future__ import annotations

from pathlib import Path

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    RegisteredName,
    console_for,
    data_dir_option,
    device_option,
    json_file_option,
    progress_bar,
    threads_option,
    write_json,
)
from cnndeploy.machine import patient_threads


@click.command()
@click.argument("file", type=PATH)
@click.option("--runtime", type=RegisteredName("runtimes"), help="[default: the format's own]")
@device_option
@threads_option
@click.option("--batch-size", type=POSITIVE, default=256, show_default=True, help="Images a run.")
@click.option("--images", type=POSITIVE, help="Use the first N test images.  [default: all 10,000]")
@data_dir_option
@json_file_option
def command(
    file: Path,
    runtime: str | None,
    device: str,
    threads: int | None,
    batch_size: int,
    images: int | None,
    data_dir: Path | None,
    json_file: str | None,
) -> None:
    """Measure the accuracy of a checkpoint or an exported file on the test images.

    \b
    Example:
      cnndeploy evaluate lenet.onnx
    """
    from cnndeploy.display.tables import evaluation_table
    from cnndeploy.evaluation import evaluate
    from cnndeploy.files import check_writable

    if json_file not in (None, "-"):
        check_writable(str(json_file), file)
    with progress_bar(f"Evaluating {file.name}") as update, patient_threads():
        found = evaluate(
            file,
            runtime=runtime,
            device=device,
            threads=threads,
            images=images,
            batch_size=batch_size,
            data_dir=data_dir,
            on_batch=update,
        )
    if json_file is not None:
        write_json(json_file, found.to_dict())
    console_for(json_file).print(evaluation_table(found))
