"""``cnndeploy inspect``: what a model file is, without running it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cnndeploy.cli._common import PATH, json_flag, print_json


@click.command()
@click.argument("model", type=PATH)
@json_flag
def command(model: Path, as_json: bool) -> None:
    """Print a file's manifest, inputs, outputs, opset, operators, size and SHA-256; of a deployment its plan too.

    \b
    Example:
      cnndeploy inspect lenet.onnx
    """
    from cnndeploy.artifact import Artifact
    from cnndeploy.certificate import read_certificate
    from cnndeploy.deployment import is_deployment, open_deployment

    plan = None
    if is_deployment(model):
        artifact, plan = open_deployment(model)
    else:
        artifact = Artifact.open(model)
    manifest = artifact.manifest
    claimed = (
        {"inputs": [asdict(manifest.input)], "outputs": [*map(asdict, manifest.outputs)]} if manifest else {}
    )
    facts = {
        "path": str(artifact.path),
        "format": artifact.format,
        "bytes": artifact.path.stat().st_size,
        "sha256": artifact.sha256,
        **claimed,  # replaced by what the file's own graph says, where the format has one
        **artifact.describe(),
        "certificate": read_certificate(artifact),
        **({"plan": plan.to_dict()} if plan else {}),
        "manifest": manifest.to_dict() if manifest else None,
    }
    if as_json:
        print_json(facts)
        return
    from cnndeploy.cli._common import console_for
    from cnndeploy.display.tables import facts_table

    console_for().print(facts_table(facts, manifest))
    if plan is not None and plan.elsewhere:
        click.echo(f"Note: {plan.elsewhere}", err=True)
