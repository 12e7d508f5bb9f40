"""What several commands share: options and JSON output."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy import registry
from cnndeploy.cli._messages import error_text, in_options
from cnndeploy.cli._results import results, results_alone
from cnndeploy.errors import CnndeployError, UnknownNameError
from cnndeploy.files import check_writable, write_file
from cnndeploy.own_warnings import showing_own
from cnndeploy.run import MOST_THREADS, Run
from cnndeploy.serial import dumps
from cnndeploy.words import printable, quoted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Command = Callable[..., None]

PATH = click.Path(path_type=Path)


class Whole(click.ParamType[int]):
    """A whole number in a range, which help does not show, for it says what everybody expects."""

    name = "n"

    def __init__(self, low: int = 0, high: int = 2**31 - 1) -> None:
        self._range = click.IntRange(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return int(self._range.convert(value, param, ctx))


class _Number(click.ParamType[float]):
    """A number in a range, which help does not show; click's own range lets NaN through."""

    name = "number"

    def __init__(self, numbers: click.FloatRange) -> None:
        self._range = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(self._range.convert(value, param, ctx))
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number.", param, ctx)


COUNT = Whole(1)
THREADS = Whole(1, MOST_THREADS)
POSITIVE = _Number(click.FloatRange(min=0, min_open=True, max=1e6))
POINTS = _Number(click.FloatRange(0, 100))


class CommaList(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas, each of one type; ``1,2,4``."""

    name = "list"

    def __init__(self, element: click.ParamType[Any]) -> None:
        self._element = element

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Convert each value by itself."""
        return tuple(self._element.convert(part.strip(), param, ctx) for part in str(value).split(","))


class RegisteredName(click.ParamType[str]):
    """A name that the registry knows, or one of ``more``; for any other the nearest one is suggested."""

    def __init__(self, kind: str, *more: str) -> None:
        self.name = kind.removesuffix("s")
        self._kind, self._more = kind, more

    @property
    def _known(self) -> list[str]:
        return [*registry.names(self._kind), *self._more]

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """List the known names."""
        del ctx
        names = "|".join(self._known)
        return f"{{{names}}}" if isinstance(param, click.Argument) else f"[{names}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name itself."""
        del param  # click's own error would list all names twice
        if value not in self._known:
            raise click.UsageError(str(UnknownNameError(self.name, value, self._known)), ctx)
        return str(value)


device_option = click.option(
    "--device",
    metavar="cpu|cuda[:N]",
    help="Fails if the device is not available; never falls back.  [default: as planned, else cpu]",
)
threads_option = click.option(
    "--threads", type=THREADS, help="CPU threads, at most 256.  [default: as planned, else all usable CPUs]"
)
model_input_option = click.option(
    "--input",
    type=click.Choice(["tensor", "image"]),
    default="tensor",
    help="What the file takes: a preprocessed tensor, or raw 8-bit images, so that no app needs preprocessing code.",
)
data_dir_option = click.option(
    "--data-dir",
    type=PATH,
    help="Folder to keep Fashion-MNIST in.  [default: $CNNDEPLOY_DATA, else the cache folder]",
)


_SOURCE_GIVEN = "cnndeploy.source"  # the key in the context's meta


def _allow_source(context: click.Context, _parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        from cnndeploy.sources import allow_source

        allow_source(name)
        context.meta[_SOURCE_GIVEN] = name


def source_given() -> tuple[str, ...]:
    """Return ``--source`` as this command was given it, for another command; nothing if it was not."""
    name = click.get_current_context().meta.get(_SOURCE_GIVEN)
    return () if name is None else ("--source", name)


source_option = click.option(
    "--source",
    metavar="SOURCE",
    expose_value=False,
    callback=_allow_source,
    help="Code of yours that may build a checkpoint's network: package.module:factory or path/to/file.py:factory.  "
    "[default: the code that you named to import or train]",
)


def _data_option(default: str, command: Command) -> Command:
    """Add ``--data``; ``--data-dir``, its name before folders of images could be named, still works."""

    @click.option(
        "--data",
        metavar="fashion-mnist|DIR",
        help=f"The data set: fashion-mnist, or a folder of images.  [default: {default}]",
    )
    @click.option("--data-dir", hidden=True, help="The same, by its former name.")
    @functools.wraps(command)
    def with_data(*, data: str | None, data_dir: str | None, **others: Any) -> None:
        command(data=data_dir if data is None else data, **others)

    return with_data


data_option = functools.partial(_data_option, "what the model was made on")
imported_data_option = functools.partial(_data_option, "none, and no accuracy is measured")
training_data_option = functools.partial(_data_option, "fashion-mnist")


def say_split(data: str | None, model: Path, images: int | None = None) -> None:
    """Say how the data set is split, if that is not plain; raise DataError if it does not suit the ``model``.

    The model also says which data set that is if ``data`` does not.
    """
    from cnndeploy.datasets import open_dataset
    from cnndeploy.deployment import resolve

    artifact = resolve(model).artifact
    manifest = artifact.manifest
    if manifest is None:  # which the command itself refuses
        return
    dataset = open_dataset(data, manifest.data, artifact.path)
    if note := dataset.note:
        dataset.split("test", manifest.preprocessing.channels, manifest.labels).first(images)
        say(note, err=True)


budget_option = click.option(
    "--budget",
    type=float,
    metavar="POINTS",
    default=0.5,
    help="Percentage points of test accuracy that may be lost.",
)


images_option = click.option("--images", type=COUNT, help="Use the first N test images.  [default: all]")


def measured_on(command: Command) -> Command:
    """Add ``--images`` and ``--data``: what a file is run on."""
    return images_option(data_option(command))


_written: list[str] = []  # where JSON was written to, "-" if it was printed


@contextlib.contextmanager
def _printing_json() -> Iterator[None]:
    """Leave standard output to JSON: also if libraries print there, and an error if there is one and nothing else."""
    with results_alone(), _writing_errors("-"):
        yield


@contextlib.contextmanager
def _writing_errors(target: str) -> Iterator[None]:
    """Write an error as JSON, if nothing was written there before it: a program that reads it expects JSON.

    A file gets only an error that says what was found out; others must not take the place of an earlier report.
    """
    _written.clear()
    try:
        yield
    except Exception as error:  # whatever it is
        found = {
            name: value
            for name, value in (("reasons", getattr(error, "reasons", None)), ("report", _report_of(error)))
            if value
        }
        if target not in _written and not isinstance(error, BrokenPipeError) and (found or target == "-"):
            context = click.get_current_context()
            with contextlib.suppress(CnndeployError, OSError):  # a full disk must not hide the error
                write_json(target, {"error": error_text(error, context.command), **found})
        raise


def _report_of(error: Exception) -> Any:
    report: Any = getattr(error, "report", None)
    return report.to_dict() if hasattr(report, "to_dict") else None


def json_flag(command: Command) -> Command:
    """Add ``--json``, which leaves standard output to what the command prints."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def with_json(*, as_json: bool, **others: Any) -> None:
        with _printing_json() if as_json else contextlib.nullcontext():
            command(as_json=as_json, **others)

    return with_json


def json_file_option(command: Command) -> Command:
    """Add ``--json FILE``, and check before the command begins that the report can be written there.

    The file may not be one of the command's inputs, which are its values of type Path.
    """

    @click.option(
        "--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output."
    )
    @functools.wraps(command)
    def with_json(*, json_file: str | None, **others: Any) -> None:
        if json_file is not None and json_file != "-":
            values = (value if isinstance(value, tuple) else (value,) for value in others.values())
            paths = (one for one in itertools.chain.from_iterable(values) if isinstance(one, Path))
            check_writable(json_file, *paths)
        errors = contextlib.nullcontext() if json_file is None else _writing_errors(json_file)
        with _printing_json() if json_file == "-" else errors:
            command(json_file=json_file, **others)

    return with_json


def command_line(*arguments: object) -> str:
    """Return a command as a shell takes it; without ``arguments`` the one that the user gave."""
    # a path that begins with a dash would be taken for an option
    words = (
        f"./{one}" if isinstance(one, Path) and str(one).startswith("-") else str(one) for one in arguments
    )
    return " ".join(map(quoted, ["cnndeploy", *(words if arguments else sys.argv[1:])]))


def write_json(target: str | Path | None, values: Any) -> None:
    """Write JSON to a file, whole or not at all, to standard output for ``-``, or nowhere for None."""
    _written.append(str(target))
    if target == "-":
        click.echo(dumps(values), file=results(), nl=False)
    elif target is not None:
        write_file(target, dumps(values).encode())


def say(text: object, *, err: bool = False) -> None:
    """Print a message, whatever is in the names that it tells."""
    click.echo("\n".join(map(printable, str(text).split("\n"))), file=sys.stderr if err else results())


def show(report: Any, table: Callable[[Any], RenderableType], json_file: str | None) -> None:
    """Write a report, which has ``to_dict()``, as JSON, if that is wanted, and print its table."""
    try:
        write_json(json_file, report.to_dict())
    finally:  # a full disk is no reason to hide what took minutes
        console_for(json_file).print(table(report))
    say_wrote(json_file, json_file=json_file)


def say_wrote(*files: object, json_file: str | None = None) -> None:
    """Name the files that a command wrote, without those that are None or standard output.

    It goes to standard output, unless JSON goes there.
    """
    if named := [printable(str(file)) for file in files if file not in (None, "-")]:
        say(f"Wrote {', '.join(named)}", err=json_file == "-")


def say_next(*arguments: object, json_file: str | None = None) -> None:
    """Print the command that usually comes next, with this one's ``--source``, unless JSON goes to standard output."""
    if json_file != "-":
        say(f"Next: {command_line(*arguments, *source_given())}")


def say_load(path: Path, run: Run | None = None, json_file: str | None = None) -> None:
    """Print how an app opens what was made, run as it was here, unless JSON goes to standard output."""
    if json_file == "-":
        return
    run = run or Run()
    chosen = {
        "runtime": run.runtime,
        "device": run.device,
        "threads": run.threads,
        "precision": run.precision,
    }
    keywords = "".join(f", {name}={value!r}" for name, value in chosen.items() if value)
    say(f"In an app: cnndeploy.load({str(path)!r}{keywords})")


@contextlib.contextmanager
def warnings_as_lines(images: Sequence[str] = ()) -> Iterator[None]:
    """Print each warning of ours as a line on standard error, once, in the words of the command that runs.

    A warning of one of the ``images`` that are classified names it.
    """
    printed = set[str]()

    def show_line(warning: Warning) -> None:
        naming = getattr(warning, "naming", None)
        text = naming(images) if naming is not None and images else str(warning)
        context = click.get_current_context(silent=True)
        line = f"Warning: {in_options(text, None if context is None else context.command)}"
        if line not in printed:
            printed.add(line)
            say(line, err=True)

    with showing_own(show_line):
        yield


def console_for(json_file: str | None = None) -> Console:
    """Return where tables go: standard output, unless JSON goes there."""
    from rich.console import Console

    stream = sys.stderr if json_file == "-" else sys.stdout
    told = os.environ.get("COLUMNS", "")
    columns = int(told) if told.isdecimal() else 0
    # Without a terminal rich assumes 80 columns; a log has no width.
    width = columns or (None if stream.isatty() else 120)
    return Console(stderr=json_file == "-", highlight=False, width=width)
