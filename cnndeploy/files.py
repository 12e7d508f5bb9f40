"""Files and folders: written whole or not at all, with advice if that fails."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cnndeploy.errors import ArtifactError

_LETTERS = 12  # hexadecimal, in the name of a temporary file
_SCRATCH = ".cnndeploy-scratch-"  # how the names of temporary folders begin
_STALE_S = 5.0  # of a temporary file that was not written to for so long: a new one is locked at once


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
    takes the place of ``path``; if not, it is removed and ``path`` stays as it was. Temporary files of ``path`` that
    killed processes left there are removed too. Raise ArtifactError if the folder is missing or cannot be written to,
    or the disk is full.
    """
    path = _target(path)
    temporary = _temporary(path)
    try:
        _sweep(path)
        with contextlib.ExitStack() as stack:
            stack.callback(temporary.unlink, missing_ok=True)
            _lock(stack.enter_context(temporary.open("xb")))
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path} was not written: {_advice(error, path.parent)}") from error


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; raise what :func:`replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def held(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Hold an output while it is worked on; if another process holds it, ``wait`` or raise ArtifactError.

    The operating system lets go of what a process held that crashed or was killed.
    """
    path = _target(path)
    lock = lock_path(path)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                file = stack.enter_context(lock.open("ab"))
            except OSError as error:
                raise ArtifactError(f"{path} cannot be written: {_advice(error, path.parent)}") from error
            if _lock(file, wait) is False:
                raise ArtifactError(
                    f"another process works on {path}; wait until it has ended, or choose another output"
                )
            if _is_at(file, lock):  # and was not removed by the process that held it before
                break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove open files; a stray one is nobody's
                lock.unlink(missing_ok=True)


def lock_path(path: str | os.PathLike[str]) -> Path:
    """Return the file that exists while an output is held; a process that was killed leaves it."""
    path = Path(path)
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new temporary folder, and remove it in the end, and before that those that killed processes left.

    Raise ArtifactError if there is no place for it.
    """
    import tempfile  # not for an app that only reads

    try:
        _sweep_scratch(Path(tempfile.gettempdir()))
        folder = tempfile.TemporaryDirectory(prefix=_SCRATCH)
    except OSError as error:
        raise ArtifactError(
            f"no temporary folder could be made: {error.strerror or error}. Free some space there, or set TMPDIR to "
            "another folder"
        ) from error
    with folder as name, _locked_folder(Path(name)):
        yield Path(name)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[bool | None]:
    """Hold a folder while the block runs; yield False if another process holds it, None if this system cannot tell."""
    if os.name == "nt":  # where no folder can be opened
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _sweep_scratch(parent: Path) -> None:
    """Remove temporary folders of this user that no process holds any more."""
    import shutil

    for left in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            about = left.lstat()
            is_stale = about.st_uid == os.getuid() and time.time() - about.st_mtime > _STALE_S
            with _locked_folder(left) as is_ours:
                if is_stale and is_ours:
                    shutil.rmtree(left, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Return a new name beside ``path`` for a temporary file, by which :func:`_sweep` knows it."""
    import secrets  # not for an app that only reads

    return path.with_name(f".{path.name}.{secrets.token_hex(_LETTERS // 2)}.tmp")


def _sweep(path: Path) -> None:
    """Remove temporary files of ``path`` that no process holds any more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * _LETTERS}.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > _STALE_S and _lock(file):
                left.unlink()


def _lock(file: BinaryIO | int, wait: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed.

    Return False if another process holds it, and None if this system cannot tell.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def check_writable(path: str | os.PathLike[str], *inputs: str | os.PathLike[str]) -> None:
    """Raise ArtifactError before long work if its result cannot be written, or would overwrite an input."""
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
        trial = _temporary(real)
        trial.open("xb").close()
        trial.unlink()
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
