"""The folder that tune writes, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cnndeploy.certificate import certificate_path, certify
from cnndeploy.deployment import PLAN_FILE, Candidate, Plan
from cnndeploy.errors import ArtifactError
from cnndeploy.files import check_writable, lock_path, write_file
from cnndeploy.limits import read_text
from cnndeploy.serial import dumps
from cnndeploy.tuning.report import TuneReport
from cnndeploy.verification.report import Verdict

BESIDE = ("tuning.json", "frontier.png")


def check_folder(path: Path, checkpoint: Path) -> None:
    """Raise ArtifactError before long work if the folder cannot be written, or holds what tune did not write."""
    if path.exists() and not _is_ours(path):
        raise ArtifactError(
            f"{path} exists and is no deployment that cnndeploy tune wrote, or holds other files too; choose another "
            "output folder"
        )
    target = _target(path)
    if target == checkpoint.resolve() or target in checkpoint.resolve().parents:
        raise ArtifactError(
            f"the checkpoint {checkpoint} lies in {path}, which would be written; choose another output folder"
        )
    check_writable(target.with_name(f".{target.name}.{secrets.token_hex(6)}"))


def _target(path: Path) -> Path:
    """Return where the folder is written: a link stays a link."""
    return Path(os.path.realpath(path))


def _is_ours(path: Path) -> bool:
    """Return whether a folder is empty, or holds only what tune writes."""
    try:
        if not (held := {entry.name for entry in path.iterdir()}):
            return True
        plan = Plan.from_json(read_text(path / PLAN_FILE))
    except (OSError, ValueError):
        return False
    certificate = certificate_path(plan.file)
    return held <= {PLAN_FILE, *BESIDE, plan.file, certificate.name, lock_path(certificate).name}


@contextlib.contextmanager
def replacing_folder(path: Path, checkpoint: Path) -> Iterator[Path]:
    """Write a folder whole or not at all.

    Yields a new folder beside ``path``, which takes its place when the block ends well. A deployment that was there is
    then removed; when the block does not end well it is untouched.
    """
    target = _target(path)
    temporary, old = (
        target.with_name(f".{target.name}.{secrets.token_hex(6)}.{kind}") for kind in ("tmp", "old")
    )
    try:
        temporary.mkdir()
        try:
            yield temporary
            check_folder(path, checkpoint)
            if target.exists():
                target.rename(old)
            temporary.rename(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{path} was not written: {error.strerror or error}") from error


def write_deployment(report: TuneReport, candidate: Candidate, verdict: Verdict, command: str) -> None:
    """Write the file, its certificate, the plan, and what was tried; raise ArtifactError if that fails."""
    folder, row = Path(report.folder), report.chosen
    figures = {
        name: getattr(report, name) for name in ("objective", "batch_size", "budget_points", "complete")
    }
    figures |= {
        f"times_as_fast_as_{report.reference_runtime}": row.ratio,
        "interval": row.ratio_interval,
        "p50_s": row.p50_s,
        "accuracy": row.accuracy,
        "verdict": row.reason,
        "tried": len(report.rows),
    }
    plan = Plan(
        file=candidate.artifact.path.name,
        sha256=candidate.artifact.sha256,
        run=candidate.run,
        machine=report.environment,
        figures=figures,
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    verify = shlex.join(["cnndeploy", "verify", str(folder), "--against", report.checkpoint])
    with replacing_folder(folder, Path(report.checkpoint)) as temporary:
        shutil.copyfile(candidate.artifact.path, temporary / plan.file)
        certify(verdict.moved_to(folder / plan.file), temporary / plan.file, verify)
        write_file(temporary / PLAN_FILE, plan.to_json().encode())
        write_file(temporary / "tuning.json", dumps(report.to_dict()).encode())
