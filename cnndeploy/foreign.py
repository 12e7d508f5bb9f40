"""ONNX files that cnndeploy did not write: what the caller says of them is compared with their graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.runtimes import Session
from cnndeploy.specs import Manifest, TensorSpec
from cnndeploy.words import counted


def refuse_training(artifact: Artifact, operators: Sequence[str]) -> None:
    """Raise ArtifactError if there are ``operators`` in training mode."""
    if operators:
        raise ArtifactError(
            f"{artifact.path} was exported in training mode: {', '.join(operators)} makes an image's result depend on "
            "the other images, or on chance. Export it again from a network in evaluation mode, by model.eval()"
        )


def told_manifest(session: Session, labels: Sequence[str], preprocessing: Preprocessing) -> Manifest:
    """Build a manifest for a foreign ONNX file from its graph."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ArtifactError(f"labels are a list of class names, not {labels!r}")
    if not isinstance(preprocessing, Preprocessing):
        raise ArtifactError(
            f"preprocessing is a cnndeploy.Preprocessing, not {preprocessing!r:.80}; "
            "cnndeploy.preprocessing_of makes one"
        )
    specs = (*session.inputs, *session.outputs[:1])
    wanted = [("float32", preprocessing.shape), ("float32", (len(labels),))]
    takes_and_gives = [(spec.dtype, spec.shape[1:]) for spec in specs]
    if session.inputs and _takes_any(specs[0].shape[1:], preprocessing.shape):
        specs = (replace(specs[0], shape=(specs[0].shape[0], *preprocessing.shape)), *specs[1:])
        takes_and_gives[0] = (specs[0].dtype, preprocessing.shape)
    if takes_and_gives != wanted and takes_and_gives[:1] == wanted[:1] and _is_of_classes(specs[1:]):
        count = specs[1].shape[1]
        raise ArtifactError(
            f"{counted(len(labels), 'label')} came, but {session.artifact.path} gives {counted(count, 'logit')} for an "
            "image; pass one label for each class, in the order of the logits"
        )
    fits = takes_and_gives == wanted
    size = ", ".join(map(str, preprocessing.shape))
    if not fits or not (specs[0].shape[0] == 1 or isinstance(specs[0].shape[0], str)):
        channels = specs[0].shape[1:2] if session.inputs else ()
        advice = f"; say channels={channels[0]} in the preprocessing" if channels in ((1,), (3,)) else ""
        raise ArtifactError(
            f"{session.artifact.path} takes and gives {listed(session)}, but with this preprocessing and these labels "
            f"it should take float32 (batch, {size}) and give logits, float32 (batch, {len(labels)})"
            f"{advice if channels != (preprocessing.channels,) else ''}"
        )
    return Manifest("unknown", specs[0], specs[1], preprocessing, tuple(labels))


def _takes_any(axes: Sequence[int | str], shape: Sequence[int]) -> bool:
    """Return whether axes, of which some may be of any length, take this shape."""
    return len(axes) == len(shape) and all(
        isinstance(a, str) or a == b for a, b in zip(axes, shape, strict=True)
    )


def _is_of_classes(outputs: Sequence[TensorSpec]) -> bool:
    """Return whether the only output is logits, float32 (batch, a number of classes)."""
    return [(spec.dtype, tuple(map(type, spec.shape[1:]))) for spec in outputs] == [("float32", (int,))]


def listed(session: Session) -> str:
    """Return a session's inputs and outputs in words."""
    specs = (session.inputs, session.outputs)
    return "; ".join(" and ".join(f"{spec.name} {spec}" for spec in side) or "nothing" for side in specs)
