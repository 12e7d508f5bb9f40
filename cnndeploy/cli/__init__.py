"""The command line: one command a file, loaded when it is called.

Importing this loads neither torch, onnxruntime nor numpy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from cnndeploy.cli._common import INTERRUPTED, TERMINATED
from cnndeploy.errors import CnndeployError, missing_dependency

_signals: list[int] = []


class _Commands(click.Group):
    """Finds commands by file name and turns every expected error into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The stems of the files beside this one."""
        del ctx
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command's module."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name where there is no such command."""
        near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
        if near and near[0] != args[0] and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; ``--debug`` lets errors through with their traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _interrupted(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except (CnndeployError, OSError, ModuleNotFoundError) as error:
            if ctx.params["debug"]:
                raise
            expected = missing_dependency(error) if isinstance(error, ModuleNotFoundError) else error
            click.echo(f"Error: {expected}", err=True)
            ctx.exit(getattr(expected, "exit_code", 1))
        except Exception:
            if _signals:  # a library, as torch while it is imported, may turn Ctrl-C into an error of its own
                return _interrupted(ctx)
            raise


def _interrupted(ctx: click.Context) -> NoReturn:
    click.echo("\nInterrupted.", err=True)
    ctx.exit(INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cnndeploy")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Take a convolutional classifier from data to deployment and prove every step.

    \b
    Example:
      cnndeploy data fetch
      cnndeploy train lenet --output lenet.pt
      cnndeploy export lenet.pt --format onnx
      cnndeploy verify lenet.onnx --against lenet.pt
      cnndeploy bench lenet.pt lenet.onnx
      cnndeploy tune lenet.pt
      cnndeploy predict lenet.onnx shoe.png
    """
    del debug  # read from the context by _Commands.invoke


def run() -> None:
    """What the command ``cnndeploy`` starts: :func:`main`, with a process's signals and streams seen to."""
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGTERM, _on_terminate)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for the life of the process
        else:
            stream.reconfigure(errors="replace")  # a terminal without "µ" shows "?"
    main()


def _on_interrupt(number: int, _frame: object) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def _on_terminate(_number: int, _frame: object) -> None:
    sys.exit(TERMINATED)  # as an exception, so that temporary files are removed and workers ended
