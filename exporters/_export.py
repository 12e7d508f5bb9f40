"""Exporter: one format that a checkpoint can be written in, the registry of all, and how one is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from cnndeploy.artifact import Artifact
from cnndeploy.certificate import remove_stale_certificate
from cnndeploy.errors import ExportError, UnknownNameError
from cnndeploy.files import check_writable
from cnndeploy.machine import versions
from cnndeploy.registry import Registry
from cnndeploy.specs import Manifest

if TYPE_CHECKING:
    from cnndeploy.checkpoint import Checkpoint

ModelInput = Literal["tensor", "image"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may choose, as :func:`export` says; for ``simplify`` see :mod:`cnndeploy.simplification`."""

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

        Raise ExportError if the file does not pass the exporter's own checks, ArtifactError if it cannot be written.
        """


EXPORTERS: Registry[Exporter] = Registry("exporters", "EXPORTER")


def exported_manifest(checkpoint: Checkpoint) -> Manifest:
    """Return the manifest as it goes into an exported file: it names the checkpoint and the versions."""
    return replace(checkpoint.manifest, checkpoint_sha256=checkpoint.sha256, versions=versions())


def export(
    checkpoint: str | Path,
    model_format: str,
    output: str | Path | None = None,
    *,
    input: ModelInput = "tensor",  # noqa: A002 - the field's name, and the command line's
    opset: int | None = None,
    simplify: bool = True,
) -> Artifact:
    """Export a checkpoint file, beside itself unless ``output`` says otherwise.

    Args:
        checkpoint: What ``cnndeploy train`` wrote.
        model_format: A name in ``cnndeploy list``, such as ``"onnx"``.
        output: The file to write; the checkpoint's name with the format's suffix by default.
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
    exporter = EXPORTERS.get(model_format)
    if input not in get_args(ModelInput):
        raise UnknownNameError("input", input, get_args(ModelInput))
    if input == "image" and "input" not in exporter.options:
        raise ExportError(f"the exporter {model_format} writes no files that take raw images")

    from cnndeploy.checkpoint import Checkpoint  # needs torch, which get() has just made sure of

    target = Path(output) if output is not None else Path(checkpoint).with_suffix(exporter.suffix)
    loaded = Checkpoint.load(checkpoint)
    check_writable(target, checkpoint)
    if not loaded.is_finite():
        raise ExportError(f"{checkpoint} holds weights that are NaN or infinite; train it again")
    artifact = exporter.export(loaded, target, ExportOptions(opset=opset, input=input, simplify=simplify))
    remove_stale_certificate(artifact.path)
    return artifact
