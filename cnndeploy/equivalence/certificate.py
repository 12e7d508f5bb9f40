"""The certificate: ``<artifact>.verified.json``, written on a pass and only then.

It names both files by SHA-256, so that it says nothing about any other file of the same name. Its verdict is
``equivalent``, or for a file that gives up accuracy on purpose ``within budget``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from cnndeploy.artifact import Artifact, certificate_path, write_file
from cnndeploy.equivalence.budget_report import BudgetReport
from cnndeploy.equivalence.report import EquivalenceReport
from cnndeploy.errors import ArtifactError
from cnndeploy.machine import environment


def certify(
    report: EquivalenceReport | BudgetReport, command: str, beside: Path | None = None
) -> Path | None:
    """Write the certificate of a pass, or remove the one that a failure has outdated.

    Args:
        report: What verification found.
        command: The command to repeat it.
        beside: Where the file is now, if not where the report says that it will lie.

    Returns:
        The certificate's path, None where there is none.

    Raises:
        ArtifactError: It cannot be written, the file is not the one that was verified, or it would call a lossy file
            equivalent.
    """
    file = beside or Path(report.artifact.path)
    path = certificate_path(file)
    if not (report.equivalent if isinstance(report, EquivalenceReport) else report.within_budget):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"the outdated certificate {path} could not be removed: {error.strerror}"
            ) from error
        return None
    artifact = Artifact.open(file)
    if isinstance(report, EquivalenceReport):
        manifest = artifact.manifest
        if manifest is not None and manifest.lossy:
            raise ArtifactError(
                f"{report.artifact.path} is lossy and is never equivalent; measure its loss with verify_budget"
            )
    if artifact.sha256 != report.artifact.sha256:
        raise ArtifactError(f"{file} is not the file that was verified any more; verify it anew")
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": environment(),
        "verdict": "equivalent",  # replaced where the report has one of its own
        **report.to_dict(),
    }
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path
