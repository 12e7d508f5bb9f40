"""The folder that tune writes, whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cnndeploy.certificate import certificate_path
from cnndeploy.deployment import PLAN_FILE, Plan
from cnndeploy.errors import ArtifactError
from cnndeploy.files import check_writable

BESIDE = ("tuning.json", "frontier.png")


def check_folder(path: Path, checkpoint: Path) -> None:
    """Find out before long work that the folder cannot be written, or would take the place of something else.

    Raises:
        ArtifactError: As it says; a folder with anything in it that tune did not write is never replaced.
    """
    if path.exists() and not _is_ours(path):
        raise ArtifactError(
            f"{path} exists and is no deployment that cnndeploy tune wrote, or holds other files too; choose another "
            "output folder"
        )
    if path == checkpoint.resolve() or path in checkpoint.resolve().parents:
        raise ArtifactError(
            f"the checkpoint {checkpoint} lies in {path}, which is to be written; choose another"
        )
    check_writable(path.with_name(f".{path.name}.{secrets.token_hex(6)}"))


def _is_ours(path: Path) -> bool:
    """Whether it is an empty folder, or has in it only what tune writes."""
    if not path.is_dir():
        return False
    held = {each.name for each in path.iterdir()}
    if not held:
        return True
    try:
        plan = Plan.from_json((path / PLAN_FILE).read_text())
    except (OSError, ValueError):
        return False
    return held <= {PLAN_FILE, *BESIDE, plan.file, certificate_path(plan.file).name}


@contextlib.contextmanager
def replacing_folder(path: Path, checkpoint: Path) -> Iterator[Path]:
    """Write a folder whole or not at all.

    Yields a new folder beside ``path``, which takes its place when the block ends well. A deployment that was there is
    then removed; when the block does not end well it is untouched.
    """
    temporary, old = (
        path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}") for kind in ("tmp", "old")
    )
    try:
        temporary.mkdir()
        try:
            yield temporary
            check_folder(path, checkpoint)
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
