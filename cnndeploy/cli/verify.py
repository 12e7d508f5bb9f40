"""``cnndeploy verify``: does an exported file compute what its checkpoint computes?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._run_options import run_and_precision
from cnndeploy.errors import CnndeployError, NotEquivalentError, QuantizationError
from cnndeploy.files import check_writable, scratch_folder, write_file
from cnndeploy.run import Run

if TYPE_CHECKING:
    from cnndeploy.deployment import Candidate
    from cnndeploy.verification.report import Verdict


@click.command()
@click.argument("artifact", type=common.PATH)
@click.option(
    "--against",
    type=common.PATH,
    required=True,
    help="The checkpoint it was exported from, or the ONNX file that was imported.",
)
@run_and_precision
@click.option(
    "--budget",
    type=common.POSITIVE,
    metavar="POINTS",
    help="Percentage points of accuracy that a lossy file may lose.  [default: what it was made for]",
)
@common.measured_on
@common.json_file_option
@common.source_option
@click.option("--junit", "junit_file", metavar="FILE", help="Write the verdict as JUnit XML, for CI.")
def command(
    artifact: Path,
    against: Path,
    run: Run,
    budget: float | None,
    json_file: str | None,
    junit_file: str | None,
    **settings: Any,
) -> None:
    """Verify an exported file against its checkpoint.

    Both run the test images of the data set, which need no labels for this. Exits with 0 if the two are equivalent
    and with 3 if not. A lossy file, such as cnndeploy quantize writes, is never equivalent: its loss of accuracy is
    compared with its budget instead, and the exit code is 5 if it loses more. A pass writes the certificate
    ARTIFACT.verified.json beside the file, unless there is one of the same run on more images. A failure removes the
    certificate that it contradicts. A folder that cnndeploy tune wrote runs as its plan says; options override the
    plan.

    An ONNX file that another tool wrote runs with the checkpoint's preprocessing and labels, whatever its input is
    called. It gets no certificate, because it has no manifest; cnndeploy import adds one.

    \b
    Examples:
      cnndeploy verify lenet.onnx --against lenet.pt
      cnndeploy verify lenet.int8.onnx --against lenet.pt --budget 0.5
      cnndeploy verify lenet.deploy --against lenet.pt
      cnndeploy verify theirs.onnx --against shoes.pt
    """
    from cnndeploy.certificate import remove_stale_certificate, try_to_certify
    from cnndeploy.deployment import resolve
    from cnndeploy.display.verdict_tables import verdict_table

    if junit_file is not None:
        check_writable(junit_file, artifact, against)
    path, undecided = artifact, partial(_undecided, artifact, against, run, {})
    try:
        candidate = resolve(artifact, run)
        _refuse_itself(candidate, against)
        foreign = candidate.artifact.manifest is None and candidate.artifact.format == "onnx"
        path, budget = candidate.artifact.path, _budget_of(candidate, budget)
        points = {"budget_points": budget or 0.0} if candidate.lossy else {}
        undecided = partial(_undecided, path, against, candidate.run, points)
        if json_file != "-":  # so that no earlier pass outlives this run
            _write(undecided("the verification did not end"), json_file, junit_file)
        common.say_split(settings["data"], against, settings["images"])
        judge = _verdict_on_foreign if foreign else _verdict
        with progress_bar(f"Verifying {path.name}") as update:
            verdict = judge(candidate, against, budget, progress=update, **settings)
    except CnndeployError as error:
        _write(undecided(str(error)), json_file, junit_file)
        removed = remove_stale_certificate(path)
        if removed.outcome == "removed":
            common.say(str(removed), err=True)
        raise
    try:
        _write(verdict, json_file, junit_file)
    finally:  # a full disk is no reason to hide what took minutes
        common.console_for(json_file).print(verdict_table(verdict))
    if foreign:
        common.say(f"No certificate: {path} has no manifest. cnndeploy import gives it one.", err=True)
    elif candidate.plan is None or (candidate.is_planned and settings["images"] is None):
        if told := str(certification := try_to_certify(verdict, path, common.command_line())):
            common.say(told, err=json_file == "-" or certification.outcome == "none")
    else:
        stays = "The folder's certificate is for its plan and all test images; it stays as it was."
        common.say(stays, err=True)
    common.say_wrote(json_file, junit_file, json_file=json_file)
    _require(verdict, candidate, against)
    common.say_next("bench", *_timed(candidate, artifact, against, run), json_file=json_file)
    if not foreign:  # which load opens only with labels and preprocessing
        common.say_load(artifact, run, json_file)


def _require(verdict: Verdict, candidate: Candidate, against: Path) -> None:
    """Raise what ``verdict`` raises if it is no pass, with advice if there is any."""
    try:
        verdict.require()
    except NotEquivalentError as error:
        manifest = candidate.artifact.manifest
        if candidate.run.runtime != "openvino" or manifest is None or manifest.resizing != "native":
            raise
        options = ("--format", "onnx", "--input", "image", "--resize", "portable", "--output-dir", "portable")
        again = common.command_line("export", against, *options, *common.source_given())
        advice = f"OpenVINO does not resize as this file asks it to. To write one that it can run: {again}"
        raise NotEquivalentError(f"{error}. {advice}", error.report) from error


def _timed(candidate: Candidate, artifact: Path, against: Path, run: Run) -> list[object]:
    """Return what to time: the file beside its checkpoint, run as it was verified."""
    from cnndeploy.deployment import resolve

    reference = resolve(against)
    itself = candidate.plan is None and candidate.artifact.sha256 == reference.artifact.sha256
    arguments: list[object] = [against] if itself else [against, artifact]
    if run.runtime:
        for runtime in dict.fromkeys((reference.run.runtime, run.runtime)):
            arguments += ["--runtime", runtime]
    precision = "" if candidate.plan is not None else candidate.run.choices.precision
    both = (
        f"float32,{precision}" if precision not in ("", "float32") else ""
    )  # the checkpoint has float32 alone
    for option, value in (("--device", run.device), ("--threads", run.threads), ("--precision", both)):
        arguments += [option, value] if value else []
    return arguments


def _refuse_itself(candidate: Candidate, against: Path) -> None:
    """Raise UsageError if a file would be compared with itself, run as the reference is."""
    from cnndeploy.artifact import Artifact

    artifact, run = candidate.artifact, candidate.run
    own = "eager" if artifact.format == "checkpoint" else "onnxruntime"
    if (run.runtime, run.device, run.choices.precision) != (own, "cpu", "float32"):
        return
    if Artifact.open(against).sha256 == artifact.sha256:
        raise click.UsageError(
            f"{artifact.path} would be compared with itself: it is the reference, {against}. Give a file that was "
            "exported from it, or another --runtime."
        )


def _budget_of(candidate: Candidate, budget: float | None) -> float | None:
    """Return the budget, None if nothing says one; raise UsageError if the options do not fit the candidate."""
    manifest, plan = candidate.artifact.manifest, candidate.plan
    if not candidate.lossy and budget is not None:
        raise click.UsageError("--budget is for lossy files; this one computes in float32, so leave it out.")
    if candidate.lossy and candidate.run.choices.precision == "tf32":
        raise click.UsageError("--precision tf32 is for float32 files; this one is lossy, so leave it out.")
    if budget is not None:
        return budget
    if manifest is not None and manifest.lossy:
        return manifest.budget_points
    points = plan.figures.get("budget_points") if plan is not None else None
    return float(points) if isinstance(points, int | float) else None


def _verdict(candidate: Candidate, against: Path, budget: float | None, **settings: Any) -> Verdict:
    """Verify the candidate: its loss if it is lossy, else whether it is equivalent."""
    from cnndeploy.verification.budget import verify_budget
    from cnndeploy.verification.verify import verify

    artifact, run = candidate.artifact, candidate.run
    if not candidate.lossy:
        return verify(artifact, against, run=run, **settings)
    if budget is None:
        unsaid = "nothing says how much accuracy it may lose; say it with --budget"
        raise QuantizationError(f"{artifact.path} is lossy, or run so, and {unsaid}")
    return verify_budget(artifact, against, budget=budget, run=run, **settings)


def _verdict_on_foreign(
    candidate: Candidate, against: Path, budget: float | None, **settings: Any
) -> Verdict:
    """Verify an ONNX file that another tool wrote: its graph with the checkpoint's preprocessing and labels."""
    from cnndeploy.artifact import Artifact
    from cnndeploy.importing.import_model import import_model
    from cnndeploy.verification.report import FileIdentity

    artifact, manifest = candidate.artifact, Artifact.open(against).require_manifest()
    described: dict[str, Any] = {"preprocessing": manifest.preprocessing, "labels": manifest.labels}
    with scratch_folder() as folder:
        made = import_model(artifact.path, Path(folder, "foreign.onnx"), **described)
        verdict = _verdict(replace(candidate, artifact=made.artifact), against, budget, **settings)
    for note in made.notes:
        common.say(f"{artifact.path}: {note}", err=True)
    return replace(verdict, artifact=FileIdentity.of(artifact))


def _undecided(artifact: Path, against: Path, run: Run, points: dict[str, float], reason: str) -> Verdict:
    """Return an undecided verdict, to be written until there is another; it is on a budget if there are ``points``."""
    from cnndeploy.verification.report import BudgetReport, EquivalenceReport

    kind: type[Verdict] = BudgetReport if points else EquivalenceReport
    known = {"runtime": run.runtime, "device": run.device, "options": run.choices.changed}
    return kind.undecided(artifact, against, reason, **known, **points)


def _write(verdict: Verdict, json_file: str | None, junit_file: str | None) -> None:
    """Write the verdict as JSON and as JUnit XML, each if it is wanted."""
    from cnndeploy.display.junit import junit

    common.write_json(json_file, verdict.to_dict())
    if junit_file is not None:
        write_file(junit_file, junit(verdict).encode())
