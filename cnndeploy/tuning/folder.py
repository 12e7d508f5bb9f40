"""The folder that tune writes, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cnndeploy.artifact import check_writable
from cnndeploy.deployment import is_deployment
from cnndeploy.errors import ArtifactError


def check_folder(path: Path) -> None:
    """Find out before long work that the folder cannot be written, or would take the place of something else.

    Raises:
        ArtifactError: As it says.
    """
    if path.exists() and not is_deployment(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ArtifactError(
            f"{path} exists and is no deployment that cnndeploy tune wrote; choose another output folder"
        )
    probe = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    check_writable(probe)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder whole or not at all.

    Yields a new folder beside ``path``, which takes its place when the block ends well. A deployment that was there is
    then removed; when the block does not end well it is untouched.
    """
    path = Path(os.path.realpath(path))
    temporary, old = (
        path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}") for kind in ("tmp", "old")
    )
    try:
        temporary.mkdir()
        try:
            yield temporary
            check_folder(path)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{path} was not written: {error.strerror or error}") from error
