"""The files that tune tries: the checkpoint, its plain and its simplified exports, and an int8 one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnndeploy import registry
from cnndeploy.artifact import Artifact
from cnndeploy.equivalence.budget import checkpoint_labels
from cnndeploy.equivalence.budget_report import BudgetReport
from cnndeploy.errors import BudgetError, CnndeployError
from cnndeploy.tuning.job import Job
from cnndeploy.tuning.report import Row

# The share of the time that eager PyTorch's labels may take, and of how many images their speed is known.
_FOR_LABELS, _ESTIMATE_FROM = 0.3, 256


@dataclass(slots=True)
class Files:
    """``by_variant`` are the files as :class:`Row` names them. ``labels`` are the checkpoint's of all test images, None
    where nothing lossy is to be tried, and took ``labels_s`` seconds; ``int8`` is what was found of the int8 file;
    ``rows`` and ``notes`` say what is missing and why.
    """

    by_variant: dict[str, list[Artifact]]
    labels: NDArray[np.intp] | None = None
    labels_s: float | None = None
    int8: BudgetReport | None = None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _TooLongError(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


def make_files(job: Job, folder: Path) -> Files:
    """Export the checkpoint in every way there is, into ``folder``; raises what an exporter raises."""
    from cnndeploy.exporters import export

    files = Files({"checkpoint": [job.checkpoint]})
    stem = job.checkpoint.path.stem
    for name in registry.names("exporters"):
        exporter = registry.get("exporters", name)
        for variant in ("float", "simplified"):
            job.on_progress(f"Exporting {name}, {variant}", 0, 0)
            path = folder / variant / f"{stem}{exporter.suffix}"
            path.parent.mkdir(exist_ok=True)
            artifact = export(job.checkpoint.path, name, path, simplify=variant == "simplified")
            if variant == "float" or artifact.require_manifest().rewrites:  # else it is the same file twice
                files.by_variant.setdefault(variant, []).append(artifact)
    if job.budget > 0:
        _label(job, files)
    if files.labels is not None:
        _quantize(job, files, folder / f"{stem}.int8.onnx")
    return files


def _label(job: Job, files: Files) -> None:
    """What the checkpoint calls every test image, if that does not take too much of the time."""
    allowed, started = _FOR_LABELS * job.left_s, time.monotonic()
    job.on_progress("Labels by eager PyTorch", 0, 0)
    begun: list[float] = []

    def watch(done: int, total: int) -> None:
        job.on_progress("Labels by eager PyTorch", done, total)
        begun.append(time.monotonic())  # the first batch has the start of a process in it
        if job.should_stop() or done < _ESTIMATE_FROM:
            return
        needs = (begun[-1] - begun[0]) / max(1, len(begun) - 1) * total / done * len(begun)
        if begun[0] - started + needs > allowed:
            raise _TooLongError(needs)

    try:
        files.labels = checkpoint_labels(
            job.checkpoint, threads=job.threads, data_dir=job.data_dir, on_batch=watch
        )
        files.labels_s = time.monotonic() - started
    except _TooLongError as error:
        minutes = math.ceil(error.seconds / 60 / _FOR_LABELS * 1.2)
        files.notes.append(
            f"Nothing lossy was tried: eager PyTorch alone needs {error.seconds / 60:.1f} minutes to label the test "
            f"images, too much of the time. To try it: --max-minutes {minutes}"
        )


def _quantize(job: Job, files: Files, path: Path) -> None:
    from cnndeploy.quantization import quantize

    def lost(outcome: str, reason: str) -> None:
        files.rows.append(Row("int8", "onnxruntime", job.threads, {}, True, outcome, reason))  # type: ignore[arg-type]

    try:
        found = quantize(
            job.checkpoint.path,
            path,
            budget=job.budget,
            calibration=job.calibration,
            threads=job.threads,
            data_dir=job.data_dir,
            reference_labels=files.labels,
            bench_s=0,
            on_progress=lambda done, total, text: job.on_progress(text, done, total),
        )
    except BudgetError as error:
        lost("rejected", str(error))
    except CnndeployError as error:
        lost("failed", str(error))
    else:
        files.by_variant["int8"] = [found.artifact]
        files.int8 = found.report
