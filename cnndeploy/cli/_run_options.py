"""The options that say how a file is run."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.run import Precision, Run


def run_options(command: common.Command) -> common.Command:
    """Add ``--runtime``, ``--device`` and ``--threads``; the command takes them as one keyword, ``run``."""

    @click.option(
        "--runtime",
        type=common.RegisteredName("runtimes"),
        help="What runs the file.  [default: as planned, else the format's own]",
    )
    @common.device_option
    @common.threads_option
    @functools.wraps(command)
    def with_run(*, runtime: str | None, device: str | None, threads: int | None, **others: Any) -> None:
        command(run=Run(runtime or "", device or "", threads), **others)

    return with_run


PRECISIONS = click.Choice(["float32", "tf32", "bfloat16"])
"""What a float32 file may be computed in."""
precision_option = click.option(
    "--precision",
    type=PRECISIONS,
    help="What a float32 file is computed in: tf32 on CUDA, where it is ONNX Runtime's own default, or bfloat16 by "
    "OpenVINO, which is lossy.  [default: as planned, else float32]",
)


def run_and_precision(command: common.Command) -> common.Command:
    """Add ``--precision`` to what :func:`run_options` adds; it is the precision of ``run``."""

    @precision_option
    @functools.wraps(command)
    def with_precision(*, run: Run, precision: Precision | None, **others: Any) -> None:
        command(run=replace(run, precision=precision), **others)

    return run_options(with_precision)
