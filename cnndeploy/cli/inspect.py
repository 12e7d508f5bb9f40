"""``cnndeploy inspect``: what a model file or a deployment is, without running it."""

from __future__ import annotations

from pathlib import Path

import click

from cnndeploy.cli import _common as common


@click.command()
@click.argument("model", type=common.PATH)
@common.json_flag
def command(model: Path, as_json: bool) -> None:
    """Print what a model file is, without running it.

    Prints inputs, outputs, operators, opset, size, SHA-256, certificates, and the manifest, which says where the file
    came from. For a folder that cnndeploy tune wrote it prints the plan too.

    \b
    Examples:
      cnndeploy inspect lenet.onnx
      cnndeploy inspect lenet.deploy --json
    """
    from cnndeploy.certificate import known_accuracy, read_certificates
    from cnndeploy.deployment import resolve
    from cnndeploy.display.facts import facts_table

    candidate = resolve(model)
    artifact, manifest, plan = candidate.artifact, candidate.artifact.manifest, candidate.plan
    known, certificates = known_accuracy(artifact, candidate.run), read_certificates(artifact)
    facts = {
        "path": str(artifact.path),
        "format": artifact.format,
        "bytes": artifact.path.stat().st_size,
        "sha256": artifact.sha256,
        # replaced by what the file's own graph says, if the format has one
        **({"inputs": [manifest.input], "outputs": manifest.outputs} if manifest else {}),
        **artifact.describe(),
        "certificate": next(iter(certificates), None),
        "certificates": certificates,
        "accuracy": known and known.accuracy,
        "accuracy_images": known and known.images,
        **({"plan": plan.to_dict()} if plan else {}),
        "manifest": manifest.to_dict() if manifest else None,
    }
    if as_json:
        common.write_json("-", facts)
        return
    common.console_for().print(facts_table(facts, manifest, known))
    if plan is not None and plan.elsewhere:
        common.say(f"Note: {plan.elsewhere}", err=True)
