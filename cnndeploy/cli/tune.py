"""``cnndeploy tune``: find the fastest way to deploy a checkpoint here, and write it as a folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._messages import in_options
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._stop import PoliteStop
from cnndeploy.errors import BenchmarkError, Stopped


@click.command()
@click.argument("checkpoint", type=common.PATH)
@click.option(
    "--output", type=common.PATH, help="The folder to write.  [default: CHECKPOINT's name with .deploy]"
)
@click.option(
    "--budget",
    type=common.POINTS,
    metavar="POINTS",
    default=0.5,
    help="Percentage points of accuracy that may be lost; 0 allows only equivalent files.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput"]),
    default="latency",
    help="latency: the shortest time for a call; throughput: the most images a second.",
)
@click.option(
    "--batch-size", type=common.COUNT, help="Images in one call.  [default: 1, or 64 for throughput]"
)
@click.option("--threads", type=common.THREADS, help="CPU threads, at most 256.  [default: all usable CPUs]")
@click.option(
    "--device",
    default="cpu",
    metavar="cpu|cuda[:N]",
    help="Fails if the device is not available; never falls back.",
)
@click.option(
    "--max-minutes",
    type=common.POSITIVE,
    default=15.0,
    help="Time limit in minutes; when the time is up, the best so far is verified and written.",
)
@click.option(
    "--calibration",
    type=common.COUNT,
    help="Training images that int8 is calibrated on.  [default: 512, or as many as there are]",
)
@common.data_option
@common.source_option
@common.json_file_option
def command(checkpoint: Path, output: Path | None, json_file: str | None, **settings: Any) -> None:
    """Find the fastest way to run a checkpoint here.

    Tries files, runtimes and settings on this machine, and writes a folder with the file, its certificate and
    plan.json. load, predict, evaluate, bench, verify and inspect open this folder like a file. tuning.json and
    frontier.png say what else was tried. The file is verified first: it is equivalent, or it is lossy and keeps the
    budget. CHECKPOINT may also be an ONNX file that cnndeploy import wrote.

    \b
    Examples:
      cnndeploy tune lenet.pt --output lenet.deploy
      cnndeploy tune nin.pt --budget 0 --objective throughput --max-minutes 30
    """
    from cnndeploy.display.benchmark_tables import tuning_table
    from cnndeploy.display.plots import tuning_plot  # needs matplotlib, which is found out before the work
    from cnndeploy.files import write_file
    from cnndeploy.tuning.tune import tune

    words = partial(in_options, command=click.get_current_context().command)
    settings |= {"command": common.command_line()}
    common.say_split(settings["data"], checkpoint)
    try:
        with (
            PoliteStop() as stop,
            progress_bar("Starting", refreshes_a_second=1, stop=stop) as update,
        ):
            report = tune(checkpoint, output, should_stop=stop, progress=update, **settings)
    except Stopped:
        common.say("Stopped; nothing was written.", err=True)
        raise SystemExit(stop.exit_code or Stopped.exit_code) from None
    except BenchmarkError as error:
        if error.report is not None:  # minutes of timing are worth something even if nothing can be deployed
            common.show(error.report, partial(tuning_table, written=False, words=words), json_file)
        raise
    common.show(report, partial(tuning_table, words=words), json_file)
    write_file(Path(report.folder, "frontier.png"), tuning_plot(report).png())
    common.say_load(Path(report.folder), json_file=json_file)
