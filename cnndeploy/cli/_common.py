"""What several commands share: options, JSON output, progress bars."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import click

from cnndeploy import registry
from cnndeploy.errors import ArtifactError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from cnndeploy.verification.budget_report import BudgetReport
    from cnndeploy.verification.report import EquivalenceReport

INTERRUPTED, TERMINATED = 130, 143  # the exit codes of SIGINT and SIGTERM
PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1, max=2**31 - 1)


class _PositiveNumber(click.FloatRange):
    """A number above zero; click's own range lets NaN and infinity through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


POSITIVE_NUMBER = _PositiveNumber(min=0, min_open=True, max=1e6)

device_option = click.option(
    "--device", default="cpu", show_default=True, metavar="cpu|cuda[:N]", help="Never another than asked for."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1, max=256), help="CPU threads.  [default: all usable CPUs]"
)
data_dir_option = click.option(
    "--data-dir", type=PATH, help="Folder of the data set.  [default: $CNNDEPLOY_DATA, else the cache folder]"
)
json_file_option = click.option(
    "--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output."
)


class CommaList(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas, each of one type; ``1,2,4``."""

    name = "list"

    def __init__(self, each: click.ParamType[Any]) -> None:
        self._each = each

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Every value by itself."""
        if isinstance(value, tuple):
            return value
        return tuple(self._each.convert(part.strip(), param, ctx) for part in str(value).split(","))


json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class PoliteStop:
    """Notes Ctrl-C and SIGTERM, to be acted upon at the next step; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def __enter__(self) -> Self:
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        del frame
        self.signal = number
        self.__exit__()


class Update(Protocol):
    """Moves a progress bar; ``total`` is 0 where it is unknown."""

    def __call__(self, done: int, total: int, text: str = ..., /) -> None: ...


class RegisteredName(click.ParamType[str]):
    """A name that the registry knows, or one of some more; the nearest one is suggested for another."""

    def __init__(self, kind: registry.Kind, *more: str) -> None:
        self.kind = kind
        self.more = more
        self.name = kind.removesuffix("s")

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The known names."""
        del ctx
        names = "|".join([*registry.names(self.kind), *self.more])
        return f"{{{names}}}" if isinstance(param, click.Argument) else f"[{names}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself."""
        known = [*registry.names(self.kind), *self.more]
        if value not in known:
            self.fail(str(UnknownNameError(self.name, value, known)), param, ctx)
        return str(value)


def print_json(values: Any) -> None:
    """Print JSON on standard output."""
    click.echo(json.dumps(values, indent=2, allow_nan=False))


def write_json(target: str, values: Any) -> None:
    """Write JSON to a file, whole or not at all, or to standard output for ``-``."""
    from cnndeploy.files import write_file

    if target == "-":
        print_json(values)
    else:
        write_file(target, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def announce_certificate(report: EquivalenceReport | BudgetReport, quiet: bool) -> None:
    """Write a pass's certificate, or remove a failure's; ``quiet`` where standard output is JSON's."""
    from cnndeploy.certificate import certify

    try:
        if certificate := certify(report, shlex.join(["cnndeploy", *sys.argv[1:]])):
            click.echo(f"Certificate: {certificate}", err=quiet)
    except ArtifactError as error:  # as beside a file on a read-only disk; the verdict stands all the same
        click.echo(f"No certificate: {error}", err=True)


def console_for(json_file: str | None = None) -> Console:
    """Where tables go: standard output, unless JSON goes there."""
    from rich.console import Console

    # Without a terminal rich assumes 80 columns and cuts; a log has no width.
    width = None if sys.stdout.isatty() else 120
    return Console(stderr=json_file == "-", highlight=False, width=width)


@contextlib.contextmanager
def progress_bar(description: str, refreshes_a_second: float = 10) -> Iterator[Update]:
    """A bar on standard error, if that is a terminal; call what it gives with done, total and a text.

    Beside what is being timed it should refresh rarely.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,  # to standard error, it would be
        refresh_per_second=refreshes_a_second,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(escape(description), total=None)

        def update(done: int, total: int, text: str = description) -> None:
            progress.update(task, completed=done, total=total or None, description=escape(text))

        yield update
