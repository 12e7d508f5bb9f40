"""``cnndeploy tune``: find the fastest way to deploy a checkpoint here, and write it as a folder."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click

from cnndeploy.cli._common import (
    INTERRUPTED,
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    TERMINATED,
    PoliteStop,
    console_for,
    data_dir_option,
    json_file_option,
    progress_bar,
    threads_option,
    write_json,
)
from cnndeploy.errors import Stopped


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("--output", type=PATH, help="The folder to write.  [default: CHECKPOINT with .deploy]")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, max=100),
    default=0.5,
    show_default=True,
    help="Percentage points of accuracy that may be lost; 0 admits equivalent files only.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    show_default=True,
    help="Of a call, or in images a second; chooses the batch size.",
)
@click.option("--batch-size", type=POSITIVE, help="Images in a call.  [default: 1, or 64 for throughput]")
@threads_option
@click.option(
    "--device", default="cpu", show_default=True, metavar="cpu|cuda[:N]", help="Fails if unavailable."
)
@click.option(
    "--max-minutes",
    type=POSITIVE_NUMBER,
    default=5.0,
    show_default=True,
    help="Then the best so far is verified and written.",
)
@click.option(
    "--calibration",
    type=POSITIVE,
    default=512,
    show_default=True,
    help="Training images to calibrate int8 on.",
)
@data_dir_option
@json_file_option
def command(checkpoint: Path, output: Path | None, json_file: str | None, **settings: Any) -> None:
    """Find the fastest file, runtime and settings for a checkpoint on this machine.

    Writes a folder with the file, its certificate and plan.json, which load, predict, evaluate, bench, verify and
    inspect open; tuning.json and frontier.png say what else was tried. Only a file that is verified, or if it is lossy
    loses no more than the budget, is written.

    \b
    Examples:
      cnndeploy tune lenet.pt --output lenet.deploy
      cnndeploy tune nin.pt --budget 0 --objective throughput --max-minutes 10
    """
    from cnndeploy.display.benchmark_tables import tuning_table
    from cnndeploy.display.plots import tuning_plot  # needs matplotlib, which is found out before the work
    from cnndeploy.files import write_file
    from cnndeploy.tuning.tune import tune

    again = shlex.join(["cnndeploy", *sys.argv[1:]])
    with PoliteStop() as stop, progress_bar("Starting", refreshes_a_second=1) as update:
        try:
            report = tune(checkpoint, output, command=again, should_stop=stop, progress=update, **settings)
        except Stopped as error:
            click.echo(f"Stopped: {error}.", err=True)
            sys.exit(INTERRUPTED if stop.signal == signal.SIGINT else TERMINATED)
    if json_file is not None:
        write_json(json_file, report.to_dict())
    console_for(json_file).print(tuning_table(report))
    write_file(Path(report.folder, "frontier.png"), tuning_plot(report).png())
