"""The certificate: ``<artifact>.verified.json``, what a passed verification leaves beside a file.

It names both files by SHA-256, so that it says nothing about any other file of the same name. Its verdict is
``equivalent``, or for a file that gives up accuracy on purpose ``within budget``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.files import write_file
from cnndeploy.machine import environment
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.serial import dumps

_LOSS_FIGURES = ("budget_points", "loss_points", "loss_low_points", "loss_high_points")
_FIGURES = ("images", *_LOSS_FIGURES, "artifact_accuracy", "checkpoint_accuracy")


class Certifiable(Protocol):
    """A verdict, of which a certificate is made; ``to_dict()`` holds ``verdict`` and the files' SHA-256."""

    @property
    def passed(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]: ...


def certificate_path(artifact: str | os.PathLike[str]) -> Path:
    """Return where the certificate of an artifact lies: beside it."""
    return Path(f"{os.fspath(artifact)}.verified.json")


def certify(verdict: Certifiable, artifact: str | os.PathLike[str], command: str) -> Path | None:
    """Write the certificate of a pass, or remove the one that a failure has outdated.

    ``artifact`` is where the file lies now, ``command`` repeats the verification. Return the certificate's path, None
    if there is none; raise ArtifactError if it cannot be written or removed.
    """
    path = certificate_path(artifact)
    if not verdict.passed:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            left = f"the outdated certificate {path} could not be removed"
            raise ArtifactError(f"{left}: {error.strerror}") from error
        return None
    date = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"date": date, "command": command, "environment": environment(), **verdict.to_dict()}
    write_file(path, dumps(content).encode())
    return path


def read_certificate(artifact: Artifact) -> dict[str, Any] | None:
    """Return the certificate for this exact file, or None.

    Its ``verdict`` is ``equivalent``, or ``within budget`` with the figures for a file that is lossy or was run so.
    """
    try:
        content = json.loads(certificate_path(artifact.path).read_text())
        # certificates had neither before files could be lossy
        content = {"verdict": "equivalent", "options": {}, **content}
        options, manifest = RuntimeOptions.of(content["options"]), artifact.manifest
        lossy = options.lossy or (manifest is not None and manifest.lossy)
        if content["verdict"] == "equivalent":
            passes = content["equivalent"] is True and not lossy
        else:
            passes = lossy and _keeps_budget(content)
        matches = content["artifact"]["sha256"] == artifact.sha256 and content["against"]["sha256"]
        complete = {"runtime", "device", "images", "date"} <= content.keys()
        return content if passes and matches and complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def require_certificate(artifact: Artifact, run: Run) -> None:
    """Raise ArtifactError unless this exact file was verified by this runtime, in the same precision."""
    certificate = read_certificate(artifact)
    if certificate is not None:
        precision = RuntimeOptions.of(certificate["options"]).precision
        if (certificate["runtime"], precision) == (run.runtime, run.choices.precision):
            return
    raise ArtifactError(
        f"{artifact.path} has no certificate of a verification of exactly its bytes by {run.runtime}. "
        f"Make one with: cnndeploy verify {artifact.path} --against CHECKPOINT --runtime {run.runtime}"
    )


def remove_stale_certificate(artifact: str | os.PathLike[str]) -> None:
    """Delete the certificate unless it matches the file's current bytes."""
    path = certificate_path(artifact)
    with contextlib.suppress(CnndeployError):  # the artifact is gone, or no model file any more
        if not path.exists() or read_certificate(Artifact.open(artifact)) is not None:
            return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _keeps_budget(content: Mapping[str, Any]) -> bool:
    """Return whether the certificate says so, and its figures are complete and agree."""
    figures = [content[name] for name in _FIGURES]
    return (
        (content["verdict"], content["equivalent"], content["within_budget"])
        == ("within budget", False, True)
        and all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures)
        and content["images"] > 0
        and content["loss_high_points"] <= content["budget_points"]
    )
