"""The certificate: ``<artifact>.verified.json``, written on a pass and only then.

It names both files by SHA-256, so that it says nothing about any other file of the same name.
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from cnndeploy.artifact import Artifact, certificate_path, read_certificate, write_file
from cnndeploy.equivalence.report import EquivalenceReport
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.machine import environment


def certify(report: EquivalenceReport, command: str) -> Path | None:
    """Write the certificate of a pass, or remove the one that a failure has outdated.

    Args:
        report: What verification found.
        command: The command to repeat it.

    Returns:
        The certificate's path, None where there is none.

    Raises:
        ArtifactError: It cannot be written.
    """
    path = certificate_path(report.artifact.path)
    if not report.equivalent:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"the outdated certificate {path} could not be removed: {error.strerror}"
            ) from error
        return None
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": environment(),
        **report.to_dict(),
    }
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def remove_if_stale(artifact: str | os.PathLike[str]) -> None:
    """Remove the certificate that is not of the file as it is now; one that is stands, whatever else went wrong."""
    try:
        stale = read_certificate(Artifact.open(artifact)) is None
    except CnndeployError:  # gone, or no model file any more
        stale = True
    if stale:
        with contextlib.suppress(OSError):
            certificate_path(artifact).unlink(missing_ok=True)
