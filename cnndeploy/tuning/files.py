"""What a tuning was asked for, and the files that it tries: the checkpoint, its exports, and an int8 one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from cnndeploy.artifact import Artifact
from cnndeploy.errors import BenchmarkError, BudgetError, CnndeployError, OutOfTime, Stopped
from cnndeploy.exporters import EXPORTERS, export
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.quantize import quantize
from cnndeploy.run import Run
from cnndeploy.tuning.report import Outcome, Row
from cnndeploy.verification.budget import require_budget
from cnndeploy.verification.reference import Reference
from cnndeploy.verification.report import BudgetReport

# The share of the time that eager PyTorch's labels may take; their speed is known from so many images.
_FOR_LABELS, _START, _ESTIMATE_FROM = 0.3, 64, 256
# Share of the time kept for the race; the int8 search stops when only this is left.
_FOR_RACE = 0.3


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of :func:`cnndeploy.tune`, checked; ``reference`` is the checkpoint that is tuned.

    The ``deadline`` is that of the search; what must be finished after it, as a verification that has begun, ends only
    if the tuning is ``stopped``.
    """

    reference: Reference
    budget: float
    batch_size: int
    threads: int
    device: str
    max_minutes: float
    calibration: int
    deadline: Deadline
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Raise BenchmarkError or QuantizationError if a number makes no sense."""
        numbers = {
            "batch size": self.batch_size,
            "threads": self.threads,
            "calibration images": self.calibration,
            "minutes": self.max_minutes,
        }
        if wrong := [name for name, value in numbers.items() if not 0 < value < math.inf]:
            raise BenchmarkError(f"{', '.join(wrong)} must be above 0")
        require_budget(self.budget, or_zero=True)

    @property
    def stopped(self) -> Deadline:
        """Over only if the caller asks for the end, whatever the time."""
        return Deadline(should_stop=self.deadline.should_stop)

    def check_stop(self) -> None:
        """Raise Stopped if the caller asked for the end."""
        if self.deadline.should_stop():
            raise Stopped("the tuning was stopped; nothing was written")


@dataclass(slots=True)
class Files:
    """``by_variant`` are the files as :class:`Row` names them; ``int8`` is the verdict on the int8 file.

    ``labelled``: whether the checkpoint's labels of all test images are known, so that lossy files can be tried.
    ``rows`` and ``notes`` say what is missing and why.
    """

    by_variant: dict[str, list[Artifact]]
    labelled: bool = False
    int8: BudgetReport | None = None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_files(job: Job, folder: Path) -> Files:
    """Export the checkpoint in every way there is, into ``folder``; raise what an exporter raises."""
    checkpoint = job.reference.artifact
    files = Files({"checkpoint": [checkpoint]})
    for name in EXPORTERS.names():
        for variant in ("float", "simplified"):
            job.check_stop()
            job.progress(0, 0, f"Exporting {name}, {variant}")
            path = folder / variant / f"{checkpoint.path.stem}{EXPORTERS.get(name).suffix}"
            path.parent.mkdir(exist_ok=True)
            artifact = export(checkpoint.path, name, path, simplify=variant == "simplified")
            if variant == "float" or artifact.require_manifest().rewrites:  # else it is the same file twice
                files.by_variant.setdefault(variant, []).append(artifact)
    if job.budget > 0:
        _label(job, files)
    if files.labelled:
        _quantize(job, files, folder / f"{checkpoint.path.stem}.int8.onnx")
    job.reference.release()  # what waits for work may disturb what is timed
    return files


def _label(job: Job, files: Files) -> None:
    """Label all test images with the checkpoint, if that does not take too much of the time."""
    count, allowed = len(job.reference.test), _FOR_LABELS * job.deadline.left_s
    known = min(count, _START + _ESTIMATE_FROM)
    job.reference.labels(min(count, _START), deadline=job.stopped, progress=job.progress)
    started = time.monotonic()  # without the start of a process
    job.reference.labels(known, deadline=job.stopped, progress=job.progress)
    needs = (time.monotonic() - started) / max(1, known - _START) * count
    if known < count and needs > allowed:
        minutes = math.ceil(needs / 60 / _FOR_LABELS * 1.2)
        files.notes.append(
            f"Nothing lossy was tried: eager PyTorch alone needs {needs / 60:.1f} minutes to label the test images, "
            f"too much of the time. {minutes} minutes would do."
        )
        return
    job.reference.labels(count, deadline=job.stopped, progress=job.progress)
    files.labelled = True


def _quantize(job: Job, files: Files, path: Path) -> None:
    """Make an int8 file, or a row that says why there is none."""

    def lost(outcome: Outcome, reason: str) -> None:
        files.rows.append(Row("int8", "onnxruntime", job.threads, {}, True, outcome, reason))

    search_ends = job.deadline.ends - _FOR_RACE * 60 * job.max_minutes
    try:
        quantized = quantize(
            job.reference,
            path,
            budget=job.budget,
            calibration=job.calibration,
            run=Run(device=job.device, threads=job.threads),
            seconds=0,
            deadline=replace(job.deadline, ends=search_ends),
            progress=job.progress,
        )
    except OutOfTime:
        advice = f"{math.ceil(2 * job.max_minutes)} minutes would give it more"
        lost("not tried", f"no int8 file was found in time; {advice}")
        files.notes.append(f"int8 was given up for want of time. {advice}.")
    except Stopped:
        raise
    except CnndeployError as error:
        lost("rejected" if isinstance(error, BudgetError) else "failed", str(error))
    else:
        files.by_variant["int8"] = [quantized.artifact]
        files.int8 = quantized.report
