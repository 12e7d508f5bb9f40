"""Exporters: write a checkpoint as a self-contained file. One file each; imported as ``cnndeploy.exporters``.

An exporter checks its own file, reopened from disk, before the file takes its name.
"""

from __future__ import annotations

if __name__ != "cnndeploy.exporters":
    raise ImportError(f"import this package as cnndeploy.exporters, not as {__name__}")

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cnndeploy import registry
from cnndeploy.artifact import Artifact, check_writable
from cnndeploy.errors import ExportError
from cnndeploy.machine import versions
from cnndeploy.specs import Manifest

if TYPE_CHECKING:
    from cnndeploy.training.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a user may choose; ``opset`` is ONNX's, None for the exporter's default."""

    opset: int | None = None


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
    checkpoint: str | Path, model_format: str, path: str | Path | None = None, *, opset: int | None = None
) -> Artifact:
    """Export a checkpoint file, beside itself unless ``path`` says otherwise.

    Args:
        checkpoint: What ``cnndeploy train`` wrote.
        model_format: A name in ``cnndeploy list``, such as ``"onnx"``.
        path: The file to write; the checkpoint's name with the format's suffix by default.
        opset: ONNX opset, None for the exporter's default.

    Raises:
        UnknownNameError: No such format.
        CheckpointError: ``checkpoint`` cannot be read.
        ExportError, ArtifactError: As :meth:`Exporter.export`.
    """
    exporter = registry.get("exporters", model_format)

    from cnndeploy.training.checkpoint import Checkpoint  # needs torch, which get() has just made sure of

    target = Path(path) if path is not None else Path(checkpoint).with_suffix(exporter.suffix)
    loaded = Checkpoint.load(checkpoint)
    check_writable(target, checkpoint)
    if not loaded.is_finite():
        raise ExportError(f"{checkpoint} holds weights that are NaN or infinite; train it anew")
    return exporter.export(loaded, target, ExportOptions(opset=opset))


def exported_manifest(checkpoint: Checkpoint) -> Manifest:
    """The checkpoint's manifest as it goes into an exported file: names its checkpoint and the versions."""
    return replace(checkpoint.manifest, checkpoint_sha256=checkpoint.sha256, versions=versions())
