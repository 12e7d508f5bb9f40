"""The group of all commands: finds them, and turns errors and signals into messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from cnndeploy.cli._common import in_options, say, warnings_as_lines
from cnndeploy.errors import ArtifactError, CnndeployError, missing_dependency, nearest
from cnndeploy.own_warnings import DEBUG

_interrupts: list[int] = []


class Commands(click.Group):
    """Finds commands by file name and turns every expected error into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the stems of the files beside this one."""
        del ctx
        return sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command's module."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"cnndeploy.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Do as click does, and suggest the nearest name if there is no such command."""
        near = nearest(args[0], self.list_commands(ctx))
        if near not in (None, args[0]):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; ``--debug`` lets errors through with their traceback, and shows warnings of all packages."""
        try:
            with _debugging(ctx.params["debug"]), warnings_as_lines():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _interrupted(ctx)
        except (CnndeployError, OSError, ModuleNotFoundError) as error:
            # click ends quietly if the reader of a pipe has gone
            if ctx.params["debug"] or isinstance(error, BrokenPipeError):
                raise
            expected = missing_dependency(error) if isinstance(error, ModuleNotFoundError) else error
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                expected = ArtifactError(_too_long(os.fsdecode(error.filename or "")))
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            say(f"Error: {in_options(str(expected), command)}", err=True)
            ctx.exit(getattr(expected, "exit_code", 1))
        except Exception:
            if _interrupts:  # a library, as torch, may turn Ctrl-C into an error of its own
                _interrupted(ctx)
            raise


def _too_long(path: str) -> str:
    name = Path(path).name
    kind, shown = ("file name", name) if len(os.fsencode(name)) > 255 else ("path", path)
    return f"a {kind} is too long: {shown[:40]}... Choose a shorter one."


@contextlib.contextmanager
def _debugging(debug: bool) -> Iterator[None]:
    """Turn debugging on, if that is wanted, in the workers of the block too."""
    before = os.environ.get(DEBUG)
    if debug:
        os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if debug and before is None:
            del os.environ[DEBUG]


def _interrupted(ctx: click.Context) -> NoReturn:
    click.echo("\nInterrupted.", err=True)
    ctx.exit(128 + signal.SIGINT)


def on_interrupt(number: int, _frame: object) -> None:
    """Handle SIGINT as Python does, and remember it."""
    _interrupts.append(number)
    raise KeyboardInterrupt


def on_terminate(number: int, _frame: object) -> None:
    """Handle SIGTERM by an exception, so that temporary files are removed and workers ended."""
    sys.exit(128 + number)
