"""``cnndeploy verify``: does an exported file compute what its checkpoint computes?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cnndeploy.cli._common import (
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    RegisteredName,
    announce_certificate,
    console_for,
    data_dir_option,
    device_option,
    json_file_option,
    progress_bar,
    threads_option,
    write_json,
)
from cnndeploy.errors import CnndeployError

if TYPE_CHECKING:
    from rich.console import Group

    from cnndeploy.deployment import Plan
    from cnndeploy.run import RuntimeOptions
    from cnndeploy.verification.budget_report import BudgetReport
    from cnndeploy.verification.report import EquivalenceReport

    Report = EquivalenceReport | BudgetReport


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--against", type=PATH, required=True, help="The checkpoint it was exported from.")
@click.option("--runtime", type=RegisteredName("runtimes"), help="[default: the format's own]")
@device_option
@threads_option
@click.option("--tf32", is_flag=True, help="On CUDA, allow TF32, as ONNX Runtime does by default.")
@click.option(
    "--budget",
    type=POSITIVE_NUMBER,
    help="Percentage points of accuracy that a lossy file may lose.  [default: what it was made for]",
)
@click.option("--images", type=POSITIVE, help="Use the first N test images.  [default: all 10,000]")
@data_dir_option
@json_file_option
@click.option("--junit", "junit_file", metavar="FILE", help="Write the verdict as JUnit XML, for CI.")
def command(
    artifact: Path,
    against: Path,
    runtime: str | None,
    device: str,
    threads: int | None,
    tf32: bool,
    budget: float | None,
    images: int | None,
    data_dir: Path | None,
    json_file: str | None,
    junit_file: str | None,
) -> None:
    """Verify an exported file against its checkpoint on real test images.

    Exits with 0 if the two are equivalent and with 3 if not. A lossy file, as of cnndeploy quantize, is never
    equivalent: its loss of accuracy is held against its budget instead, and it exits with 5 if that is not
    kept. A pass writes the certificate ARTIFACT.verified.json beside the file; a failure removes it. A folder of
    cnndeploy tune is run as its plan says.

    \b
    Examples:
      cnndeploy verify lenet.onnx --against lenet.pt
      cnndeploy verify lenet.int8.onnx --against lenet.pt --budget 0.5
      cnndeploy verify lenet.deploy --against lenet.pt
    """
    from cnndeploy.certificate import remove_stale_certificate
    from cnndeploy.display.junit import junit
    from cnndeploy.files import check_writable, write_file

    def write(report: Report) -> None:
        if json_file is not None:
            write_json(json_file, report.to_dict())
        if junit_file is not None:
            write_file(junit_file, junit(report).encode())

    for target in (json_file, junit_file):
        if target is not None and target != "-":
            check_writable(target, artifact, against)
    try:
        asked = _Asked(artifact, runtime, device, threads).as_planned()
    except CnndeployError as error:
        write(_undecided(artifact, against, device, None)(str(error)))
        raise
    artifact, options = asked.artifact, asked.options
    quantization = _quantization(artifact)
    lossy = quantization is not None or options.lossy
    refuse = _refusal(lossy, tf32, budget)
    if refuse:
        raise click.UsageError(refuse)
    points = budget if budget is not None else _own_budget(quantization or asked.figures)
    undecided = _undecided(artifact, against, asked.device, points if lossy else None)
    if json_file != "-":
        write(undecided("the verification did not end"))  # so that no earlier pass outlives this run
    shared: dict[str, Any] = {
        "runtime": asked.runtime,
        "device": asked.device,
        "threads": asked.threads,
        "options": options,
        "images": images,
        "data_dir": data_dir,
    }
    try:
        with progress_bar(f"Verifying {artifact.name}") as update:
            report = _verified(
                artifact,
                against,
                points if lossy else None,
                tf32,
                {**shared, "on_batch": update},
            )
    except CnndeployError as error:
        write(undecided(str(error)))
        remove_stale_certificate(artifact)
        raise
    write(report)
    console_for(json_file).print(_table(report))
    _certify(report, asked, images, quiet=json_file == "-")
    report.require()


@dataclass(frozen=True)
class _Asked:
    """What is to be run, and how; ``figures`` are of a deployment's plan."""

    artifact: Path
    runtime: str | None
    device: str
    threads: int | None
    figures: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def is_planned(self) -> bool:
        """Whether it runs as a deployment's plan says."""
        run = (self.runtime, self.device, self.threads)
        return self.plan is not None and run == (self.plan.runtime, self.plan.device, self.plan.threads)

    @property
    def options(self) -> RuntimeOptions:
        """Those of the plan, where its runtime is not replaced by another."""
        from cnndeploy.run import RuntimeOptions

        keeps = self.plan is not None and self.runtime == self.plan.runtime
        return self.plan.options if self.plan is not None and keeps else RuntimeOptions()

    def as_planned(self) -> _Asked:
        """With what the plan says where the user says nothing, if the artifact is a deployment's folder."""
        from cnndeploy.deployment import is_deployment, open_deployment

        if not is_deployment(self.artifact):
            return self
        opened, plan = open_deployment(self.artifact)
        source = click.get_current_context().get_parameter_source("device")
        return _Asked(
            opened.path,
            self.runtime or plan.runtime,
            plan.device if source is ParameterSource.DEFAULT else self.device,
            self.threads or plan.threads,
            plan.figures,
            plan,
        )


def _certify(report: Report, asked: _Asked, images: int | None, quiet: bool) -> None:
    """Write or remove the certificate; but a deployment's is of its plan and of all test images alone."""
    if asked.plan is None or (asked.is_planned and images is None):
        announce_certificate(report, quiet=quiet)
    else:
        click.echo(
            "The folder's certificate is of its plan and all test images; it stays as it was.", err=True
        )


def _quantization(artifact: Path) -> Mapping[str, Any] | None:
    """How a lossy file was made; None of another, and of one that cannot be read, which verification meets again."""
    from cnndeploy.artifact import Artifact

    try:
        manifest = Artifact.open(artifact).manifest
    except CnndeployError:
        return None
    return None if manifest is None else manifest.quantization


def _refusal(lossy: bool, tf32: bool, budget: float | None) -> str:
    """Why what was asked for does not go together."""
    if lossy and tf32:
        return "--tf32 is for files of float32; this one is lossy, so leave it out."
    if not lossy and budget is not None:
        return "--budget is for lossy files; this one computes in float32, so leave it out."
    return ""


def _own_budget(made_for: Mapping[str, Any]) -> float:
    """What the file's manifest, or its plan, says it was made for; a stranger's may say anything."""
    points = made_for.get("budget_points")
    return float(points) if isinstance(points, int | float) else math.nan


def _undecided(artifact: Path, against: Path, device: str, budget: float | None) -> Callable[[str], Report]:
    from cnndeploy.verification.budget_report import BudgetReport
    from cnndeploy.verification.report import EquivalenceReport

    if budget is None:
        return lambda reason: EquivalenceReport.undecided(artifact, against, device, reason)
    stated = budget if math.isfinite(budget) else 0.0  # JSON has no NaN
    return lambda reason: BudgetReport.undecided(artifact, against, device, stated, reason)


def _verified(
    artifact: Path, against: Path, budget: float | None, tf32: bool, shared: Mapping[str, Any]
) -> Report:
    from cnndeploy.verification.budget import verify_budget
    from cnndeploy.verification.verify import verify

    if budget is None:
        return verify(artifact, against, tf32=tf32, **shared)
    return verify_budget(artifact, against, budget=budget, **shared)


def _table(report: Report) -> Group:
    from cnndeploy.display.budget_tables import budget_table
    from cnndeploy.display.tables import equivalence_table
    from cnndeploy.verification.budget_report import BudgetReport

    return budget_table(report) if isinstance(report, BudgetReport) else equivalence_table([report])
