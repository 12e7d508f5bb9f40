"""Quantization: write a file in int8 or float16 that keeps a budget of accuracy, or write nothing."""

from __future__ import annotations

import importlib.util
import math
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import bench
from cnndeploy.benchmark.report import Result, with_old_keys
from cnndeploy.certificate import Certification, try_to_certify
from cnndeploy.datasets import Data, require_labels
from cnndeploy.deployment import ArtifactLike
from cnndeploy.devices import require_device
from cnndeploy.errors import (
    BudgetError,
    CnndeployError,
    DataError,
    MissingDependencyError,
    QuantizationError,
    UnknownNameError,
)
from cnndeploy.exporters import ModelInput, export
from cnndeploy.files import check_writable, scratch_folder, write_file
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.quantization.graph import in_float16, with_manifest
from cnndeploy.quantization.search import Trial, int8_files
from cnndeploy.run import Run
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.serial import jsonable
from cnndeploy.verification.budget import require_budget, verify_budget
from cnndeploy.verification.paired import paired_interval
from cnndeploy.verification.reference import Reference, borrowed, require_origin, sides
from cnndeploy.verification.report import BudgetReport

Stored = Literal["int8", "float16"]
_RUN = Run("onnxruntime", "cpu")
_MOST_IMAGES = 10**8  # that any budget may take


@dataclass(frozen=True, slots=True)
class Quantized:
    """What :func:`quantize` wrote and what it found out.

    ``report`` is what the test images say; ``trials`` are the settings that were tried on training images, none for
    float16. ``speed`` is the file's row in a benchmark beside its float file, whose ratio above 1 is faster, None if
    none was asked for; ``speed_warnings`` what to doubt about it. ``float_bytes`` is the size of the float file.
    ``certification`` says what became of the certificate beside the file.

    >>> quantized = cnndeploy.quantize("lenet.pt", "small.onnx", budget=20, calibration=64, images=64, seconds=0)
    >>> quantized.report.verdict, quantized.artifact.path.stat().st_size < quantized.float_bytes
    ('within budget', True)
    """

    artifact: Artifact
    report: BudgetReport
    trials: tuple[Trial, ...]
    float_bytes: int
    speed: Result | None = None
    speed_warnings: tuple[str, ...] = ()
    certification: Certification | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How the file was made, as its manifest says."""
        return dict(self.artifact.require_manifest().quantization or {})

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers that are left in float."""
        return tuple(self.settings.get("float_layers", ()))

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            **self.report.to_dict(),
            "bytes": self.artifact.path.stat().st_size,
            "float_bytes": self.float_bytes,
            "quantization": self.settings,
            "trials": jsonable(self.trials),
            "speed": None if self.speed is None else with_old_keys(jsonable(self.speed)),
            "speed_warnings": list(self.speed_warnings),
        }


def quantize(
    checkpoint: ArtifactLike | Reference,
    output: str | os.PathLike[str] | None = None,
    *,
    against: ArtifactLike | Reference | None = None,
    precision: Stored = "int8",
    budget: float = 0.5,
    calibration: int | None = None,
    input: ModelInput = "tensor",  # noqa: A002 - as export()'s
    run: Run | None = None,
    images: int | None = None,
    data: Data | None = None,
    seconds: float = 3.0,
    most_measured: int = 2,
    command: str = "",
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> Quantized:
    """Write an ONNX file in int8, or float16, that loses no more accuracy than its budget; or write nothing.

    Settings are chosen by training images: some calibrate, others, which calibration did not see, screen. Test images
    measure at most two files: that of the setting chosen and, if it does not keep the budget, one with more layers in
    float. Each time the upper end of a 95% interval errs in 2.5%, so together in at most 5%. Beside the file lies its
    certificate.

    Args:
        checkpoint: What ``cnndeploy train`` or ``cnndeploy import`` wrote, or a :class:`Reference` of it, which runs it
            once for many uses.
        output: The file to write; beside the checkpoint by default, as ``lenet.int8.onnx``.
        against: The checkpoint that a compressed one was made of, or a :class:`Reference` of it: the loss is measured
            against that. Only a compressed checkpoint needs it.
        precision: ``int8``: static, weights and activations of 8 bits. ``float16``: for CUDA.
        budget: Percentage points of test accuracy that may be lost, against the checkpoint.
        calibration: Training images that the ranges of activations are taken from, for int8 only; 512 by default, or as
            many as a small data set has.
        input: What the file takes, as :func:`cnndeploy.export`'s.
        run: How the file is run when its loss is measured; ONNX Runtime on the CPU by default.
        images, data: What it is measured on, as :func:`cnndeploy.verify_budget`'s; int8 needs training images too.
        seconds: How long to time the file beside its float file, each; 0 for not at all.
        most_measured: How many files test images may measure.
        command: The command that repeats the measurement, for the certificate.
        deadline: When to give up; checked after every batch, until a file is found.
        progress: Called with what is done, of how much (0 if that is unknown), and at what.

    Raises:
        QuantizationError: The network or what is asked for cannot be quantized, or the file is no checkpoint.
        BudgetError: No setting keeps the budget, with the best figures in its message; or, before anything is tried, so
            few images could never show that it is kept.
        Stopped: The deadline passed; nothing was written.
        CheckpointError, ArtifactError, ExportError, DataError, DeviceUnavailableError: As :func:`export` and
            :func:`verify` raise them.

    >>> quantized = cnndeploy.quantize("lenet.pt", budget=20, calibration=64, images=64, seconds=0)
    >>> quantized.artifact.path.name, quantized.report.within_budget
    ('lenet.int8.onnx', True)
    """
    run, deadline = (run or Run()).over(_RUN), deadline or Deadline()
    _check(precision, budget, calibration, run)
    source, against = sides(checkpoint, against)
    _require_source(source)
    with borrowed(against, run.threads, data) as reference, scratch_folder() as folder:
        require_origin(source, reference)
        path = source.path
        target = Path(path.with_suffix(f".{precision}.onnx") if output is None else output)
        check_writable(target, path)
        require_labels(reference.test, reference.dataset)
        count, tests = len(reference.first(images, progress)), len(reference.test)
        require_provable(budget, count, tests)
        progress(0, 0, f"Exporting {path.name}")
        float_file = original = _float_file(source, Path(folder, "float.onnx"), input)
        if source.sha256 != reference.artifact.sha256:
            original = _float_file(reference.artifact, Path(folder, "original.onnx"), input)
        if precision == "float16":
            trials, files = list[Trial](), iter([_float16_content(float_file, budget)])
        else:
            numbers = budget, calibration, count, run.thread_count
            trials, files = int8_files(float_file, original, *numbers, reference.dataset, deadline, progress)
        report, content, measured = None, b"", Path(folder, target.name)
        for number, content in enumerate(files, start=1):
            measured.write_bytes(content)
            limits: dict[str, Any] = {"images": count, "deadline": deadline, "progress": progress}
            report = verify_budget(measured, reference, budget=budget, run=run, **limits)
            if report.passed or number == most_measured or not report.images:
                break
            deadline.check()
        if report is None or not report.passed:
            report = None if report is None else report.moved_to(target)  # where it would have been
            raise BudgetError(_nothing(path, budget, trials, report, more_images=count < tests), report)
        write_file(target, content)
        report = report.moved_to(target)
        certification = try_to_certify(report, target, command or reference.command(target, budget))
        size = float_file.path.stat().st_size
        quantized = Quantized(Artifact.open(target), report, tuple(trials), size, certification=certification)
        reference.release()  # what waits for work may disturb what is timed
        return _timed(quantized, float_file, run, seconds, progress) if seconds else quantized


def _float_file(source: Artifact, path: Path, model_input: ModelInput) -> Artifact:
    """Write the float file that is quantised: a checkpoint's export, or a copy of an imported ONNX file."""
    if source.format == "checkpoint":
        return export(source.path, "onnx", path, input=model_input)
    if model_input != "tensor":
        raise QuantizationError(
            f"{source.path} was imported, and takes prepared images only; leave out input={model_input}"
        )
    manifest = replace(source.require_manifest(), checkpoint_sha256=source.sha256)
    write_file(path, with_manifest(onnx.load(source.path), manifest.to_json()))
    return Artifact.open(path)


def _float16_content(source: Artifact, budget: float) -> bytes:
    settings = {"precision": "float16", "budget_points": budget}
    manifest = replace(source.require_manifest(), quantization=settings)
    return with_manifest(in_float16(onnx.load(source.path)), manifest.to_json())


def no_int8(run: Run) -> str:
    """Say why a run cannot compute in int8; empty if it can.

    ONNX Runtime's CUDA provider has no kernel that takes the int32 biases, and would compute convolutions in float.
    """
    if run.runtime == "onnxruntime" and run.device.startswith("cuda"):
        return "ONNX Runtime has no int8 convolutions on CUDA"
    return ""


def _check(precision: str, budget: float, calibration: int | None, run: Run) -> None:
    """Refuse what cannot work before anything long is done."""
    if precision not in get_args(Stored):
        raise UnknownNameError("precision", precision, get_args(Stored))
    require_budget(budget)
    if precision == "int8" and calibration is not None and (type(calibration) is not int or calibration < 1):
        raise DataError(
            f"int8 takes its ranges from training images, at least 1 and usually 512, not {calibration!r}"
        )
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package)
    runtime = RUNTIMES.get(run.runtime)
    if "onnx" not in runtime.formats:
        raise QuantizationError(
            f"the file is measured by a runtime that opens ONNX, as onnxruntime; {run.runtime} does not"
        )
    if precision == "int8" and (why := no_int8(run)):
        raise QuantizationError(f"{why}; use the precision float16, or the device cpu")
    require_device(run.device, run.runtime, runtime)


def _require_source(artifact: Artifact) -> None:
    """Raise QuantizationError unless it is a checkpoint or an imported ONNX file."""
    if artifact.manifest is not None and artifact.manifest.quantization is not None:
        stored = artifact.manifest.quantization.get("precision", "lossy")
        raise QuantizationError(
            f"{artifact.path} is already {stored}; quantize the checkpoint that it came from"
        )
    if not artifact.is_reference and artifact.format != "checkpoint":
        advice = "give the checkpoint that it was exported from, such as lenet.pt"
        if artifact.manifest is None:
            advice += ", or import it first"
        raise QuantizationError(f"{artifact.path} is {artifact.kind}; {advice}")


def require_provable(budget: float, images: int, tests: int) -> None:
    """Raise BudgetError if so few images could not show that the budget is kept, even if no label changed.

    A file may seem to keep a smaller one if by chance it is right where the checkpoint is wrong; that is not bet on.
    """

    def least(count: int) -> float:
        return 100 * paired_interval(0, 0, count)[1]

    def rounded_up(points: float) -> float:
        return math.ceil(100 * points) / 100

    if least(images) <= budget:
        return
    if least(tests) <= budget:
        needed = 1 + bisect_left(range(1, tests + 1), -budget, key=lambda count: -least(count))
        advice = f"Measure on more images, at least {needed:,} of the {tests:,} that there are."
    else:
        more = f"Measure on all {tests:,} and allow" if images < tests else "Allow"
        needed = 1 + bisect_left(range(1, _MOST_IMAGES), -budget, key=lambda count: -least(count))
        advice = (
            f"{more} at least {rounded_up(least(tests)):g} points, or use a data set with more test images: "
            f"a budget of {budget:g} points takes {needed:,} images."
        )
    raise BudgetError(
        f"{images:,} images cannot show that a budget of {budget:g} percentage points is kept: even if no label "
        f"changed, the loss might be {rounded_up(least(images)):g}. {advice}"
    )


def _nothing(
    checkpoint: Path,
    budget: float,
    trials: Sequence[Trial],
    report: BudgetReport | None,
    *,
    more_images: bool,
) -> str:
    """Say why nothing was written, with the best figures there are."""
    start = f"no setting tried keeps {checkpoint} within {budget:g} percentage points of accuracy"
    if report is not None:
        images, loss, why = report.images, report.loss_points, "; ".join(report.reasons)
    else:
        best = min(trials, key=lambda trial: trial.predicted_high_points)
        images, loss = best.images, best.loss_points
        why = (
            f"the best of {len(trials)}, {best.method} with {len(best.float_layers)} layers in float, would lose up to "
            f"{best.predicted_high_points:.2f}, judging by {images:,} training images"
        )
    advice = "Allow a larger budget, or ship the float file. "
    if loss is None:  # nothing could be compared
        advice = ""
    elif loss <= budget and more_images:
        advice = (
            "On more test images the bound would be lower: measure on more before you allow a larger budget. "
        )
    return f"{start}: {why}. {advice}Nothing was written."


def _timed(
    quantized: Quantized, float_file: Artifact, run: Run, seconds: float, progress: Progress
) -> Quantized:
    """Time the new file beside its float file; what goes wrong here takes nothing from the file."""
    try:
        report = bench(
            [float_file, quantized.artifact],
            runtimes=[run.runtime],
            device=run.device,
            threads=() if run.threads is None else (run.threads,),
            precisions=(run.choices.precision,),
            seconds=seconds,
            cold_starts=0,
            progress=progress,
        )
        row, failure = report.results[-1], report.results[-1].failure
    except CnndeployError as error:
        failure = str(error)
    if failure:
        return replace(quantized, speed_warnings=(f"its speed was not measured: {failure}",))
    return replace(quantized, speed=row, speed_warnings=report.warnings)
