"""Artifact: a model file on disk and its manifest."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.formats import FORMATS
from cnndeploy.kinds import kind_of
from cnndeploy.limits import BeyondLimit
from cnndeploy.specs import Manifest

# Operators of ONNX and ONNX Runtime that are quantised, as QLinearConv, ConvInteger and DequantizeLinear.
_LOSSY = re.compile(r"^QLinear|^QGemm|Integer|QuantizeLinear$|^DequantizeLinear$")
_KINDS = {
    "checkpoint": "a checkpoint",
    "executorch": "an ExecuTorch file",
    "onnx": "an ONNX file",
    "torchscript": "a TorchScript file",
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file on disk.

    ``format`` is a name in the registry of formats. ``manifest`` is None for a file of a known format that cnndeploy
    did not write.

    >>> artifact = cnndeploy.Artifact.open("lenet.onnx")
    >>> artifact.format, len(artifact.sha256), artifact.require_manifest().labels[0]
    ('onnx', 64, 'T-shirt/top')
    """

    path: Path
    format: str
    sha256: str
    manifest: Manifest | None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Recognise a file by its content and read its manifest; loads neither torch nor onnxruntime.

        Raises:
            ArtifactError: The file is missing, unreadable, damaged, or of no known format.
            CheckpointError: The file is a checkpoint that would run code, or that cnndeploy did not write.
        """
        if not isinstance(path, str | os.PathLike):
            raise ArtifactError(f"expected the path of a model file, got {type(path).__name__}")
        path = Path(path)
        try:
            if path.is_dir():
                raise ArtifactError(
                    f"{path} is a folder; give the path of a file that cnndeploy train or cnndeploy export wrote"
                )
            if path.exists() and not path.is_file():
                raise ArtifactError(f"{path} is a device or pipe; give the path of a model file")
            sha256 = sha256_of(path)
            for name in FORMATS.names_in_turn(path.suffix.removeprefix(".")):
                model_format = FORMATS.get(name)
                if model_format.recognises(path):
                    return cls(path, name, sha256, model_format.read_manifest(path))
            raise ArtifactError(_of_no_format(path))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file{_dangling(path)}") from error
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
        except CnndeployError:
            raise
        except Exception as error:  # a damaged or hostile file may make its reader raise anything
            raise _refusal(path, error) from error

    @property
    def kind(self) -> str:
        """The file's format as a sentence says it: ``an ONNX file``."""
        if self.format == "checkpoint" and not self.is_reference:
            return "a compressed checkpoint"
        return _KINDS.get(self.format, f"a file of the format {self.format}")

    @property
    def is_reference(self) -> bool:
        """Whether other files are compared with it: a checkpoint, or an ONNX file that was imported.

        A compressed checkpoint is not: it is itself compared with the one that it was made of.
        """
        if self.format == "checkpoint":
            return self.manifest is None or self.manifest.compression is None
        return self.manifest is not None and self.manifest.is_reference

    def describe(self) -> dict[str, Any]:
        """Return JSON-ready facts, at least ``operators``, name to count; raise ArtifactError for a damaged file."""
        try:
            return FORMATS.get(self.format).describe(self.path)
        except Exception as error:  # as in open()
            raise _refusal(self.path, error) from error

    def require_manifest(self) -> Manifest:
        """Return the manifest; raise ArtifactError if cnndeploy did not write this file."""
        if self.manifest is None:
            raise ArtifactError(
                f"{self.path} carries no cnndeploy manifest, so its preprocessing and labels are unknown. "
                "Write the file with cnndeploy export CHECKPOINT, give an ONNX file of another tool a manifest with "
                "cnndeploy import, or in Python pass labels= and preprocessing= to cnndeploy.load()."
            )
        return self.manifest

    def lossy_parts(self) -> list[str]:
        """Name what computes in less than float32 although the manifest knows of nothing that does.

        Then another program changed the file after cnndeploy wrote it, and left the manifest as it was.
        """
        if self.manifest is None or self.manifest.lossy:
            return []
        facts = self.describe()
        operators = [name for name in facts["operators"] if _LOSSY.search(name)]
        return operators + [
            f"{dtype} constants" for dtype in facts.get("constants", ()) if dtype == "float16"
        ]

    def is_unchanged(self) -> bool:
        """Return whether the file still holds the bytes that were opened."""
        try:
            return sha256_of(self.path) == self.sha256
        except OSError:  # it is gone
            return False


def _of_no_format(path: Path) -> str:
    """Say what a file is instead, as far as its first bytes tell."""
    if kind := kind_of(path):
        return f"{path} is no model file that is read here, but {kind}."
    state = "damaged or not a model file" if path.stat().st_size else "empty"
    known = ", ".join(FORMATS.names())
    return (
        f"{path} is {state}. Known formats: {known}. cnndeploy train and cnndeploy export write such files."
    )


def _refusal(path: Path, error: Exception) -> ArtifactError:
    if isinstance(error, BeyondLimit):
        return ArtifactError(f"{path} is refused: {error}")
    return ArtifactError(f"{path} is damaged ({_reason(error)}). Make it again.")


def _reason(error: Exception) -> str:
    """Say what a reader raised: a ValueError's text is ours, another error says little without its name."""
    return str(error) if type(error) is ValueError else f"{error!r:.200}"


def _dangling(path: Path) -> str:
    return f"; it is a link to {path.readlink()}, which is not there" if path.is_symlink() else ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; raise OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(sha256: str | None) -> str:
    """Return as much of a SHA-256 as people compare, ``unknown`` if there is none."""
    return f"{sha256[:8]}..." if sha256 else "unknown"
