"""``cnndeploy predict``: classify image files."""

from __future__ import annotations

import contextlib
import csv
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from cnndeploy.cli import _common as common
from cnndeploy.files import check_writable, replacing
from cnndeploy.machine import usable_cpus
from cnndeploy.progress import silent
from cnndeploy.run import Run
from cnndeploy.serial import dumps
from cnndeploy.words import counted, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cnndeploy.classifier import Classifier, Prediction

    _Show = Callable[[str, Sequence[Prediction], str], None]
    """Shows a file's classes, the likeliest first, or if there are none why it could not be read."""

# So many images, and pixels, are held at once.
_MOST_IMAGES, _MOST_PIXELS = 64, 2**24


@click.command()
@click.argument("model", type=common.PATH)
@click.argument("images", nargs=-1, required=True)
@common.run_options
@click.option("--top", type=common.COUNT, default=1, help="How many classes to show for each image.")
@click.option("--invert", is_flag=True, help="Invert the images first: for objects that are dark on light.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, a line for each image.")
@common.source_option
@common.json_flag
@click.option(
    "--output",
    type=common.PATH,
    help="Write to this file instead of standard output, whole or not at all: when all images are done.",
)
def command(
    model: Path,
    images: tuple[str, ...],
    run: Run,
    top: int,
    invert: bool,
    as_csv: bool,
    as_json: bool,
    output: Path | None,
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
    """
    from cnndeploy.classifier import load

    if as_csv and as_json:
        raise click.UsageError("choose one of --csv and --json")
    from cnndeploy.images import suffixes

    if model.suffix.lower() in suffixes():
        raise click.UsageError(
            f"{model} is an image; the model comes first: cnndeploy predict MODEL IMAGES..."
        )
    # load's own default, to try what is fastest for one image, does not suit many
    threads = run.threads or (None if model.is_dir() else usable_cpus())
    passed_over = Counter[str]()
    files = [file for image in images for file in _files(image, passed_over)]
    if output is not None:
        check_writable(output, model, *files)
    opened = load(model, runtime=run.runtime, device=run.device, threads=threads, invert=invert)
    with opened as classifier, _results(output) as stream:
        top = min(top, len(classifier.labels))
        content: dict[str, Any] = {"model": printable(str(model)), "predictions": [], "failures": []}
        keep, line = partial(_keep, content), partial(_print_line, stream)
        show = _csv_rows(top, stream) if as_csv else keep if as_json else line
        # lines on a terminal show by themselves how far it is
        quiet = not as_json and output is None and sys.stdout.isatty()
        bar = contextlib.nullcontext(silent) if quiet else common.progress_bar("Classifying")
        failed = done = 0
        with bar as update, common.PoliteStop() as stop:
            for chunk in _chunks(files, classifier.manifest.preprocessing.channels, stop):
                failed += _classify(classifier, chunk, top, show)
                done += len(chunk)
                update(done, len(files), "Classifying")
        if output is not None and stop():
            common.say(f"Stopped after {done} of {len(files)}; {output} was not written.", err=True)
            raise SystemExit(stop.exit_code)
        if as_json:
            click.echo(dumps(content), file=stream, nl=False)
    common.say_wrote(output)
    _say_what_is_left(passed_over, failed, len(files))
    if stop():
        common.say(f"Stopped after {done} of {len(files)}.", err=True)
    raise SystemExit(stop.exit_code or (1 if failed else 0))


@contextlib.contextmanager
def _results(output: Path | None) -> Iterator[TextIO | None]:
    """Yield where results go: a file that takes its place when the block ends well, or None for standard output."""
    if output is None:
        yield None
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


_Read = tuple[str, "NDArray[np.uint8] | str"]
"""A file's name, and its pixels or what is wrong with it."""


def _files(image: str, passed_over: Counter[str]) -> list[str]:
    """Return what an argument names; one that names nothing is kept, to be reported.

    Count by suffix in ``passed_over`` the pictures in folders that are of no kind that is read.
    """
    if _is_folder(image):
        return sorted(_images_below(Path(image), passed_over)) or [image]
    if _is_pattern(image):
        matches = sorted(_matches(Path(image)))
        return [file for match in matches for file in _files(match, passed_over)] or [image]
    return [image]


def _images_below(folder: Path, passed_over: Counter[str]) -> Iterator[str]:
    """Yield image files and folders that may not be read, to be reported; skip what is hidden, follow no link."""
    from cnndeploy.images import other_suffixes, suffixes

    read, others = suffixes(), other_suffixes()
    unreadable: list[OSError] = []
    for inner, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(inner, name) for name in names if not name.startswith(".")]
        yield from (str(file) for file in files if file.suffix.lower() in read and file.is_file())
        passed_over.update(suffix for file in files if (suffix := file.suffix.lower()) in others)
    yield from (str(error.filename) for error in unreadable)


def _matches(pattern: Path) -> list[str]:
    """Match by pathlib, whose ``**`` follows no links to folders; a hidden name matches only if it is spelled out.

    The longest leading part that exists is meant as itself: a folder may be called ``shoes [1]``.
    """
    root = next((parent for parent in pattern.parents if os.path.lexists(parent)), Path(pattern.anchor))
    try:
        matches = list(root.glob(str(pattern.relative_to(root))))
    except (ValueError, OSError):  # no pattern that pathlib takes, or no name that the system takes
        return []
    spelled_out = {part for part in pattern.parts if part.startswith(".")}
    hidden = ({part for part in match.parts if part.startswith(".")} for match in matches)
    return [str(match) for match, parts in zip(matches, hidden, strict=True) if parts <= spelled_out]


def _is_folder(image: str) -> bool:
    return image != "" and os.path.isdir(image)  # noqa: PTH112 - which raises nothing, whatever the name


def _is_pattern(image: str) -> bool:
    return glob.has_magic(image) and not os.path.lexists(image)


def _chunks(files: list[str], channels: int, stop: Callable[[], bool]) -> Iterator[list[_Read]]:
    """Read the images file by file, and yield a few at a time."""
    chunk, pixels = list[_Read](), 0
    for file in files:
        if stop():
            break
        chunk.append((file, _read(file, channels)))
        pixels += getattr(chunk[-1][1], "size", 0)
        if len(chunk) >= _MOST_IMAGES or pixels >= _MOST_PIXELS:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def _read(file: str, channels: int) -> NDArray[np.uint8] | str:
    from cnndeploy.errors import DataError
    from cnndeploy.images import read_image

    if not file:
        return "an empty name"
    if _is_folder(file):
        readable = os.access(file, os.R_OK | os.X_OK)
        return f"{file}: {'there are no image files in this folder' if readable else 'this folder may not be read'}"
    if _is_pattern(file):
        return f"{file}: no file matches"
    try:
        return read_image(file, channels)
    except DataError as error:
        return str(error)


def _classify(classifier: Classifier, chunk: list[_Read], top: int, show: _Show) -> int:
    """Show the classes of each image of a chunk; return how many could not be read."""
    readable = [image for _, image in chunk if not isinstance(image, str)]
    files = [printable(file) for file, image in chunk if not isinstance(image, str)]
    with common.warnings_as_lines(files):
        predictions = iter(classifier.classify(readable, top) if readable else ())
    for file, image in chunk:
        if isinstance(image, str):
            common.say(f"Error: {printable(image)}", err=True)
            show(printable(file), (), printable(image))
        else:
            first = next(predictions)
            show(printable(file), (first, *first.runners_up), "")
    return len(chunk) - len(readable)


def _print_line(stream: TextIO | None, file: str, ranked: Sequence[Prediction], _reason: str) -> None:
    """Print a line for people; of a failure standard error has it all."""
    if ranked:
        classes = ", ".join(f"{prediction.label} {prediction.probability:.2%}" for prediction in ranked)
        click.echo(f"{file}: {classes}", file=stream)


def _csv_rows(top: int, stream: TextIO | None) -> _Show:
    """Print the head of a CSV table, and return what prints its rows, each as it comes."""
    writer = csv.writer(stream or sys.stdout, lineterminator="\n")
    numbers = ["", *(f"_{number}" for number in range(2, top + 1))]
    columns = (f"{name}{number}" for number in numbers for name in ("label", "probability"))
    writer.writerow(["image", *columns, "error"])

    def show(file: str, ranked: Sequence[Prediction], reason: str) -> None:
        cells = [cell for one in ranked for cell in (one.label, f"{one.probability:.6f}")]
        writer.writerow([file, *(cells or [""] * (2 * top)), reason])

    return show


def _keep(content: dict[str, Any], file: str, ranked: Sequence[Prediction], reason: str) -> None:
    """Add an image to the JSON document that is printed at the end."""
    if reason:
        content["failures"].append({"image": file, "error": reason})
    else:
        classes = [{"label": one.label, "probability": one.probability} for one in ranked]
        content["predictions"].append({"image": file, "classes": classes})
