"""Exporters: write a checkpoint as a self-contained file. One file each; imported as ``cnndeploy.exporters``.

An exporter checks its own file, reopened from disk, before the file takes its name.
"""

from __future__ import annotations

if __name__ != "cnndeploy.exporters":
    raise ImportError(f"import this package as cnndeploy.exporters, not as {__name__}")

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from cnndeploy import registry
from cnndeploy.artifact import Artifact, check_writable, remove_stale_certificate
from cnndeploy.errors import ExportError, UnknownNameError
from cnndeploy.machine import versions
from cnndeploy.specs import Manifest

if TYPE_CHECKING:
    from cnndeploy.checkpoint import Checkpoint

ModelInput = Literal["tensor", "image"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may choose.

    ``opset`` is ONNX's, None for the exporter's default. ``input`` is ``tensor`` for a file that takes what the
    manifest's preprocessing gives, ``image`` for one that takes raw images and does the preprocessing itself.
    ``simplify``: whether exact rewrites are applied first; see :mod:`cnndeploy.simplification`.
    """

    opset: int | None = None
    input: ModelInput = "tensor"
    simplify: bool = True


class Exporter(Protocol):
    """One format; the module's ``EXPORTER`` is an instance."""

    format: str
    suffix: str
    options: frozenset[str]
    """The fields of ExportOptions that this exporter heeds."""

    def export(self, checkpoint: Checkpoint, path: Path, options: ExportOptions) -> Artifact:
        """Write ``checkpoint`` to ``path``, whole or not at all; the same checkpoint gives the same bytes.

        Raises:
            ExportError: The file written does not pass the exporter's own checks.
            ArtifactError: ``path`` cannot be written.
        """


def export(
    checkpoint: str | Path,
    model_format: str,
    path: str | Path | None = None,
    *,
    input: ModelInput = "tensor",  # noqa: A002 - the field's name, and the command line's
    opset: int | None = None,
    simplify: bool = True,
) -> Artifact:
    """Export a checkpoint file, beside itself unless ``path`` says otherwise.

    Args:
        checkpoint: What ``cnndeploy train`` wrote.
        model_format: A name in ``cnndeploy list``, such as ``"onnx"``.
        path: The file to write; the checkpoint's name with the format's suffix by default.
        input: ``tensor``: the file takes float32 (batch, 1, height, width) as the manifest's preprocessing gives it.
            ``image``: it takes raw images, uint8 (batch, height, width) of any size, does the preprocessing itself,
            and gives ``logits`` and ``probabilities``.
        opset: ONNX opset, None for the exporter's default.
        simplify: Apply rewrites first that are exact in real numbers, so that the file computes the same with less
            work; its manifest lists them. False writes the checkpoint's network layer by layer.

    Raises:
        UnknownNameError: No such format, or no such input.
        CheckpointError: ``checkpoint`` cannot be read.
        ExportError, ArtifactError: As :meth:`Exporter.export`.

    >>> artifact = cnndeploy.export("lenet.pt", "onnx", "lenet-image.onnx", input="image")
    >>> print(artifact.require_manifest().input)
    uint8 (batch, height, width)
    """
    exporter = registry.get("exporters", model_format)
    if input not in get_args(ModelInput):
        raise UnknownNameError("input", input, get_args(ModelInput))
    if input == "image" and "input" not in exporter.options:
        raise ExportError(f"the exporter {model_format} writes no files that take raw images")

    from cnndeploy.checkpoint import Checkpoint  # needs torch, which get() has just made sure of

    target = Path(path) if path is not None else Path(checkpoint).with_suffix(exporter.suffix)
    loaded = Checkpoint.load(checkpoint)
    check_writable(target, checkpoint)
    if not loaded.is_finite():
        raise ExportError(f"{checkpoint} holds weights that are NaN or infinite; train it anew")
    artifact = exporter.export(loaded, target, ExportOptions(opset=opset, input=input, simplify=simplify))
    remove_stale_certificate(artifact.path)
    return artifact


def exported_manifest(checkpoint: Checkpoint) -> Manifest:
    """The checkpoint's manifest as it goes into an exported file: names its checkpoint and the versions."""
    return replace(checkpoint.manifest, checkpoint_sha256=checkpoint.sha256, versions=versions())
