"""Files and folders: written whole or not at all, with advice if that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from cnndeploy.errors import ArtifactError


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is text, unlike names in another encoding, which not every library takes."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yield the path of a temporary file in the same folder. If the block ends well, the file is flushed to disk and
    takes the place of ``path``; if not, it is removed and ``path`` stays as it was. Raise ArtifactError if the folder
    is missing or cannot be written to, or the disk is full.
    """
    import secrets  # not for an app that only reads

    path = _target(path)
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
    """Write ``content`` to ``path``, whole or not at all; raise what :func:`replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def check_writable(path: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Raise ArtifactError before long work if its result cannot be written, or would overwrite an input."""
    import tempfile  # not for an app that only reads

    path = Path(path)
    for given in inputs:
        # unlike Path.exists() this raises nothing if a name is too long, which is found out below
        if os.path.exists(path) and os.path.exists(given) and path.samefile(given):  # noqa: PTH110
            overwritten = "is also an input and would be overwritten"
            raise ArtifactError(f"{path} {overwritten}; choose another output path")
    real = _target(path)
    if os.path.exists(real) and not os.access(real, os.W_OK):  # noqa: PTH110
        raise ArtifactError(f"{path} exists and may not be written to; choose another output path")
    try:
        tempfile.NamedTemporaryFile(prefix=f".{real.name}.", suffix=".tmp", dir=real.parent).close()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {_advice(error, real.parent)}") from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they exist; raise ArtifactError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"the folder {path} cannot be made: {_advice(error, path)}") from error


def _target(path: str | os.PathLike[str]) -> Path:
    """Follow links, so that the file is replaced and not the link; raise ArtifactError if something else is there."""
    real = Path(os.path.realpath(path))
    if os.path.exists(real) and not real.is_file():  # noqa: PTH110 - as above
        raise ArtifactError(f"{path} exists and is not a regular file; choose another output path")
    return real


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
