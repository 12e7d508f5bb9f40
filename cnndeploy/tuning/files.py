"""The files that tune tries: the checkpoint, its plain and its simplified exports, and an int8 one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.errors import BenchmarkError, BudgetError, CnndeployError
from cnndeploy.exporters import EXPORTERS
from cnndeploy.tuning.job import Job
from cnndeploy.tuning.report import Outcome, Row
from cnndeploy.verification.budget import checkpoint_labels
from cnndeploy.verification.budget_report import BudgetReport

# The share of the time that eager PyTorch's labels may take, and of how many images their speed is known.
_FOR_LABELS, _ESTIMATE_FROM = 0.3, 256
# What is left of it for the race when a search for an int8 file that has not ended is given up.
_FOR_RACE = 0.3


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
    """Ends what there is no time for; ``seconds`` is what it would take in all, as far as that is known."""

    def __init__(self, seconds: float = math.nan) -> None:
        super().__init__()
        self.seconds = seconds


def make_files(job: Job, folder: Path) -> Files:
    """Export the checkpoint in every way there is, into ``folder``; raises what an exporter raises."""
    from cnndeploy.exporters import export

    files = Files({"checkpoint": [job.checkpoint]})
    stem = job.checkpoint.path.stem
    for name in EXPORTERS.names():
        exporter = EXPORTERS.get(name)
        for variant in ("float", "simplified"):
            job.report(0, 0, f"Exporting {name}, {variant}")
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
    first: float | None = None

    def watch(done: int, total: int) -> None:
        nonlocal first
        job.report(done, total, "Labels by eager PyTorch")
        if first is None:  # the first batch has the start of a process in it
            first = time.monotonic() - (time.monotonic() - started) / 2
        needs = (time.monotonic() - first) / done * total
        if done >= _ESTIMATE_FROM and needs > allowed:
            raise _TooLongError(needs)

    job.report(0, 0, "Labels by eager PyTorch")
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
    """An int8 file, or a row that says why there is none."""
    from cnndeploy.quantization.quantize import quantize

    def watch(done: int, total: int, text: str) -> None:
        job.report(done, total, text)
        if job.left_s < _FOR_RACE * 60 * job.max_minutes:
            raise _TooLongError

    def lost(outcome: Outcome, reason: str) -> None:
        files.rows.append(Row("int8", "onnxruntime", job.threads, {}, True, outcome, reason))

    try:
        found = quantize(
            job.checkpoint.path,
            path,
            budget=job.budget,
            calibration=job.calibration,
            device=job.device,
            threads=job.threads,
            data_dir=job.data_dir,
            reference_labels=files.labels,
            bench_s=0,
            on_progress=watch,
        )
    except _TooLongError:
        minutes = math.ceil(2 * job.max_minutes)
        lost("not tried", f"no int8 file was found in time; --max-minutes {minutes} gives it more")
        files.notes.append(f"int8 was given up for want of time. To try it: --max-minutes {minutes}")
    except BudgetError as error:
        lost("rejected", str(error))
    except BenchmarkError:  # it was stopped
        raise
    except CnndeployError as error:
        lost("failed", str(error))
    else:
        files.by_variant["int8"] = [found.artifact]
        files.int8 = found.report
