"""Artifact: a model file on disk and its manifest; and how files are written so that nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnndeploy import registry
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.specs import Manifest

_BUDGET_FIGURES = (
    "images",
    "budget_points",
    "loss_points",
    "loss_low_points",
    "loss_high_points",
    "artifact_accuracy",
    "checkpoint_accuracy",
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file as it lies on disk.

    ``format`` is a name in the registry's ``formats``. ``manifest`` is None for a file of a known format
    that cnndeploy did not write.

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
            if path.exists() and not path.is_file():
                raise ArtifactError(f"{path} is a folder or device; give the path of a model file")
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            for name in registry.names_in_turn("formats", path.suffix.removeprefix(".")):
                model_format = registry.get("formats", name)
                if model_format.recognises(path):
                    return cls(path, name, sha256, model_format.read_manifest(path))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file") from error
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from error
        except CnndeployError:
            raise
        except Exception as error:  # whatever a damaged or hostile file makes its reader do
            raise ArtifactError(f"{path} is damaged ({error!r}). Make it anew.") from error
        raise ArtifactError(
            f"{path} is damaged or not a model file. Known formats: {', '.join(registry.names('formats'))}."
        )

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts of the format's own, at least ``operators``, name to count.

        Raises:
            ArtifactError: The file is damaged.
        """
        try:
            return registry.get("formats", self.format).describe(self.path)
        except Exception as error:  # as in open()
            raise ArtifactError(f"{self.path} is damaged ({error!r}). Make it anew.") from error

    def require_manifest(self) -> Manifest:
        """The manifest.

        Raises:
            ArtifactError: cnndeploy did not write this file.
        """
        if self.manifest is None:
            raise ArtifactError(
                f"{self.path} carries no cnndeploy manifest, so its preprocessing and labels are unknown. "
                "Write it with cnndeploy export CHECKPOINT, or give load() an ONNX file's labels= and preprocessing=."
            )
        return self.manifest


def certificate_path(artifact: str | os.PathLike[str]) -> Path:
    """Where the certificate of an artifact lies: beside it."""
    return Path(f"{os.fspath(artifact)}.verified.json")


def read_certificate(artifact: Artifact) -> dict[str, Any] | None:
    """The certificate of exactly this file, None where there is none or it is another file's.

    Its ``verdict`` is ``equivalent``, or for a file that is lossy, or was run so, ``within budget``, with the figures.
    """
    path = certificate_path(artifact.path)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        content = {
            "verdict": "equivalent",
            "options": {},
            **content,
        }  # so was each before files could be lossy
        passes = _says_equivalent if content["verdict"] == "equivalent" else _says_within_budget
        matches = passes(content, artifact) and content["artifact"]["sha256"] == artifact.sha256
        known = {"runtime", "device", "images", "date"} <= content.keys() and bool(
            content["against"]["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if matches and known else None


def _says_equivalent(content: Mapping[str, Any], artifact: Artifact) -> bool:
    lossy = artifact.manifest is not None and artifact.manifest.lossy
    return content["equivalent"] is True and not lossy and _precision(content) == "float32"


def _says_within_budget(content: Mapping[str, Any], artifact: Artifact) -> bool:
    """Of a lossy file or run, whose figures are there and say so themselves."""
    lossy = (artifact.manifest is not None and artifact.manifest.lossy) or _precision(content) != "float32"
    claims = (content["verdict"], content["equivalent"], content["within_budget"])
    figures = [content[name] for name in _BUDGET_FIGURES]
    finite = all(type(each) in (int, float) and math.isfinite(each) for each in figures)
    return (
        lossy
        and claims == ("within budget", False, True)
        and finite
        and content["images"] > 0
        and content["loss_high_points"] <= content["budget_points"]
    )


def _precision(content: Mapping[str, Any]) -> str:
    """That the runtime was asked for; raises what :func:`read_certificate` takes for a damaged certificate."""
    options = content["options"]
    if not options.keys() <= {"spinning", "precision"}:
        raise ValueError(f"not options of a runtime: {options}")
    return str(options.get("precision", "float32"))


def remove_stale_certificate(artifact: str | os.PathLike[str]) -> None:
    """Remove the certificate that is not of the file as it is now; one that is stands, whatever else went wrong."""
    try:
        stale = read_certificate(Artifact.open(artifact)) is None
    except CnndeployError:  # gone, or no model file any more
        stale = True
    if stale:
        with contextlib.suppress(OSError):
            certificate_path(artifact).unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields the path of a temporary file in the same folder. When the block ends well the file is flushed to
    disk and takes the place of ``path``; when it does not, it is removed and what was there is untouched.

    Raises:
        ArtifactError: The folder is missing or cannot be written, or the disk is full.
    """
    import secrets  # not for an app that only reads

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


def check_writable(path: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Find out before long work that its result cannot be written, or would take the place of an input.

    Raises:
        ArtifactError: As :func:`replacing`, or ``path`` is one of ``inputs``.
    """
    import tempfile  # not for an app that only reads

    path = Path(path)
    for given in inputs:
        if path.exists() and Path(given).exists() and path.samefile(given):
            raise ArtifactError(
                f"{path} is also an input and would be overwritten; choose another output path"
            )
    real = Path(os.path.realpath(path))
    if real.exists():
        if not real.is_file():
            raise ArtifactError(f"{path} exists and is not a regular file; choose another output path")
        if not os.access(real, os.W_OK):
            raise ArtifactError(f"{path} exists and may not be written to; choose another output path")
    try:
        descriptor, probe = tempfile.mkstemp(prefix=f".{real.name}.", suffix=".tmp", dir=real.parent)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {_advice(error, real.parent)}") from error
    os.close(descriptor)
    Path(probe).unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are not there; raises ArtifactError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"the folder {path} cannot be made: {_advice(error, path)}") from error


def _advice(error: OSError, folder: Path) -> str:
    if error.errno == errno.ENOENT and not folder.exists():
        return f"the folder {folder} does not exist; create it first"
    if error.errno == errno.ENOSPC:
        return f"the disk that holds {folder} is full; free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        return f"the folder {folder} cannot be written to; choose another"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file of that name, or of one above it, is in the way; choose another"
    if error.errno == errno.ENAMETOOLONG:
        return "the file name is too long; choose a shorter one"
    return error.strerror or str(error)
