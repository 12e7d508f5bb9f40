"""Exporter: one format that a checkpoint can be written in, and the registry of all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cnndeploy.artifact import Artifact
from cnndeploy.machine import versions
from cnndeploy.registry import Registry
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


EXPORTERS: Registry[Exporter] = Registry("exporters", "EXPORTER")


def exported_manifest(checkpoint: Checkpoint) -> Manifest:
    """Return the manifest as it goes into an exported file: it names the checkpoint and the versions."""
    return replace(checkpoint.manifest, checkpoint_sha256=checkpoint.sha256, versions=versions())
