"""What can be said of two files before anything is run: manifests, graphs, and whether a file was replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.equivalence.side import Side
from cnndeploy.errors import CnndeployError

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


def mismatches(candidate: Side, reference: Side) -> list[str]:
    """What can be said to differ before anything is run."""
    artifact, against = candidate.artifact, reference.artifact
    expected = against.require_manifest()
    if artifact.require_manifest().takes_images:
        expected = expected.taking_images()
    ours, theirs = artifact.require_manifest().to_dict(), expected.to_dict()
    reasons = [
        f"{side.artifact.path} was replaced before it was opened"
        for side in (candidate, reference)
        if side.sha256 != side.artifact.sha256
    ]
    source = artifact.sha256 if artifact.format == "checkpoint" else ours["checkpoint_sha256"]
    if source != against.sha256:
        reasons.append(f"it was exported from another checkpoint: {source}, not {against.sha256}")
    for field in (
        "architecture",
        "input",
        "output",
        "probabilities",
        "preprocessing",
        "labels",
        "training",
    ):
        if (difference := _first_difference(field, ours[field], theirs[field])) is not None:
            reasons.append(f"the manifests differ: {difference}")
    if random := sorted(_RANDOM & artifact.describe()["operators"].keys()):
        reasons.append(
            f"the graph contains {', '.join(random)}: something random is active, as dropout in training is, even "
            "where a runtime's optimisation removes it"
        )
    for kind, specs, wanted in (
        ("input", candidate.inputs, (expected.input,)),
        ("output", candidate.outputs, expected.outputs),
    ):
        if specs != wanted:
            found, right = (", ".join(f"{spec.name} {spec}" for spec in each) for each in (specs, wanted))
            fixed = isinstance(specs[0].shape[0], int) if specs and specs[0].shape else False
            reasons.append(
                f"the graph's {kind} is {found}, not {right}" + (": the batch axis is fixed" if fixed else "")
            )
    return reasons


def is_unchanged(artifact: Artifact) -> bool:
    """Whether the file still is what was opened."""
    try:
        return Artifact.open(artifact.path).sha256 == artifact.sha256
    except CnndeployError:  # gone, or no model file any more
        return False


def _first_difference(name: str, ours: Any, theirs: Any) -> str | None:
    """What differs first between two values of JSON, in words."""
    if ours == theirs:
        return None
    pairs: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = ((f"{name}.{key}", ours.get(key), theirs.get(key)) for key in ours | theirs)
    elif isinstance(ours, list | tuple) and len(ours) == len(theirs):
        pairs = ((f"{name}[{at}]", *both) for at, both in enumerate(zip(ours, theirs, strict=True)))
    inner = (_first_difference(*pair) for pair in pairs)
    return next(filter(None, inner), f"{name} is {ours!r}, the checkpoint's {theirs!r}")
