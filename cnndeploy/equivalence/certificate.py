"""The certificate: ``<artifact>.verified.json``, written on a pass and only then.

It names both files by SHA-256, so that it says nothing about any other file of the same name.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from cnndeploy.artifact import certificate_path, write_file
from cnndeploy.equivalence.report import EquivalenceReport
from cnndeploy.errors import ArtifactError
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
