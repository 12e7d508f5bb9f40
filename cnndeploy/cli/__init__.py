"""The command line: one command a file, loaded when it is called.

Importing this loads neither torch, onnxruntime nor numpy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from cnndeploy.cli._group import Commands, on_interrupt, on_terminate


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="cnndeploy")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and warnings of other packages.")
def main(debug: bool) -> None:
    """Take an image classifier from PyTorch to deployment, and show with evidence that every step was right.

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
    del debug  # read from the context by Commands.invoke


def run() -> None:
    """Start :func:`main` as the command ``cnndeploy``, with a process's signals and streams seen to."""
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_terminate)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for the life of the process
        else:
            stream.reconfigure(errors="replace")  # a terminal without "µ" shows "?"
    main()
