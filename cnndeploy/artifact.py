"""Artifact: a model file on disk and its manifest; and how files are written so that nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnndeploy import registry
from cnndeploy.errors import ArtifactError
from cnndeploy.specs import Manifest


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file as it lies on disk.

    ``format`` is a name in the registry's ``formats``. ``manifest`` is None for a file of a known format
    that cnndeploy did not write.
    """

    path: Path
    format: str
    sha256: str
    manifest: Manifest | None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Recognise a file by its content and read its manifest; loads neither torch nor onnxruntime.

        Raises:
            ArtifactError: The file is missing, unreadable, or of no known format.
            CheckpointError: The file is a damaged checkpoint, or one that would run code.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            for name in registry.names("formats"):
                model_format = registry.get("formats", name)
                if model_format.recognises(path):
                    return cls(path, name, sha256, model_format.read_manifest(path))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file") from error
        except IsADirectoryError as error:
            raise ArtifactError(f"{path} is a folder; give the path of a model file") from error
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
        raise ArtifactError(
            f"{path} is damaged or not a model file. Known formats: {', '.join(registry.names('formats'))}."
        )

    def require_manifest(self) -> Manifest:
        """The manifest.

        Raises:
            ArtifactError: cnndeploy did not write this file.
        """
        if self.manifest is None:
            raise ArtifactError(
                f"{self.path} carries no cnndeploy manifest, so its preprocessing and labels are unknown. "
                "Write it with: cnndeploy export CHECKPOINT"
            )
        return self.manifest


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields the path of a temporary file in the same folder. When the block ends well the file is flushed to
    disk and takes the place of ``path``; when it does not, it is removed and what was there is untouched.

    Raises:
        ArtifactError: The folder is missing or cannot be written, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} exists and is not a regular file; choose another output path")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"{path} was not written: {_advice(error, path.parent)}") from error


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; raises what :func:`replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _advice(error: OSError, folder: Path) -> str:
    if error.errno == errno.ENOENT:
        return f"the folder {folder} does not exist; create it first"
    if error.errno == errno.ENOSPC:
        return f"the disk that holds {folder} is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the folder {folder} cannot be written to ({error.strerror}); choose another"
    return error.strerror or str(error)
