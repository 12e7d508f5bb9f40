"""Tuning: try files, runtimes and settings, and write the fastest that is verified or within its budget."""

from __future__ import annotations

import os
import shlex
import time
from itertools import product
from pathlib import Path
from typing import Literal

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.conditions import Watch
from cnndeploy.benchmark.report import BUSY_CPUS
from cnndeploy.datasets import Data, require_labels
from cnndeploy.deployment import ArtifactLike, resolve
from cnndeploy.errors import ArtifactError, BenchmarkError
from cnndeploy.files import scratch_folder
from cnndeploy.machine import available_memory, environment, usable_cpus
from cnndeploy.progress import Deadline, Progress, ShouldStop, never, silent
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.tuning.choice import Choice, choose
from cnndeploy.tuning.contenders import Contender, Files, Job, contenders, make_files
from cnndeploy.tuning.folder import check_folder, write_deployment
from cnndeploy.tuning.memory import fitting
from cnndeploy.tuning.report import Row, TuneReport
from cnndeploy.verification.reference import Reference, borrowed

Objective = Literal["latency", "throughput"]
_BATCH_SIZES = {"latency": 1, "throughput": 64}


def tune(
    checkpoint: ArtifactLike | Reference,
    output: str | os.PathLike[str] | None = None,
    *,
    budget: float = 0.5,
    objective: Objective = "latency",
    batch_size: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    max_minutes: float = 15.0,
    calibration: int | None = None,
    data: Data | None = None,
    command: str = "",
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> TuneReport:
    """Find the fastest way to deploy a checkpoint on this machine, and write it as a folder.

    It tries the checkpoint, its plain export, the simplified one, an int8 one and what :func:`cnndeploy.compress`
    makes, on every runtime that opens them. On the CPU each export runs with one thread and with all, with and without
    spinning, and in bfloat16. On a GPU everything runs with one thread, a float16 file takes the place of int8, and
    there is no smaller network. Exports in float32 also run in TF32, and ONNX files with and without CUDA graphs.

    Each runs in a process of its own. They take turns as in :func:`cnndeploy.bench`, and one that is surely slower than
    the fastest leaves early. The fastest is deployed only if it is equivalent, or if it is lossy within the budget on
    all test images; else the next is looked at. The report has a row for each, with what became of it and why.

    Args:
        checkpoint: What ``cnndeploy train`` or ``cnndeploy import`` wrote, or a :class:`Reference` of it, which runs it
            once for many uses.
        output: The folder to write, which may hold an earlier deployment; by default the checkpoint's name with
            ``.deploy``.
        budget: Percentage points of accuracy that may be lost; the upper end of the 95% interval counts. 0 admits
            equivalent files only.
        objective: ``latency`` of a call, or ``throughput`` in images a second; it chooses the batch size.
        batch_size: Images in a call, 1 for latency and 64 for throughput by default.
        threads: The most CPU threads to use, all that the process may use by default.
        device: Where everything runs.
        max_minutes: When these are over, the best so far is verified and written. The first round of the race and a
            verification are always finished. The check of a lossy file may take a tenth of the limit longer. If the
            time is over before the race, only the checkpoint and its exports with default settings race.
        calibration, data: As :func:`cnndeploy.quantize`'s; a Reference has its own data set.
        command: To make the folder again, for its plan.
        should_stop: Asked again and again; once it returns True nothing is written.
        progress: Called with what is done, of how much (0 if that is unknown), and at what.

    Raises:
        ArtifactError, CheckpointError: The checkpoint cannot be read, or the folder not written.
        BenchmarkError: The checkpoint does not run, or nothing that was tried can be deployed; then its ``report`` is
            the TuneReport of what was tried.
        Stopped: ``should_stop`` returned True; nothing was written.
        DataError, DeviceUnavailableError: The data set is missing, or the device does not work.

    >>> report = cnndeploy.tune("lenet.pt", "lenet.deploy", budget=0, max_minutes=5)
    >>> with cnndeploy.load("lenet.deploy") as model:
    ...     model.labels[0]
    'T-shirt/top'
    """
    source = checkpoint if isinstance(checkpoint, Reference) else _checkpoint(checkpoint)
    if threads is None:
        threads = usable_cpus() if device == "cpu" else 1  # which do next to nothing for a GPU
    size = _BATCH_SIZES[objective] if batch_size is None else batch_size
    deadline = Deadline.after(60 * max_minutes, should_stop)
    with (
        borrowed(source, threads, data) as reference,
        scratch_folder() as scratch,
    ):
        path = reference.artifact.path
        folder = path.with_suffix(".deploy") if output is None else Path(output)
        check_folder(folder, path)
        require_labels(reference.test, reference.dataset)
        job = Job(reference, budget, size, threads, device, max_minutes, calibration, deadline, progress)
        reference.first(progress=job.reading)
        files = make_files(job, Path(scratch))
        job.check_stop()
        entrants, left_out, missing = _entrants(job, files)
        watch = Watch()
        choice = choose(job, files, entrants)
        watch.listen()
        job.check_stop()
        rows = (*choice.rows(entrants, _accuracy(job, files)), *files.rows, *left_out, *missing)
        report = TuneReport(
            checkpoint=str(path),
            folder=str(folder),
            objective=objective,
            batch_size=size,
            budget_points=budget,
            rows=rows,
            complete=choice.complete and not left_out,
            seconds=time.monotonic() - job.started,
            environment=environment(),
            notes=(*files.notes, *_doubts(watch)),
        )
        _deploy(job, report, choice, command)
    return report


def _checkpoint(source: ArtifactLike) -> Artifact:
    """Open a checkpoint or an imported ONNX file; raise ArtifactError if it is another file."""
    artifact = resolve(source).artifact
    if not artifact.is_reference:
        advice = "tune the checkpoint that it was exported from"
        if artifact.manifest is not None and artifact.manifest.compression is not None:
            advice = "tune the checkpoint that it was compressed from; tune tries the same by itself"
        if artifact.manifest is None:
            advice += ", or import it first"
        raise ArtifactError(f"{artifact.path} is {artifact.kind}; {advice}")
    return artifact


def _deploy(job: Job, report: TuneReport, choice: Choice, command: str) -> None:
    """Write the chosen contender as a folder, or raise BenchmarkError and say why there is none."""
    chosen = choice.chosen
    if chosen is None or chosen.verdict is None:
        against = dict.fromkeys(row.reason for row in report.rows if row.outcome in ("rejected", "failed"))
        raise BenchmarkError(f"nothing can be deployed: {'; '.join(against)}", report)
    if not job.reference.artifact.is_unchanged():
        raise BenchmarkError(
            f"{report.checkpoint} was replaced while it was tuned; nothing was written", report
        )
    try:
        write_deployment(report, chosen.candidate, chosen.verdict, command or _command(job, report))
    except ArtifactError as error:  # a full disk, say: what was timed is not lost
        raise BenchmarkError(str(error), report) from error


def _accuracy(job: Job, files: Files) -> float | None:
    """Return the checkpoint's accuracy on the test images, as far as it is known."""
    stated: float | None = job.reference.artifact.require_manifest().training.get("test_accuracy")
    return files.measured[0].checkpoint_accuracy if files.measured else stated


def _entrants(job: Job, files: Files) -> tuple[list[Contender], list[Row], list[Row]]:
    """Return what races, and rows for those that memory cannot hold and for runtimes that are missing.

    The first is eager PyTorch, or the imported file on ONNX Runtime, which all are timed against.
    """
    available, missing = contenders(
        files.by_variant, threads=job.threads, device=job.device, lossy=files.labelled
    )
    variant = next(iter(files.by_variant))
    first = Contender(variant, resolve(job.reference.artifact, Run(device=job.device, threads=job.threads)))
    others = (each for each in available if each.candidate != first.candidate)
    entrants, left_out = fitting([first, *others], available_memory())
    _note_known(files, entrants)
    return entrants, left_out, missing


def _note_known(files: Files, entrants: list[Contender]) -> None:
    """Give the contenders of files that were measured already their verdicts, which do not depend on threads."""
    for contender, report in product(entrants, files.measured):
        numbers = RuntimeOptions.of(report.options).numbers
        measured = report.artifact.sha256, report.runtime, numbers
        if (*contender.numbers, contender.candidate.run.device) == (*measured, report.device):
            contender.verdict = report


def _doubts(watch: Watch) -> list[str]:
    """Return why the times of a race may be far off."""
    busy = watch.conditions()["busy_cpus"] or 0.0
    if busy <= BUSY_CPUS:
        return []
    return [
        f"Other programs kept {busy:.1f} CPUs busy just before or after the race, so its times may be far off, and "
        "another way may be faster. Tune again when the machine is idle."
    ]


def _command(job: Job, report: TuneReport) -> str:
    """Return the command that makes the folder again."""
    texts = ["cnndeploy", "tune", report.checkpoint, "--output", report.folder]
    texts += ["--budget", f"{job.budget:g}", "--objective", report.objective]
    texts += ["--batch-size", str(job.batch_size), "--threads", str(job.threads), "--device", job.device]
    texts += [] if job.calibration is None else ["--calibration", str(job.calibration)]
    texts += ["--max-minutes", f"{job.max_minutes:g}"]
    return shlex.join(texts + ([] if job.reference.data is None else ["--data", job.reference.data]))
