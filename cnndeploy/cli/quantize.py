"""``cnndeploy quantize``: a smaller file of int8 or float16 that keeps a budget of accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._run_options import run_options
from cnndeploy.words import printable


@click.command()
@click.argument("checkpoint", type=common.PATH)
@click.option(
    "--output",
    type=common.PATH,
    help="File to write.  [default: CHECKPOINT's name with .int8.onnx or .float16.onnx]",
)
@click.option(
    "--precision", type=click.Choice(["int8", "float16"]), default="int8", help="float16 is meant for CUDA."
)
@common.budget_option
@click.option(
    "--calibration",
    type=int,
    metavar="N",
    help="Training images that the ranges of activations come from.  [default: 512, if there are so many]",
)
@click.option(
    "--against",
    type=common.PATH,
    help="The checkpoint that CHECKPOINT was compressed from, against which the loss is measured.",
)
@common.model_input_option
@run_options
@common.measured_on
@common.source_option
@common.json_file_option
def command(checkpoint: Path, output: Path | None, json_file: str | None, **settings: Any) -> None:
    """Make an int8 file that keeps a budget of accuracy.

    It is an ONNX file, smaller than that of cnndeploy export. The calibration method, and the layers that stay in
    float, are chosen on training images; the loss is measured on test images. The upper end of its paired 95%
    interval must be within the budget. If no file keeps it, nothing is written and the exit code is 5. Whether the
    file is faster than float32 on this machine is measured too. CHECKPOINT may also be an ONNX file that cnndeploy
    import wrote.

    \b
    Examples:
      cnndeploy quantize lenet.pt
      cnndeploy quantize googlenet.pt --budget 0.3 --output small.onnx
      cnndeploy quantize googlenet.pt --precision float16 --device cuda
    """
    from cnndeploy.display.verdict_tables import quantized_table
    from cnndeploy.quantization.quantize import quantize

    common.say_split(settings["data"], checkpoint, settings["images"])
    with progress_bar(f"Quantizing {checkpoint.name}") as update:
        quantized = quantize(checkpoint, output, command=common.command_line(), progress=update, **settings)
    common.show(quantized, quantized_table, json_file)
    artifact = quantized.artifact
    size = f"{artifact.path.stat().st_size:,} bytes  SHA-256 {artifact.sha256[:16]}"
    common.say(f"Wrote {printable(str(artifact.path))}  {size}", err=json_file == "-")
    common.say(str(quantized.certification), err=json_file == "-")
    if quantized.speed is None or quantized.speed.verdict != "SLOWER":
        common.say_load(artifact.path, settings["run"], json_file)
