"""``cnndeploy demo``: the whole way, from the data set to a verified, measured deployment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnndeploy import registry
from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    RegisteredName,
    console_for,
    data_dir_option,
    progress_bar,
    write_json,
)
from cnndeploy.cli.train import describe_epoch, run_training
from cnndeploy.errors import BenchmarkError

if TYPE_CHECKING:
    from cnndeploy.artifact import Artifact
    from cnndeploy.benchmark.report import BenchmarkReport
    from cnndeploy.verification.report import EquivalenceReport

_BATCH_SIZES = (1, 64)
_SECONDS = 5.0  # a demonstration; the command's own default is more patient


@click.command()
@click.option("--architecture", type=RegisteredName("architectures"), default="lenet", show_default=True)
@click.option(
    "--output", type=PATH, default=Path("cnndeploy-demo"), show_default=True, help="Folder for all files."
)
@click.option(
    "--epochs", type=POSITIVE, default=5, show_default=True, help="More are better; the recipe takes more."
)
@click.option(
    "--limit", type=POSITIVE, help="Use only the first N images of each split, for a large network."
)
@data_dir_option
def command(architecture: str, output: Path, epochs: int, limit: int | None, data_dir: Path | None) -> None:
    """Fetch the data, train, export, verify, measure, and leave a report.

    \b
    Example:
      cnndeploy demo --architecture lenet --output cnndeploy-demo
    """
    from cnndeploy.artifact import Artifact
    from cnndeploy.display.page import render
    from cnndeploy.exporters import export
    from cnndeploy.files import make_folder, write_file

    make_folder(output)
    olds = (
        *output.glob("*.verified.json"),
        *output.glob("*.resume"),
        output / "bench.json",
        output / "report.html",
    )
    for old in olds:
        old.unlink(missing_ok=True)  # of an earlier run, which a failing one must not seem to confirm
    checkpoint = output / f"{architecture}.pt"

    _heading(1, "Data")
    _fetch(data_dir)
    _heading(2, "Train")
    run_training(
        architecture,
        checkpoint,
        lambda epoch: click.echo(describe_epoch(epoch)),
        epochs=epochs,
        limit=limit,
        data_dir=data_dir,
    )
    _heading(3, "Export")
    exported = []
    for name in registry.names("exporters"):
        exported.append(export(checkpoint, name))
        click.echo(f"Wrote {exported[-1].path}")
    _heading(4, "Verify")
    reports = _verify(exported, checkpoint, limit, data_dir)
    _heading(5, "Measure")
    measured = [checkpoint, *(artifact.path for artifact in exported)]
    timings = _measure(measured, output / "bench.json")
    _heading(6, "Report")
    page = output / "report.html"
    sizes = ",".join(map(str, _BATCH_SIZES))
    command = shlex.join(
        ["cnndeploy", "bench", *map(str, measured), "--batch-size", sizes, "--seconds", f"{_SECONDS:g}"]
    )
    write_file(page, render([Artifact.open(checkpoint), *exported], reports, timings, command).encode())
    click.echo(f"Open {page}")
    for report in reports:
        report.require()
    if timings.failures:
        raise BenchmarkError(f"not all files could be measured: {timings.failures[0].failure}")


def _heading(number: int, step: str) -> None:
    click.secho(f"\n[{number}/6] {step}", bold=True)


def _fetch(data_dir: Path | None) -> None:
    from cnndeploy import data

    with progress_bar("Fashion-MNIST") as update:
        origin = data.fetch(data_dir, progress=lambda name, done, total: update(done, total, name))
    click.echo(f"Fashion-MNIST: {origin}")


def _verify(
    exported: list[Artifact], checkpoint: Path, limit: int | None, data_dir: Path | None
) -> list[EquivalenceReport]:
    from cnndeploy import data
    from cnndeploy.certificate import certify
    from cnndeploy.display.tables import equivalence_table
    from cnndeploy.verification.verify import verify

    images = min(limit, len(data.load("test", data_dir))) if limit else None
    reports = []
    for artifact in exported:
        with progress_bar(f"Verifying {artifact.path.name}") as update:
            reports.append(verify(artifact, checkpoint, images=images, data_dir=data_dir, on_batch=update))
        certify(reports[-1], f"cnndeploy verify {artifact.path} --against {checkpoint}")
    console_for().print(equivalence_table(reports))
    return reports


def _measure(targets: list[Path], json_file: Path) -> BenchmarkReport:
    from cnndeploy.benchmark.bench import bench
    from cnndeploy.display.benchmark_tables import benchmark_table

    with progress_bar("Starting", refreshes_a_second=1) as update:
        timings = bench(
            targets,
            batch_sizes=_BATCH_SIZES,
            seconds=_SECONDS,
            progress=update,
        )
    write_json(str(json_file), timings.to_dict())
    console_for().print(benchmark_table(timings))
    return timings
