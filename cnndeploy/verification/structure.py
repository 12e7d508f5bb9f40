"""What can be said of two files before anything is run: their manifests and graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.verification.runner import Runner

# Operators that a network ready to deploy has no use for. ONNX Runtime removes even a Dropout in training mode from
# the middle of a graph by default (EliminateDropout), so that only its absence is proof.
_RANDOM = frozenset(
    [
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ]
)
_SAME = ("architecture", "input", "output", "probabilities", "preprocessing", "labels", "training")


def mismatches(runner: Runner, checkpoint: Artifact) -> list[str]:
    """Return what differs between an opened artifact and its checkpoint before anything is run."""
    artifact, expected = runner.candidate.artifact, checkpoint.require_manifest()
    if artifact.require_manifest().takes_images:
        expected = expected.taking_images()
    values, wanted = artifact.require_manifest().to_dict(), expected.to_dict()
    reasons = []
    source = artifact.sha256 if artifact.format == "checkpoint" else values["checkpoint_sha256"]
    if source != checkpoint.sha256:
        reasons.append(f"it was exported from another checkpoint: {source}, not {checkpoint.sha256}")
    for field in _SAME:
        if (difference := _first_difference(field, values[field], wanted[field])) is not None:
            reasons.append(f"the manifests differ: {difference}")
    if random := sorted(_RANDOM & artifact.describe()["operators"].keys()):
        reasons.append(
            f"the graph contains {', '.join(random)}: something random is active, as dropout in training is, even "
            "if a runtime's optimisation removes it"
        )
    for kind, specs, right in (
        ("input", runner.inputs, (expected.input,)),
        ("output", runner.outputs, expected.outputs),
    ):
        if specs != right:
            texts = [", ".join(f"{spec.name} {spec}" for spec in side) for side in (specs, right)]
            fixed = isinstance(specs[0].shape[0], int) if specs and specs[0].shape else False
            reasons.append(
                f"the graph's {kind} is {texts[0]}, not {texts[1]}"
                + (": the batch axis is fixed" if fixed else "")
            )
    return reasons


def _first_difference(name: str, value: Any, wanted: Any) -> str | None:
    """Say what differs first between two values of JSON."""
    if value == wanted:
        return None
    pairs: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(value, dict) and isinstance(wanted, dict):
        pairs = ((f"{name}.{key}", value.get(key), wanted.get(key)) for key in value | wanted)
    elif isinstance(value, list | tuple) and len(value) == len(wanted):
        pairs = ((f"{name}[{index}]", *both) for index, both in enumerate(zip(value, wanted, strict=True)))
    inner = (_first_difference(*pair) for pair in pairs)
    return next(filter(None, inner), f"{name} is {value!r}, the checkpoint's {wanted!r}")
