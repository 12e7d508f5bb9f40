"""What a tuning was asked for, and what it tries: each file on each runtime, with each setting that may be fastest."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from cnndeploy.artifact import Artifact
from cnndeploy.deployment import Candidate
from cnndeploy.devices import require_device
from cnndeploy.errors import (
    BenchmarkError,
    BudgetError,
    CnndeployError,
    CompressionError,
    ExportError,
    MissingDependencyError,
    OutOfTime,
    Stopped,
)
from cnndeploy.exporters import EXPORTERS, export, missing_package
from cnndeploy.formats import FORMATS
from cnndeploy.machine import patient_threads
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.quantize import Stored, quantize
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.tuning.report import Outcome, Row
from cnndeploy.verification.budget import require_budget
from cnndeploy.verification.reference import Reference
from cnndeploy.verification.report import BudgetReport, Verdict

# The share of the time left that eager PyTorch's labels may take; and of that, the share that shows how fast it is.
_FOR_LABELS, _TO_ESTIMATE = 0.3, 0.1
_BATCH = 64  # images, as the reference runs them; after each the time is looked at again
# Share of the time kept for the race, and the most; the searches for lossy files stop when only this is left. The race
# of VGG-11's files, of 515 MB each, took six minutes.
_FOR_RACE, _MOST_FOR_RACE_S = 0.3, 480
_TO_COMPARE_S = 1.5  # for each file, whether a smaller network is faster


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
    calibration: int | None
    deadline: Deadline
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Raise BenchmarkError or QuantizationError if a number makes no sense."""
        numbers: dict[str, float] = {"batch size": self.batch_size, "threads": self.threads}
        numbers["minutes"] = self.max_minutes
        if self.calibration is not None:
            numbers["calibration images"] = self.calibration
        if wrong := [name for name, value in numbers.items() if not 0 < value < math.inf]:
            raise BenchmarkError(f"{', '.join(wrong)} must be above 0")
        require_budget(self.budget, or_zero=True)

    @property
    def stored(self) -> Stored:
        """What a lossy file is stored in: on a GPU float16, for ONNX Runtime has no int8 convolutions there."""
        return "int8" if self.device == "cpu" else "float16"

    @property
    def stopped(self) -> Deadline:
        """A deadline that passes only if the caller asks for the end, whatever the time."""
        return Deadline(should_stop=self.deadline.should_stop)

    @property
    def search(self) -> Deadline:
        """The deadline of the search for lossy files, which leaves time for the race."""
        kept_s = min(_FOR_RACE * 60 * self.max_minutes, _MOST_FOR_RACE_S)
        return replace(self.deadline, ends=self.deadline.ends - kept_s)

    def reading(self, done: int, total: int, text: str) -> None:
        """Show how far images are read; raise Stopped if the caller asked for the end."""
        self.progress(done, total, text)
        self.check_stop()

    def check_stop(self) -> None:
        """Raise Stopped if the caller asked for the end."""
        if self.deadline.should_stop():
            raise Stopped("the tuning was stopped; nothing was written")


@dataclass(slots=True)
class Files:
    """The files to try, ``by_variant`` as :class:`Row` names them; ``measured`` are the verdicts on int8 files.

    On a GPU these are in float16.

    ``eager_image_s`` is what eager PyTorch takes to label a test image in a batch: None if that was not tried, and 0 if
    all are ``labelled``, so that lossy files can be tried. ``rows`` and ``notes`` say what is missing and why.
    """

    by_variant: dict[str, list[Artifact]]
    eager_image_s: float | None = None
    measured: list[BudgetReport] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether the checkpoint's labels of all test images are known."""
        return self.eager_image_s == 0


def make_files(job: Job, folder: Path) -> Files:
    """Export the checkpoint in every way there is, into ``folder``; add a row for a way that fails."""
    checkpoint = job.reference.artifact
    imported = checkpoint.format != "checkpoint"  # a file, which is its own export
    files = Files({"float" if imported else "checkpoint": [checkpoint]})
    for name in () if imported else EXPORTERS.names():
        if package := missing_package(name):
            files.rows.append(_untried(job, "all", name, "not tried", MissingDependencyError(package)))
            continue
        for variant in ("float", "simplified"):
            job.check_stop()
            job.progress(0, 0, f"Exporting {name}, {variant}")
            path = folder / variant / f"{checkpoint.path.stem}{EXPORTERS.get(name).suffix}"
            path.parent.mkdir(exist_ok=True)
            try:
                artifact = export(checkpoint.path, name, path, simplify=variant == "simplified")
            except ExportError as error:  # other formats may hold this network
                files.rows.append(_untried(job, variant, name, "failed", error))
                continue
            if variant == "float" or artifact.require_manifest().rewrites:  # else it is the same file twice
                files.by_variant.setdefault(variant, []).append(artifact)
    if job.budget > 0:
        _label(job, files)
    if files.labelled:
        _quantize(job, files, folder / f"{checkpoint.path.stem}.{job.stored}.onnx")
    if files.labelled and not imported and job.device == "cpu":
        _compress(job, files, folder / f"{checkpoint.path.stem}.smaller.onnx")
    job.reference.release()  # what waits for work may disturb what is timed
    return files


def _untried(job: Job, variant: str, exporter: str, outcome: Outcome, error: CnndeployError) -> Row:
    """Return the row of files that an exporter could not write."""
    runtime = FORMATS.get(EXPORTERS.get(exporter).format).default_runtime
    return Row(variant, runtime, job.threads, {}, False, outcome, str(error))


def _label(job: Job, files: Files) -> None:
    """Label all test images with the checkpoint, unless that takes too much of the time.

    How long it takes is known from the images labelled so far, once a tenth of the time that it may take is spent: the
    first batches are slower, and say little.
    """
    count, left_s = len(job.reference.test), job.deadline.left_s
    allowed, before_s = _FOR_LABELS * left_s, 60 * job.max_minutes - left_s

    def label(known: int) -> None:
        def progress(done: int, _total: int, text: str) -> None:
            job.progress(done, count, text)

        job.reference.labels(known, deadline=job.stopped, progress=progress)

    first = known = min(count, _BATCH)
    label(known)
    started = time.monotonic()  # without the start of a process
    while known < count:
        known = min(count, known + _BATCH)
        label(known)
        spent = time.monotonic() - started
        files.eager_image_s = spent / (known - first)
        needs = files.eager_image_s * count
        if known < count and spent > _TO_ESTIMATE * allowed and needs > allowed:
            minutes = math.ceil((before_s + 1.2 * needs / _FOR_LABELS) / 60)
            lossy = "int8 and bfloat16 were" if job.device == "cpu" else f"{job.stored} was"
            left = f"{_seconds(allowed)} are" if allowed > 0 else "no time is"
            files.notes.append(
                f"{lossy} not tried: checking their accuracy on {count:,} test images would take about "
                f"{_seconds(needs)}, and {left} left for that; max_minutes={minutes} would do."
            )
            return
    files.eager_image_s = 0.0


def _seconds(seconds: float) -> str:
    return f"{seconds:.{0 if seconds >= 10 else 1}f} seconds"


def _compress(job: Job, files: Files, target: Path) -> None:
    """Make a smaller network, in int8 if that is faster, or a row that says why there is none.

    Its variant says which methods made it.
    """
    with patient_threads():  # an imported file is tuned without torch
        from cnndeploy.compression.compress import compress
        from cnndeploy.compression.report import METHODS

    def stopped() -> bool:
        job.check_stop()  # compress() would keep the best so far, and measure it
        return False

    tried = ", ".join(METHODS)
    try:
        compressed = compress(
            job.reference,
            target,
            budget=job.budget,
            run=Run(threads=job.threads),
            seconds=_TO_COMPARE_S,
            max_minutes=job.search.left_s / 60,
            smaller_only=True,  # int8 of the whole network is a contender anyway
            should_stop=stopped,
            progress=job.progress,
        )
    except Stopped:
        raise
    except CnndeployError as error:
        if job.search.is_over() or (isinstance(error, CompressionError) and error.late):
            files.rows.append(_lost(job, tried, "not tried", f"none was found in time; {_may_do(job)}"))
        else:
            reasons: dict[str, str] = {}
            if isinstance(error, CompressionError) or (
                isinstance(error, BudgetError) and error.report is None
            ):
                reasons = {name: why for name, why in error.reasons.items() if name != "int8"}
            outcome: Outcome = "rejected" if reasons or isinstance(error, BudgetError) else "failed"
            for variant, reason in (reasons or {tried: str(error)}).items():
                files.rows.append(_lost(job, variant, outcome, reason))
        return
    kept = list[str]()
    for step in compressed.steps:
        if step.kept:
            kept.append(step.method)
        else:  # on what the methods before it made
            files.rows.append(_lost(job, ", ".join([*kept, step.method]), "rejected", step.reason))
    files.by_variant[", ".join(kept)] = [compressed.artifact]
    files.measured.append(compressed.report)


def _lost(job: Job, variant: str, outcome: Outcome, reason: str) -> Row:
    """Return the row of a lossy file that could not be made."""
    return Row(variant, "onnxruntime", job.threads, {}, True, outcome, reason)


def _quantize(job: Job, files: Files, path: Path) -> None:
    """Make an int8 file, on a GPU one in float16, or a row that says why there is none."""
    lost: tuple[Outcome, str]
    try:
        quantized = quantize(
            job.reference,
            path,
            precision=job.stored,
            budget=job.budget,
            calibration=job.calibration,
            run=Run(device=job.device, threads=job.threads),
            seconds=0,
            deadline=job.search,
            progress=job.progress,
        )
    except OutOfTime:
        lost = "not tried", f"no {job.stored} file was found in time; {_may_do(job)}"
        files.notes.append(f"{job.stored} was not tried: no file was found in time; {_may_do(job)}.")
    except Stopped:
        raise
    except CnndeployError as error:
        lost = "rejected" if isinstance(error, BudgetError) else "failed", str(error)
    else:
        files.by_variant[job.stored] = [quantized.artifact]
        files.measured.append(quantized.report)
        return
    files.rows.append(_lost(job, job.stored, *lost))


def _may_do(job: Job) -> str:
    return f"max_minutes={math.ceil(2 * job.max_minutes)} may do"


@dataclass(slots=True, eq=False)
class Contender:
    """A candidate that may be deployed, and the verdict on it once there is one.

    ``variant`` says which of the files it is, as in :class:`Row`.
    """

    variant: str
    candidate: Candidate
    verdict: Verdict | None = None

    @property
    def lossy(self) -> bool:
        """Whether it gives up accuracy on purpose, so that it has a budget to keep."""
        return self.candidate.lossy

    @property
    def rejected(self) -> bool:
        """Whether it may not be deployed."""
        return self.verdict is not None and not self.verdict.passed

    def is_simple(self, threads: int) -> bool:
        """Return whether it is a lossless export on its format's own runtime, with no option and all threads."""
        artifact, run = self.candidate.artifact, self.candidate.run
        default = (
            run.runtime == FORMATS.get(artifact.format).default_runtime and run.choices == RuntimeOptions()
        )
        return default and run.thread_count == threads and not self.lossy

    @property
    def numbers(self) -> tuple[str, str, tuple[str, bool]]:
        """What its logits depend on: not the threads, nor whether they spin."""
        run = self.candidate.run
        return self.candidate.artifact.sha256, run.runtime, run.choices.numbers

    def row(self, outcome: Outcome, reason: str) -> Row:
        """Return its row of a report, without figures."""
        run = self.candidate.run
        settings = run.thread_count, run.choices.changed
        return Row(self.variant, run.runtime, *settings, self.lossy, outcome, reason)

    def __str__(self) -> str:
        run = self.candidate.run
        threads = "1 thread" if run.threads == 1 else f"{run.threads} threads"
        return f"{self.variant} on {run.runtime}, {threads}{run.choices}"


def contenders(
    files: Mapping[str, Sequence[Artifact]], *, threads: int, device: str, lossy: bool
) -> tuple[list[Contender], list[Row]]:
    """Return all that may be deployed, and a row for each runtime that cannot be had here, which says why.

    Contenders run on ``threads`` threads, the most there may be, and on one alone; ``lossy`` ones may give up accuracy.
    """
    available, missing = list[Contender](), list[Row]()
    for name in RUNTIMES.names():
        fitting = [
            Contender(variant, Candidate(artifact, run))
            for variant, artifacts in files.items()
            for artifact in artifacts
            if artifact.format in RUNTIMES.get(name).formats
            and (lossy or not artifact.require_manifest().lossy)
            for run in _runs(name, artifact, threads, device, lossy)
        ]
        if fitting and (why := _unavailable(name, device)):
            missing.append(Row("all", name, threads, {}, False, "not tried", why))
        else:
            available += fitting
    return available, missing


def _unavailable(runtime: str, device: str) -> str:
    """Say why a runtime cannot be used here; empty if it can."""
    known = RUNTIMES.get(runtime)
    try:
        if importlib.util.find_spec(known.package) is None:
            raise MissingDependencyError(known.package)
        require_device(device, runtime, known)
    except CnndeployError as error:
        return str(error)
    return ""


def _runs(runtime: str, artifact: Artifact, threads: int, device: str, lossy: bool) -> Iterator[Run]:
    options = RUNTIMES.get(runtime).options
    # A network that runs from its checkpoint needs all of PyTorch and compiles for long: one setting of it will do.
    checkpoint, on_cpu = artifact.format == "checkpoint", device == "cpu"
    counts = [threads] if checkpoint or not on_cpu else sorted({1, threads})
    choices, known = [RuntimeOptions()], options.get("precision", ())
    if lossy and "bfloat16" in known:
        choices.append(RuntimeOptions(precision="bfloat16"))
    if "tf32" in known and not (on_cpu or checkpoint or artifact.require_manifest().lossy):
        choices.append(RuntimeOptions(precision="tf32"))
    for count, chosen in product(counts, choices):
        yield Run(runtime, device, count, chosen)
        if on_cpu and False in options.get("spinning", ()) and count > 1:
            yield Run(runtime, device, count, replace(chosen, spinning=False))
        if "cuda_graph" in options and not (on_cpu or checkpoint):
            yield Run(runtime, device, count, replace(chosen, cuda_graph=True))
