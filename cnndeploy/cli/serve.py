"""``cnndeploy serve``: a model server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.words import counted, printable

if TYPE_CHECKING:
    from cnndeploy.classifier import Classifier
    from cnndeploy.serving.server import Address

_PORT = click.IntRange(0, 65535)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option("--host", default="127.0.0.1", help="The address to listen on; 0.0.0.0 accepts other machines.")
@click.option("--port", type=_PORT, metavar="N", default=8000, help="For REST; 0 takes a free one.")
@click.option("--grpc-port", type=_PORT, metavar="N", default=8001, help="For gRPC; 0 takes a free one.")
@click.option("--no-grpc", is_flag=True, help="Serve REST only.")
@click.option(
    "--runtime",
    type=common.RegisteredName("runtimes"),
    help="What runs the files.  [default: as planned, else the format's own]",
)
@common.device_option
@click.option(
    "--threads",
    type=common.THREADS,
    help="CPU threads for one request, at most 256.  [default: as planned, else one, or all if these are faster]",
)
@click.option("--unverified", is_flag=True, help="Also serve files without a certificate.")
@click.option("--max-batch", type=common.COUNT, default=64, help="The largest batch in a request.")
@click.option(
    "--max-body",
    type=common.POSITIVE,
    default=64.0,
    metavar="MB",
    help="The largest body of a request, in MB.",
)
@common.source_option
def command(
    models: tuple[str, ...],
    no_grpc: bool,
    grpc_port: int,
    unverified: bool,
    max_batch: int,
    max_body: float,
    **settings: Any,
) -> None:
    """Serve models by the Open Inference Protocol.

    Clients send tensors to /v2/models/NAME/infer, by REST or gRPC, as to NVIDIA Triton or KServe, or the bytes of an
    image file to /v2/models/NAME/classify. By default NAME is the file's name without its suffix. A MODEL
    may be a folder that cnndeploy tune wrote: it runs as its plan says. On SIGTERM or Ctrl-C the server
    finishes the requests that it has begun, then exits.

    \b
    Examples:
      cnndeploy serve lenet.onnx
      curl --data-binary @shoe.png localhost:8000/v2/models/lenet/classify
      cnndeploy serve shoes=shoes.deploy bags=bags.onnx --host 0.0.0.0
    """
    from cnndeploy.serving.server import serve

    serve(
        _named(models),
        grpc_port=None if no_grpc else grpc_port,
        require_verified=not unverified,
        most_images=max_batch,
        most_megabytes=max_body,
        on_ready=_say_ready,
        **settings,
    )


def _named(models: tuple[str, ...]) -> dict[str, Path]:
    """Return the models by name: the name that was given, or the file's."""
    named = dict[str, Path]()
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or "/" in name or Path(given).exists():
            path, name = given, Path(given).resolve().stem
        if name in named:
            raise click.UsageError(
                f"{named[name]} and {path} would both be served as {name!r}; name them: NAME=MODEL"
            )
        named[name] = Path(path)
    return named


def _say_ready(address: Address, models: Mapping[str, Classifier]) -> None:
    from cnndeploy.serving.server import bracketed

    for name, model in models.items():
        session = model.session
        threads = counted(session.threads, "thread")
        path = printable(str(session.artifact.path))
        common.say(f"{printable(name)}: {path} on {session.run_as.runtime}, {session.device}, {threads}")
    common.say(f"REST on http://{bracketed(address.host)}:{address.port}/v2")
    if address.grpc_port is not None:
        common.say(f"gRPC on {bracketed(address.host)}:{address.grpc_port}")
    common.say("Ready. Press Ctrl-C to stop.")
