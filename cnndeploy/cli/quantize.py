"""``cnndeploy quantize``: a smaller file of int8 or float16 that keeps a budget of accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from cnndeploy.cli._common import (
    PATH,
    RegisteredName,
    announce_certificate,
    console_for,
    data_dir_option,
    device_option,
    json_file_option,
    progress_bar,
    threads_option,
    write_json,
)


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option(
    "--precision",
    type=click.Choice(["int8", "float16"]),
    default="int8",
    show_default=True,
    help="float16 is meant for CUDA.",
)
@click.option(
    "--calibration",
    type=int,
    default=512,
    show_default=True,
    help="Training images to take the ranges of activations from.",
)
@click.option(
    "--budget",
    type=float,
    default=0.5,
    show_default=True,
    help="Percentage points of test accuracy that may be lost.",
)
@click.option("--output", type=PATH, help="[default: CHECKPOINT's name with .int8.onnx or .float16.onnx]")
@click.option(
    "--input",
    type=click.Choice(["tensor", "image"]),
    default="tensor",
    show_default=True,
    help="What the file takes: a prepared tensor, or raw 8-bit images.",
)
@click.option(
    "--runtime",
    type=RegisteredName("runtimes"),
    default="onnxruntime",
    show_default=True,
    help="What the loss and the speed are measured with.",
)
@device_option
@threads_option
@click.option("--images", type=int, help="Measure on the first N test images.  [default: all 10,000]")
@data_dir_option
@json_file_option
def command(
    checkpoint: Path,
    precision: Literal["int8", "float16"],
    calibration: int,
    budget: float,
    output: Path | None,
    input: Literal["tensor", "image"],
    runtime: str,
    device: str,
    threads: int | None,
    images: int | None,
    data_dir: Path | None,
    json_file: str | None,
) -> None:
    """Write a checkpoint as an ONNX file in int8 that loses no more accuracy than its budget.

    Ways to calibrate, and layers to leave in float, are chosen on training images; the loss is measured on test
    images. The budget is held against the upper end of the paired 95% interval of the loss. If nothing keeps it,
    nothing is written and it exits with 5. Whether the file is faster than float32 here is measured too.

    \b
    Examples:
      cnndeploy quantize lenet.pt
      cnndeploy quantize googlenet.pt --budget 0.3 --calibration 1000 --output googlenet-small.onnx
      cnndeploy quantize googlenet.pt --precision float16 --device cuda
    """
    from cnndeploy.display.budget_tables import quantized_table
    from cnndeploy.files import check_writable
    from cnndeploy.quantization.quantize import quantize

    if json_file is not None and json_file != "-":
        check_writable(json_file, checkpoint)
    with progress_bar(f"Quantising {checkpoint.name}") as update:
        found = quantize(
            checkpoint,
            output,
            precision=precision,
            budget=budget,
            calibration=calibration,
            input=input,
            runtime=runtime,
            device=device,
            threads=threads,
            images=images,
            data_dir=data_dir,
            on_progress=update,
        )
    if json_file is not None:
        write_json(json_file, found.to_dict())
    console_for(json_file).print(quantized_table(found))
    click.echo(
        f"Wrote {found.artifact.path}  {found.artifact.path.stat().st_size:,} bytes  "
        f"SHA-256 {found.artifact.sha256[:16]}",
        err=json_file == "-",
    )
    announce_certificate(found.report, quiet=json_file == "-")
