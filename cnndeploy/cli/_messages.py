"""Errors and warnings of the library in the words of the command line."""

from __future__ import annotations

import errno
import os
import re
import shlex
from pathlib import Path

import click

from cnndeploy.errors import missing_dependency

_SOURCE = re.compile(r"cnndeploy\.allow_source\('([^']*)'\)")
_PARAMETER = re.compile(r"(?<![\w/.-])(\w+)='?([\w+-]+(?:[.:][\w+-]+)*)'?(?![\w/])")


def error_text(error: Exception, command: click.Command | None) -> str:
    """Return what an error says to the user of a command."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return _too_long(os.fsdecode(error.filename or ""))
    expected = missing_dependency(error) if isinstance(error, ModuleNotFoundError) else error
    return in_options(str(expected), command)


def _too_long(path: str) -> str:
    name = Path(path).name
    kind, shown = ("file name", name) if len(os.fsencode(name)) > 255 else ("path", path)
    return f"a {kind} is too long: {shown[:40]}... Choose a shorter one."


def in_options(message: str, command: click.Command | None) -> str:
    """Return a message of the library with the parameters that it names, as ``seed=3``, as options of the command."""
    parameters = [] if command is None else command.params
    options = {one.name: one.opts[-1] for one in parameters if isinstance(one, click.Option)}

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in options:
            return match[0]
        return options[name] if value == "True" else f"{options[name]} {value}"

    if any("--source" in one.opts for one in parameters):
        message = _SOURCE.sub(lambda match: f"--source {shlex.quote(match[1])}", message)
    return _PARAMETER.sub(option, message)
