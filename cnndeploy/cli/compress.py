"""``cnndeploy compress``: a smaller and faster network that keeps a budget of accuracy."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._stop import PoliteStop
from cnndeploy.errors import Stopped
from cnndeploy.machine import patient_threads
from cnndeploy.words import printable


@click.command()
@click.argument("checkpoint", type=common.PATH)
@click.option(
    "--output",
    type=common.PATH,
    help="File to write or replace: .onnx, or .pt for a checkpoint.  [default: CHECKPOINT's name with .small.onnx]",
)
@common.budget_option
@click.option(
    "--method",
    "methods",
    type=common.CommaList(click.Choice(["low-rank", "channels", "int8"])),
    multiple=True,
    metavar="low-rank,channels,int8",
    help="The methods to try.  [default: all; if --output ends in .pt, all but int8]",
)
@click.option(
    "--against",
    type=common.PATH,
    help="The original checkpoint, if CHECKPOINT is itself compressed.",
)
@click.option(
    "--max-minutes",
    type=common.POSITIVE,
    default=20.0,
    help="Minutes after which the search ends; then the best so far is measured and written. If nothing was "
    "found by then, int8 of the whole network is tried for up to a quarter of that time more.",
)
@common.threads_option
@common.measured_on
@common.source_option
@common.json_file_option
def command(
    checkpoint: Path,
    output: Path | None,
    methods: tuple[tuple[Any, ...], ...],
    threads: int | None,
    json_file: str | None,
    **settings: Any,
) -> None:
    """Make a network smaller and faster within a budget of accuracy.

    Layers are split into two of low rank, and channels that never fire or have little effect are removed. The layers
    that save the most time for the accuracy lost come first. If there is time, the smaller network is repaired: it is
    trained on training images, to match their labels and the original's outputs. Then it is quantised to int8.

    Sizes and settings are chosen on training images, and the loss is measured on test images: the upper end of its
    paired 95% interval must be within the budget. A method that does not make the file faster on this machine is
    left out. If no file keeps the budget, nothing is written and the exit code is 5. Ctrl-C ends the search; the
    best network so far, if there is one, is measured and written.

    \b
    Examples:
      cnndeploy compress alexnet.pt --budget 0.5 --output small.onnx
      cnndeploy compress alexnet.pt --output small.pt
      cnndeploy compress shoes.pt --data photos --method low-rank
    """
    with patient_threads():
        from cnndeploy.compression.compress import compress
    from cnndeploy.display.verdict_tables import compressed_table
    from cnndeploy.run import Run

    target = checkpoint.with_suffix(".small.onnx") if output is None else output
    common.say_split(settings["data"], checkpoint, settings["images"])
    settings |= {"methods": tuple(chain.from_iterable(methods)), "run": Run(threads=threads)}
    try:
        with PoliteStop() as stop, progress_bar(f"Compressing {checkpoint.name}", 1, stop) as update:
            compressed = compress(checkpoint, target, should_stop=stop, progress=update, **settings)
    except Stopped as error:
        if not stop():  # the time was over
            raise
        common.say("Stopped before a network was found; nothing was written.", err=True)
        raise SystemExit(stop.exit_code or error.exit_code) from None
    if stop():
        common.say("Stopped; this is the best so far:", err=True)
    common.show(compressed, compressed_table, json_file)
    artifact = compressed.artifact
    common.say(f"Wrote {printable(str(artifact.path))}  SHA-256 {artifact.sha256[:16]}", err=json_file == "-")
    common.say(str(compressed.certification), err=json_file == "-")
    if artifact.format == "checkpoint":
        common.say_next("export", artifact.path, "--format", "onnx", json_file=json_file)
    else:
        common.say_load(artifact.path, settings["run"], json_file)
    if stop():
        raise SystemExit(stop.exit_code)
