"""Budgets: how much accuracy does a lossy file lose against its checkpoint, and is that within what it may?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.equivalence.budget_report import BudgetReport
from cnndeploy.equivalence.paired import paired_interval
from cnndeploy.equivalence.report import FileIdentity
from cnndeploy.equivalence.side import NotRun, Side
from cnndeploy.equivalence.structure import is_unchanged, mismatches
from cnndeploy.errors import ArtifactError, DataError, QuantizationError
from cnndeploy.machine import usable_cpus
from cnndeploy.runtimes import RuntimeOptions, default_runtime

BATCH = 64
# Of the largest logit: what a batch may give differently when it is run again. A runtime gives the same bits.
REPEATABLE = 3e-5
# Of so many images, ten classes are never one.
_FEWEST_TO_DIFFER = 16

_DEFAULT_OPTIONS = RuntimeOptions()
Progress = Callable[[int, int], None]


def verify_budget(
    artifact: str | os.PathLike[str] | Artifact,
    against: str | os.PathLike[str] | Artifact,
    *,
    budget: float,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    options: RuntimeOptions = _DEFAULT_OPTIONS,
    images: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    reference_labels: Sequence[int] | NDArray[Any] | None = None,
    on_batch: Progress | None = None,
) -> BudgetReport:
    """Measure what a lossy file loses on test images, against its checkpoint in eager PyTorch float32 on the CPU.

    Each side runs in a process of its own. The budget is held against the upper end of the paired 95% interval of
    the loss, which the loss exceeds in 2.5% of cases, and not against the loss that happened to be measured.

    Args:
        artifact: A file that is lossy, or is run with ``options`` that are.
        against: The checkpoint it came from.
        budget: Percentage points of accuracy that may be lost.
        runtime: What runs the artifact; its format's own by default.
        device: Where the artifact is run.
        threads: CPU threads for each side, all that the process may use by default.
        options: What else is chosen of the runtime.
        images: The first so many test images, all 10,000 by default.
        data_dir: Folder of the data set.
        reference_labels: What the checkpoint answers, (images,), where it is known and need not be run again.
        on_batch: Called with the images run and the images to run in all, on both sides together.

    Returns:
        The report; nothing is raised where the budget is exceeded, see :meth:`BudgetReport.require`.

    Raises:
        ArtifactError, CheckpointError: A file cannot be opened, or gives up no accuracy on purpose.
        QuantizationError: The budget is no number above 0.
        DeviceUnavailableError: ``device`` does not work here.
        DataError: The data set is missing or damaged.

    >>> cnndeploy.verify_budget("lenet.int8.onnx", "lenet.pt", budget=20, images=64).within_budget
    True
    """
    require_budget(budget)
    artifact = Artifact.open(artifact.path if isinstance(artifact, Artifact) else artifact)
    against = Artifact.open(against.path if isinstance(against, Artifact) else against)
    if against.format != "checkpoint":
        raise ArtifactError(f"{against.path} is {against.format}; verify against the checkpoint it came from")
    if not (artifact.require_manifest().lossy or options.lossy):
        raise ArtifactError(
            f"{artifact.path} computes in float32, so it has no budget: it is equivalent or it is not. "
            f"Use cnndeploy verify {artifact.path} --against {against.path}."
        )
    test = data.load("test", data_dir).first(images)
    known = None if reference_labels is None else np.asarray(reference_labels)
    if known is not None and known.shape != (len(test),):
        raise DataError(
            f"{known.shape} reference labels were given for {len(test)} images; give one for each"
        )
    runtime = runtime or default_runtime(artifact.format)
    shared: dict[str, Any] = {
        "threads": usable_cpus() if threads is None else threads,
        "data_dir": None if data_dir is None else os.fspath(data_dir),
    }
    with (
        Side(artifact, runtime=runtime, device=device, options=options, **shared) as candidate,
        Side(against, runtime=default_runtime("checkpoint"), device="cpu", **shared) as reference,
    ):
        candidate.wait_until_open()
        reference.wait_until_open()
        measured = _Measured(candidate, reference, test, known, on_batch)
        reasons = mismatches(candidate, reference) or measured.gather()
        for side in (candidate, reference):
            if not is_unchanged(side.artifact):
                reasons.append(f"{side.artifact.path} was replaced while it was verified")
    figures = measured.figures(reasons)
    if not reasons and figures["loss_high_points"] > budget:
        reasons.append(
            f"it loses {figures['loss_points']:.2f} percentage points of accuracy, and for all that "
            f"{len(test):,} images tell up to {figures['loss_high_points']:.2f}, beyond the budget of {budget:g}"
        )
    return BudgetReport(
        artifact=FileIdentity(str(artifact.path), artifact.sha256),
        against=FileIdentity(str(against.path), against.sha256),
        runtime=runtime,
        device=candidate.device,
        threads=candidate.threads,
        options=options.changed,
        budget_points=float(budget),
        reasons=tuple(reasons),
        **figures,
    )


def require_budget(budget: float) -> None:
    """Raise QuantizationError unless it is a number of percentage points."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 100:
        raise QuantizationError(
            f"a budget is in percentage points of accuracy, above 0 and at most 100, as 0.5 is; not {budget!r}"
        )


def checkpoint_labels(
    checkpoint: Artifact,
    *,
    threads: int | None = None,
    images: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on_batch: Progress | None = None,
) -> NDArray[np.intp]:
    """What a checkpoint in eager PyTorch, float32 on the CPU, calls each test image, (images,): ``reference_labels``.

    Raises:
        ArtifactError: It cannot be run, or gives NaN or infinity.
    """
    count = len(data.load("test", data_dir).first(images))
    threads = usable_cpus() if threads is None else threads
    plan = [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
    folder = None if data_dir is None else os.fspath(data_dir)
    found: list[NDArray[Any]] = []
    runtime = default_runtime("checkpoint")
    with Side(checkpoint, runtime=runtime, device="cpu", threads=threads, data_dir=folder) as side:
        side.wait_until_open()
        if side.sha256 != checkpoint.sha256:
            raise ArtifactError(f"{checkpoint.path} was replaced before it was opened; begin anew")
        try:
            for logits in side.logits(plan):
                found.append(logits)
                if on_batch is not None:
                    on_batch(min(len(found) * BATCH, count), count)
        except NotRun as error:
            raise ArtifactError(f"{checkpoint.path} has no labels: {error}") from error
    logits = np.concatenate(found)
    if not np.isfinite(logits).all():
        raise ArtifactError(f"{checkpoint.path} gives NaN or infinite logits; train it anew")
    labels: NDArray[np.intp] = logits.argmax(axis=1)
    return labels


class _Measured:
    """Runs both sides and keeps the label that each gave to every image."""

    def __init__(
        self,
        candidate: Side,
        reference: Side,
        test: data.Images,
        known: NDArray[Any] | None,
        on_batch: Progress | None,
    ) -> None:
        self._candidate = candidate
        self._reference = reference
        self._right = test.labels
        self._on_batch = on_batch
        self._ours: NDArray[Any] | None = None
        self._theirs = known
        self._done, self._total = 0, len(test) * (1 if known is not None else 2) + BATCH

    def gather(self) -> list[str]:
        """Why the labels of the two cannot be compared; empty where they can."""
        numbers = list(range(len(self._right)))
        plan = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
        try:
            ours = self._run(self._candidate, plan, "the artifact")
            (again,) = self._run(self._candidate, plan[:1], "the artifact")
            theirs = [] if self._theirs is not None else self._run(self._reference, plan, "the checkpoint")
        except NotRun as error:
            return [str(error)]
        scale = np.abs(ours[0]).max(axis=1)  # (batch,)
        if (np.abs(again - ours[0]).max(axis=1) > REPEATABLE * scale).any():
            return ["run again, the same images give other logits: something random is active"]
        self._ours = np.concatenate(ours).argmax(axis=1)
        if self._theirs is None:
            self._theirs = np.concatenate(theirs).argmax(axis=1)
        if len(self._theirs) >= _FEWEST_TO_DIFFER and len(np.unique(self._theirs)) == 1:
            return ["the checkpoint gives all images the same label, so agreement proves nothing; train it"]
        return []

    def _run(self, side: Side, plan: list[list[int]], name: str) -> list[NDArray[Any]]:
        """Logits (batch, classes) of every batch; raises NotRun where they are none."""
        classes = side.artifact.require_manifest().output.shape[-1]
        found = []
        for batch, logits in zip(plan, self._counted(side.logits(plan)), strict=True):
            if logits.shape != (len(batch), classes) or logits.dtype != np.float32:
                raise NotRun(
                    f"{name} gives {logits.dtype} {logits.shape} for {len(batch)} images, "
                    f"not float32 ({len(batch)}, {classes})"
                )
            if not np.isfinite(logits).all():
                raise NotRun(f"{name} gives NaN or infinite logits within images {batch[0]} to {batch[-1]}")
            found.append(logits)
        return found

    def _counted(self, logits: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for batch in logits:
            self._done += len(batch) if batch.ndim else 0
            if self._on_batch is not None:
                self._on_batch(min(self._done, self._total), self._total)
            yield batch

    def figures(self, reasons: list[str]) -> dict[str, Any]:
        """The counts and shares of a report, nothing compared where there is a reason against comparing."""
        if reasons or self._ours is None or self._theirs is None:
            return dict(BudgetReport.NOTHING)
        ours, theirs = self._ours == self._right, self._theirs == self._right
        lost, gained, count = int((theirs & ~ours).sum()), int((ours & ~theirs).sum()), len(ours)
        low, high = paired_interval(lost, gained, count)
        return {
            "images": count,
            "artifact_accuracy": float(ours.mean()),
            "checkpoint_accuracy": float(theirs.mean()),
            "loss_points": 100 * (lost - gained) / count,
            "loss_low_points": 100 * low,
            "loss_high_points": 100 * high,
            "gained": gained,
            "lost": lost,
            "top1_agreement": float((self._ours == self._theirs).mean()),
        }
