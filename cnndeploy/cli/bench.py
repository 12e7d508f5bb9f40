"""``cnndeploy bench``: time model files side by side."""

from __future__ import annotations

from pathlib import Path

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    console_for,
    device_option,
    json_file_option,
    progress_bar,
    threads_option,
    write_json,
)


@click.command()
@click.argument("targets", type=PATH, nargs=-1, required=True)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=POSITIVE,
    multiple=True,
    default=(1,),
    show_default=True,
    help="Repeatable.",
)
@threads_option
@device_option
@click.option(
    "--budget",
    type=POSITIVE_NUMBER,
    default=5.0,
    show_default=True,
    help="Seconds of measurement for each file and batch size.",
)
@json_file_option
def command(
    targets: tuple[Path, ...],
    batch_sizes: tuple[int, ...],
    threads: int | None,
    device: str,
    budget: float,
    json_file: str | None,
) -> None:
    """Time model files against the first of them.

    Each runs in a process of its own; they take turns in random order, and ratios are taken within a turn.

    \b
    Example:
      cnndeploy bench lenet.pt lenet.onnx lenet.torchscript --batch-size 1 --batch-size 64
    """
    from cnndeploy.artifact import check_writable
    from cnndeploy.benchmark import bench
    from cnndeploy.report.tables import benchmark_table

    if json_file is not None and json_file != "-":
        check_writable(json_file, *targets)
    with progress_bar("Starting") as update:
        report = bench(
            targets,
            batch_sizes=batch_sizes,
            threads=threads,
            device=device,
            budget_s=budget,
            on_progress=lambda label, done, total: update(done, total, f"Timing {label}"),
        )
    if json_file is not None:
        write_json(json_file, report.to_dict())
    console_for(json_file).print(benchmark_table(report))
