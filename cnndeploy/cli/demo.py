"""``cnndeploy demo``: the whole way, from the data set to a verified, measured deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli.data import fetch_data
from cnndeploy.cli.train import draw_training, run_training
from cnndeploy.errors import ArtifactError, BenchmarkError
from cnndeploy.files import make_folder, write_file

if TYPE_CHECKING:
    from cnndeploy.artifact import Artifact
    from cnndeploy.display.samples import Sample
    from cnndeploy.verification.report import EquivalenceReport

_BATCH_SIZES = (1, 64)
_SECONDS = 5.0  # a demonstration; the command's own default is more patient
_UNFINISHED = b"<p>The demo that began here has not ended.</p>\n"
_LOOKED_AT = 200  # test images, from which the page shows some that are labelled right and some that are not


@click.command()
@click.option(
    "--architecture", type=common.RegisteredName("architectures"), default="lenet", help="Network to train."
)
@click.option("--output", type=common.PATH, default=Path("cnndeploy-demo"), help="Folder for all files.")
@click.option(
    "--epochs", type=common.COUNT, default=5, help="Passes over the training images; more are better."
)
@click.option(
    "--images", type=common.COUNT, help="Use only the first N images of each split, for a large network."
)
@common.data_dir_option
def command(architecture: str, output: Path, epochs: int, images: int | None, data_dir: Path | None) -> None:
    """Run every step, from the data set to a report.

    Fetches the data, trains, exports, verifies and measures. The next demo in the same folder replaces its files.

    \b
    Example:
      cnndeploy demo --architecture lenet --output cnndeploy-demo
    """
    from cnndeploy.artifact import Artifact
    from cnndeploy.benchmark.bench import bench
    from cnndeploy.display.benchmark_tables import benchmark_table
    from cnndeploy.display.page import render
    from cnndeploy.exporters import export, usual_formats

    make_folder(output)
    checkpoint, page = output / f"{architecture}.pt", output / "report.html"
    kept = [path for path in (checkpoint, output / "bench.json") if path.exists() and not page.exists()]
    if kept:
        raise ArtifactError(f"{kept[0]} is of no demo, which would replace it; choose another folder")
    # what an earlier demo left must not seem to confirm one that fails; a certificate names the bytes that it is of
    for pattern in (f"{architecture}.pt.resume", f"{architecture}.pt.*.png", "bench.json"):
        for old in output.glob(pattern):
            old.unlink()
    write_file(page, _UNFINISHED)

    _heading(1, "Data")
    fetch_data(data_dir)
    _heading(2, "Train")
    run_training(architecture, checkpoint, None, epochs=epochs, images=images, data=data_dir, overwrite=True)
    common.say_wrote(checkpoint, *draw_training(checkpoint))
    _heading(3, "Export")
    exported = []
    for name in usual_formats():
        exported.append(export(checkpoint, name))
        common.say(f"Wrote {exported[-1].path}")
    _heading(4, "Verify")
    reports = _verify(exported, checkpoint, images, data_dir)
    _heading(5, "Measure")
    measured = [checkpoint, *(artifact.path for artifact in exported)]
    with progress_bar("Starting", refreshes_a_second=1) as update:
        timings = bench(measured, batch_sizes=_BATCH_SIZES, seconds=_SECONDS, progress=update)
    common.show(timings, benchmark_table, str(output / "bench.json"))
    _heading(6, "Report")
    sizes = ",".join(map(str, _BATCH_SIZES))
    again = common.command_line("bench", *measured, "--batch-size", sizes, "--seconds", f"{_SECONDS:g}")
    artifacts, samples = [Artifact.open(checkpoint), *exported], _samples(checkpoint, data_dir)
    write_file(page, render(artifacts, reports, timings, again, samples).encode())
    common.say(f"Open {page}")
    for report in reports:
        report.require()
    if timings.failures:
        raise BenchmarkError(f"not all files could be measured: {timings.failures[0].failure}")


def _heading(number: int, step: str) -> None:
    click.secho(f"\n[{number}/6] {step}", bold=True)


def _samples(checkpoint: Path, data_dir: Path | None) -> list[Sample]:
    """Return test images as the checkpoint labels them; none if it cannot, which verification has said already."""
    from cnndeploy.classifier import load
    from cnndeploy.datasets.fashion_mnist import load as load_data
    from cnndeploy.display.samples import Sample

    test = load_data("test", data_dir).first(_LOOKED_AT)
    try:
        with load(checkpoint, threads=1) as model:
            given = [prediction.label for prediction in model.classify(test.images)]
            labels = [model.labels[number] for number in test.labels]
    except ArtifactError:
        return []
    return list(map(Sample, test.images, labels, given))


def _verify(
    exported: list[Artifact], checkpoint: Path, images: int | None, data_dir: Path | None
) -> list[EquivalenceReport]:
    """Verify each file against the checkpoint, which runs once for all of them."""
    from cnndeploy.certificate import try_to_certify
    from cnndeploy.display.verdict_tables import equivalence_table
    from cnndeploy.verification.reference import Reference
    from cnndeploy.verification.verify import verify

    reports = []
    told = []
    folder = () if data_dir is None else ("--data", data_dir)
    with Reference(checkpoint, data=data_dir) as reference:
        images = min(images, len(reference.test)) if images else None
        for artifact in exported:
            with progress_bar(f"Verifying {artifact.path.name}") as update:
                reports.append(verify(artifact, reference, images=images, progress=update))
            again = common.command_line("verify", artifact.path, "--against", checkpoint, *folder)
            told.append(str(try_to_certify(reports[-1], artifact.path, again)))
    common.console_for().print(equivalence_table(reports))
    for line in filter(None, told):
        common.say(line)
    return reports
