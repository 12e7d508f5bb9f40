"""Exporter: a format to write a checkpoint in; the registry of exporters; and export(), which uses one."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from cnndeploy.artifact import Artifact
from cnndeploy.certificate import remove_stale_certificate
from cnndeploy.errors import ExportError, MissingDependencyError, UnknownNameError
from cnndeploy.files import check_writable
from cnndeploy.machine import versions
from cnndeploy.registry import Registry
from cnndeploy.specs import Manifest, Resizing

if TYPE_CHECKING:
    from cnndeploy.checkpoint import Checkpoint

ModelInput = Literal["tensor", "image"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of :func:`export`; for ``simplify`` see :mod:`cnndeploy.simplification`."""

    opset: int | None = None
    input: ModelInput = "tensor"
    simplify: bool = True
    resize: Resizing = "native"


class Exporter(Protocol):
    """An exporter for one format; the module's ``EXPORTER`` is an instance."""

    format: str
    suffix: str
    package: str
    """The import name of the package that it writes with; an exporter of another package need not say."""
    options: frozenset[str]
    """The fields of ExportOptions that this exporter uses."""

    def export(self, checkpoint: Checkpoint, path: Path, options: ExportOptions) -> Artifact:
        """Write ``checkpoint`` to ``path``, whole or not at all; write the same bytes for the same checkpoint.

        Raise ExportError if the file does not pass the exporter's own checks, ArtifactError if it cannot be written.
        """


EXPORTERS: Registry[Exporter] = Registry("exporters", "EXPORTER")


def usual_formats() -> list[str]:
    """Return the formats that are written if none is named: all but ExecuTorch, for those who deploy to a phone."""
    return [name for name in EXPORTERS.names() if name != "executorch"]


def missing_package(name: str) -> str:
    """Return the package that an exporter lacks here, or nothing if it can write."""
    package = getattr(EXPORTERS.get(name), "package", "")  # those of other packages need not say
    return package if package and importlib.util.find_spec(package) is None else ""


def exported_manifest(checkpoint: Checkpoint) -> Manifest:
    """Return the manifest for an exported file, which names the checkpoint and the versions."""
    return replace(checkpoint.manifest, checkpoint_sha256=checkpoint.sha256, versions=versions())


def export(
    checkpoint: str | Path,
    model_format: str,
    output: str | Path | None = None,
    *,
    input: ModelInput = "tensor",  # noqa: A002 - the field's name, and the command line's
    opset: int | None = None,
    simplify: bool = True,
    resize: Resizing = "native",
) -> Artifact:
    """Export a checkpoint file, beside itself unless ``output`` says otherwise.

    Args:
        checkpoint: A file that ``cnndeploy train`` wrote.
        model_format: A name in ``cnndeploy list``, such as ``"onnx"``.
        output: The file to write; the checkpoint's name with the format's suffix by default.
        input: ``tensor``: the file takes float32 (batch, channels, height, width), prepared as the manifest says.
            ``image``: it takes raw images, uint8 (batch, height, width) or for RGB (batch, height, width, 3), of any
            size, does the preprocessing itself, and returns ``logits`` and ``probabilities``.
        opset: ONNX opset, None for the exporter's default.
        simplify: First apply rewrites that are exact in real numbers, so that the file computes the same with less
            work. Its manifest lists them. False writes the checkpoint's network layer by layer.
        resize: How a file that takes raw images resizes them as Pillow does. ``native``: by ONNX's Resize, for ONNX
            Runtime. ``portable``: by matrix products, for every other runtime; on ONNX Runtime bit for bit. Images that
            are resized without antialias need no such choice.

    Raises:
        UnknownNameError: There is no such format, or no such input.
        CheckpointError: ``checkpoint`` cannot be read.
        MissingDependencyError: The package that writes this format is not installed.
        ExportError, ArtifactError: As in :meth:`Exporter.export`.

    >>> artifact = cnndeploy.export("lenet.pt", "onnx", "lenet-image.onnx", input="image")
    >>> print(artifact.require_manifest().input)
    uint8 (batch, height, width)
    """
    exporter = EXPORTERS.get(model_format)
    if input not in get_args(ModelInput):
        raise UnknownNameError("input", input, get_args(ModelInput))
    if resize not in get_args(Resizing):
        raise UnknownNameError("form of resizing", resize, get_args(Resizing))
    if input == "image" and "input" not in exporter.options:
        raise ExportError(f"the exporter {model_format} writes no files that take raw images")
    if missing := missing_package(model_format):
        raise MissingDependencyError(missing)

    from cnndeploy.checkpoint import Checkpoint  # needs torch, which get() has just made sure of

    target = Path(output) if output is not None else Path(checkpoint).with_suffix(exporter.suffix)
    loaded = Checkpoint.load(checkpoint)
    check_writable(target, checkpoint)
    if not loaded.is_finite():
        raise ExportError(f"{checkpoint} holds weights that are NaN or infinite; train it again")
    options = ExportOptions(opset=opset, input=input, simplify=simplify, resize=resize)
    artifact = exporter.export(loaded, target, options)
    remove_stale_certificate(artifact.path)
    return artifact
