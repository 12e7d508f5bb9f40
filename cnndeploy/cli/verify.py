"""``cnndeploy verify``: does an exported file compute what its checkpoint computes?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from cnndeploy.cli._common import (
    PATH,
    POSITIVE_NUMBER,
    announce_certificate,
    console_for,
    json_file_option,
    measured_on,
    progress_bar,
    run_options,
    write_json,
)
from cnndeploy.errors import CnndeployError, QuantizationError
from cnndeploy.files import check_writable, write_file
from cnndeploy.run import Precision, Run

if TYPE_CHECKING:
    from cnndeploy.deployment import Candidate
    from cnndeploy.verification.verdict import Verdict


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--against", type=PATH, required=True, help="The checkpoint it was exported from.")
@run_options
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32", "bfloat16"]),
    help="What a float32 file computes in. ONNX Runtime's own default on CUDA is tf32; bfloat16 is lossy.  "
    "[default: as planned, else float32]",
)
@click.option(
    "--budget",
    type=POSITIVE_NUMBER,
    help="Percentage points of accuracy that a lossy file may lose.  [default: what it was made for]",
)
@measured_on
@json_file_option
@click.option("--junit", "junit_file", metavar="FILE", help="Write the verdict as JUnit XML, for CI.")
def command(
    artifact: Path,
    against: Path,
    run: Run,
    precision: Precision | None,
    budget: float | None,
    images: int | None,
    data_dir: Path | None,
    json_file: str | None,
    junit_file: str | None,
) -> None:
    """Verify an exported file against its checkpoint on real test images.

    Exits with 0 if the two are equivalent and with 3 if not. A lossy file, such as cnndeploy quantize writes, is never
    equivalent: its loss of accuracy is compared with its budget instead, and the exit code is 5 if it loses more. A
    pass writes the certificate ARTIFACT.verified.json beside the file; a failure removes it. A folder that cnndeploy
    tune wrote runs as its plan says; options override the plan.

    \b
    Examples:
      cnndeploy verify lenet.onnx --against lenet.pt
      cnndeploy verify lenet.int8.onnx --against lenet.pt --budget 0.5
      cnndeploy verify lenet.deploy --against lenet.pt
    """
    from cnndeploy.certificate import remove_stale_certificate
    from cnndeploy.display.verdict_tables import verdict_table

    if junit_file is not None:
        check_writable(junit_file, artifact, against)
    reports = _Reports(json_file, junit_file)
    try:
        candidate = _resolved(artifact, run, precision)
    except CnndeployError as error:
        reports.write(_undecided(artifact, against, run, str(error)))
        remove_stale_certificate(artifact)
        raise
    check = _check_of(candidate, budget)
    if json_file != "-":  # so that no earlier pass outlives this run
        reports.write(check.undecided(against, "the verification did not end"))
    try:
        with progress_bar(f"Verifying {candidate.artifact.path.name}") as update:
            verdict = check.verdict(against, images=images, data_dir=data_dir, progress=update)
    except CnndeployError as error:
        reports.write(check.undecided(against, str(error)))
        remove_stale_certificate(candidate.artifact.path)
        raise
    reports.write(verdict)
    console_for(json_file).print(verdict_table(verdict))
    _certify(verdict, candidate, images, json_file)
    verdict.require()


@dataclass(frozen=True, slots=True)
class _Reports:
    """Where the verdict is written; each is None if it is not wanted."""

    json_file: str | None
    junit_file: str | None

    def write(self, verdict: Verdict) -> None:
        """Write a verdict as JSON and as JUnit XML."""
        from cnndeploy.display.junit import junit

        if self.json_file is not None:
            write_json(self.json_file, verdict.to_dict())
        if self.junit_file is not None:
            write_file(self.junit_file, junit(verdict).encode())


def _resolved(artifact: Path, run: Run, precision: Precision | None) -> Candidate:
    """Settle how the artifact runs; a precision of the user's replaces that of the plan, and no other option."""
    from cnndeploy.deployment import resolve

    candidate = resolve(artifact, run)
    if precision is None:
        return candidate
    options = replace(candidate.run.choices, precision=precision)
    return replace(candidate, run=replace(candidate.run, options=options))


class _Check(Protocol):
    """What is asked of a candidate."""

    def verdict(self, against: Path, **settings: Any) -> Verdict:
        """Run both sides; ``settings`` are those of cnndeploy.verify."""

    def undecided(self, against: Path, reason: str) -> Verdict:
        """Return the verdict as long as there is none."""


@dataclass(frozen=True, slots=True)
class _IsEquivalent:
    candidate: Candidate

    def verdict(self, against: Path, **settings: Any) -> Verdict:
        from cnndeploy.verification.verify import verify

        return verify(self.candidate.artifact, against, run=self.candidate.run, **settings)

    def undecided(self, against: Path, reason: str) -> Verdict:
        return _undecided(self.candidate.artifact.path, against, self.candidate.run, reason)


@dataclass(frozen=True, slots=True)
class _KeepsBudget:
    candidate: Candidate
    points: float | None

    def verdict(self, against: Path, **settings: Any) -> Verdict:
        from cnndeploy.verification.budget import verify_budget

        artifact = self.candidate.artifact
        if self.points is None:
            raise QuantizationError(
                f"{artifact.path} is lossy, or run so, and nothing says how much accuracy it may lose; "
                "say it with --budget"
            )
        return verify_budget(artifact, against, budget=self.points, run=self.candidate.run, **settings)

    def undecided(self, against: Path, reason: str) -> Verdict:
        from cnndeploy.verification.budget_report import BudgetReport

        known = _known(self.candidate.run) | {"budget_points": self.points or 0.0}
        return BudgetReport.undecided(self.candidate.artifact.path, against, reason, **known)


def _check_of(candidate: Candidate, budget: float | None) -> _Check:
    """Choose the check; raise UsageError if the options do not fit the candidate."""
    manifest, plan = candidate.artifact.manifest, candidate.plan
    if not candidate.lossy:
        if budget is not None:
            raise click.UsageError(
                "--budget is for lossy files; this one computes in float32, so leave it out."
            )
        return _IsEquivalent(candidate)
    if candidate.run.choices.precision == "tf32":
        raise click.UsageError(
            "--precision tf32 is for files of float32; this one is lossy, so leave it out."
        )
    if budget is not None:
        return _KeepsBudget(candidate, budget)
    made_for = (manifest and manifest.quantization) or (plan and plan.figures) or {}
    points = made_for.get("budget_points")  # another program's file may say anything
    return _KeepsBudget(candidate, float(points) if isinstance(points, int | float) else None)


def _undecided(artifact: Path, against: Path, run: Run, reason: str) -> Verdict:
    from cnndeploy.verification.report import EquivalenceReport

    return EquivalenceReport.undecided(artifact, against, reason, **_known(run))


def _known(run: Run) -> dict[str, Any]:
    """Return the fields of a verdict that are known before anything runs."""
    return {"runtime": run.runtime, "device": run.device, "options": run.choices.changed}


def _certify(verdict: Verdict, candidate: Candidate, images: int | None, json_file: str | None) -> None:
    """Write or remove the certificate; a deployment's is only for its own plan on all test images."""
    if candidate.plan is None or (candidate.is_planned and images is None):
        announce_certificate(verdict, candidate.artifact.path, json_file)
    else:
        click.echo(
            "The folder's certificate is of its plan and all test images; it stays as it was.", err=True
        )
