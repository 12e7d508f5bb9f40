"""``cnndeploy predict``: classify image files."""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._results import results, results_alone
from cnndeploy.cli._run_options import run_and_precision
from cnndeploy.cli._stop import PoliteStop
from cnndeploy.errors import CnndeployError
from cnndeploy.files import check_writable, replacing
from cnndeploy.machine import usable_cpus
from cnndeploy.progress import silent
from cnndeploy.run import Run
from cnndeploy.serial import dumps
from cnndeploy.words import counted, printable

if TYPE_CHECKING:
    from cnndeploy.prediction.chunks import Outcome

    _Show = Callable[[Outcome], None]


@click.command()
@click.argument("model", type=common.PATH)
@click.argument("images", nargs=-1, required=True)
@run_and_precision
@click.option("--top", type=common.COUNT, default=1, help="How many classes to show for each image.")
@click.option(
    "--invert", is_flag=True, help="Invert the images first, if objects are dark on a light background."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, a line for each image.")
@common.source_option
@common.json_flag
@click.option(
    "--output",
    type=common.PATH,
    help="Write to this file instead of standard output, once all images are done. With --engine ray: the folder for "
    "Parquet files.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="local: this process. ray: many processes, on this machine or a cluster; needs --output and the extra ray.",
)
@click.option(
    "--workers",
    type=common.COUNT,
    help="Ray's worker processes, each with a copy of the model, and with the threads of the plan or else one.  "
    "[default: as many as fit the CPUs or GPUs]",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Address of a Ray cluster, such as auto or HOST:PORT.  [default: start Ray on this machine]",
)
@click.option(
    "--resume", is_flag=True, help="Continue a Ray run that stopped: keep the Parquet files in --output."
)
@results_alone()
def command(
    model: Path,
    images: tuple[str, ...],
    run: Run,
    top: int,
    invert: bool,
    as_csv: bool,
    as_json: bool,
    output: Path | None,
    engine: str,
    **of_ray: Any,
) -> None:
    """Classify image files.

    The images may be of any size, and should look like those that the network was trained on. Networks for
    Fashion-MNIST expect light on dark; use --invert if yours are dark on light. IMAGES are files, folders (searched
    with their subfolders) and patterns such as 'photos/**/*.png'. An image that cannot be read is reported on standard
    error; the others are classified, and the exit code is 1. MODEL may be a folder that cnndeploy tune wrote: it runs
    as its plan says, and options override the plan.

    \b
    Examples:
      cnndeploy predict lenet.onnx shoe.png --top 3
      cnndeploy predict lenet.onnx drawings/ --invert
      cnndeploy predict lenet.onnx photos/ --csv --output labels.csv
      cnndeploy predict lenet.onnx photos/ --engine ray --output results
    """
    from cnndeploy.images import suffixes
    from cnndeploy.prediction.files import image_files

    if as_csv and as_json:
        raise click.UsageError("choose one of --csv and --json")

    if model.suffix.lower() in suffixes():
        raise click.UsageError(
            f"{model} is an image; the model comes first: cnndeploy predict MODEL IMAGES..."
        )
    _check_engine(engine, output, as_csv or as_json, of_ray)
    passed_over = Counter[str]()
    files = [file for image in images for file in image_files(image, passed_over)]
    settings: dict[str, Any] = {"run": run, "top": top, "invert": invert}
    stopped = 0
    if engine == "ray":
        failed = _by_ray(model, files, output, settings, of_ray)
    else:
        stopped, failed, done = _here(model, files, output, settings, as_csv=as_csv, as_json=as_json)
    _say_what_is_left(passed_over, failed, len(files))
    if stopped:
        common.say(f"Stopped after {done} of {len(files)}.", err=True)
    raise SystemExit(stopped or (1 if failed else 0))


def _check_engine(engine: str, output: Path | None, as_text: bool, of_ray: dict[str, Any]) -> None:
    if engine == "ray" and (output is None or as_text):
        raise click.UsageError(
            "--engine ray writes Parquet files: name a folder by --output, without --csv and --json"
        )
    if of_ray["address"] == "":
        raise click.UsageError("--address is empty")
    if engine == "local" and (given := [name for name, value in of_ray.items() if value]):
        raise click.UsageError(f"--{given[0]} is for --engine ray")


def _here(
    model: Path,
    files: list[str],
    output: Path | None,
    settings: dict[str, Any],
    *,
    as_csv: bool,
    as_json: bool,
) -> tuple[int, int, int]:
    """Classify in this process; return the exit code if it was stopped, else 0, and how many failed and are done."""
    from cnndeploy.classifier import load
    from cnndeploy.prediction.chunks import chunks, outcomes

    run = settings["run"]
    # load's own default, to try what is fastest for one image, does not suit many
    threads = run.threads or (None if model.is_dir() else usable_cpus())
    if output is not None:
        check_writable(output, model, *files)
    opened = load(
        model,
        runtime=run.runtime,
        device=run.device,
        threads=threads,
        invert=settings["invert"],
        precision=run.precision,
    )
    with opened as classifier, _target(output) as stream:
        top = min(settings["top"], len(classifier.labels))
        options = classifier.session.options.changed
        content: dict[str, Any] = {
            "model": printable(str(model)),
            "options": options,
            "predictions": [],
            "failures": [],
        }
        keep, line = partial(_keep, content), partial(_print_line, stream)
        show = _csv_rows(top, stream) if as_csv else keep if as_json else line
        # lines on a terminal show by themselves how far it is
        quiet = not as_json and output is None and stream.isatty()
        bar = contextlib.nullcontext(silent) if quiet else progress_bar("Classifying")
        failed = done = 0
        with bar as update, PoliteStop() as stop:
            for chunk in chunks(files, classifier.manifest.preprocessing.channels, stop):
                readable = [printable(file) for file, image in chunk if not isinstance(image, str)]
                with common.warnings_as_lines(readable):
                    results_of_chunk = outcomes(classifier, chunk, top)
                for outcome in results_of_chunk:
                    failed += _say_error(outcome.error)
                    show(outcome)
                done += len(chunk)
                update(done, len(files), "Classifying")
        if output is not None and stop():
            common.say(f"Stopped after {done} of {len(files)}; {output} was not written.", err=True)
            raise SystemExit(stop.exit_code)
        if as_json:
            click.echo(dumps(content), file=stream, nl=False)
    common.say_wrote(output)
    return stop.exit_code, failed, done


def _by_ray(
    model: Path, files: list[str], output: Path | None, settings: dict[str, Any], of_ray: dict[str, Any]
) -> int:
    """Classify by Ray; return how many files failed."""
    from cnndeploy.prediction.cluster import predict_on_ray
    from cnndeploy.prediction.ray_connection import Cluster

    assert output is not None  # noqa: S101 - as _check_engine saw to
    cluster, resume = Cluster(of_ray["address"], of_ray["workers"]), of_ray["resume"]
    begun = False
    with progress_bar("Starting Ray") as update, common.warnings_as_lines():

        def note(done: int, total: int, text: str) -> None:
            nonlocal begun
            begun = True
            update(done, total, text)

        try:
            errors = predict_on_ray(
                model, files, output, **settings, cluster=cluster, resume=resume, progress=note
            )
        except (KeyboardInterrupt, SystemExit, CnndeployError):
            if begun and any(output.glob("*.parquet")):
                common.say(f"Go on from the files in {output} with --resume.", err=True)
            raise
    failed = sum(map(_say_error, errors))
    common.say_wrote(output)
    return failed


def _say_error(error: str) -> int:
    """Say what is wrong with a file that could not be read; return 1, or 0 if nothing is."""
    if error:
        common.say(f"Error: {printable(error)}", err=True)
    return 1 if error else 0


@contextlib.contextmanager
def _target(output: Path | None) -> Iterator[TextIO]:
    """Yield where results go: a file that takes its place when the block ends well, or standard output."""
    if output is None:
        yield results()
        return
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def _say_what_is_left(passed_over: Counter[str], failed: int, files: int) -> None:
    """Say on standard error how many pictures were passed over, and how many files could not be classified."""
    if passed_over:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(passed_over.items()))
        common.say(
            f"Warning: {counted(passed_over.total(), 'picture')} passed over, of kinds that are not read: {kinds}.",
            err=True,
        )
    if failed:
        common.say(f"Error: {failed} of {files} could not be classified.", err=True)


def _print_line(stream: TextIO, outcome: Outcome) -> None:
    """Print a line for people; a failure is reported on standard error only."""
    if outcome.ranked:
        classes = ", ".join(f"{one.label} {one.probability:.2%}" for one in outcome.ranked)
        click.echo(f"{printable(outcome.image)}: {classes}", file=stream)


def _csv_rows(top: int, stream: TextIO) -> _Show:
    """Print the head of a CSV table, and return what prints its rows, each as it comes."""
    from cnndeploy.prediction.chunks import column_names

    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(column_names(top))

    def show(outcome: Outcome) -> None:
        cells = [cell for one in outcome.ranked for cell in (one.label, f"{one.probability:.6f}")]
        writer.writerow([printable(outcome.image), *(cells or [""] * (2 * top)), printable(outcome.error)])

    return show


def _keep(content: dict[str, Any], outcome: Outcome) -> None:
    """Add an image to the JSON document that is printed at the end."""
    image = {"image": printable(outcome.image)}
    if outcome.error:
        content["failures"].append({**image, "error": printable(outcome.error)})
    else:
        classes = [{"label": one.label, "probability": one.probability} for one in outcome.ranked]
        content["predictions"].append({**image, "classes": classes})
