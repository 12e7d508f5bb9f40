"""Budgets: how much accuracy does a lossy file lose against its checkpoint, and is that within what it may?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.datasets import Data, require_labels
from cnndeploy.deployment import ArtifactLike, resolve
from cnndeploy.errors import ArtifactError, BudgetError, QuantizationError
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.run import Run
from cnndeploy.verification.checks import scales, typical_logit
from cnndeploy.verification.examination import Examination, examination
from cnndeploy.verification.paired import paired_counts, paired_interval
from cnndeploy.verification.reference import NotRun, Reference
from cnndeploy.verification.report import BudgetReport
from cnndeploy.words import counted

BATCH = 64
# How far a batch that is run again may differ, as a share of the largest logit. A runtime returns the same bits.
REPEATABLE = 3e-5
# So many images of one label are no accident, if they are all that there are; so many are looked at first.
_FEWEST_TO_DIFFER, _LOOKED_AT = 16, 256
_ALL_THE_SAME = "the checkpoint gives all images the same label, so agreement proves nothing; train it"


def verify_budget(
    artifact: ArtifactLike,
    against: ArtifactLike | Reference,
    *,
    budget: float,
    run: Run | None = None,
    images: int | None = None,
    data: Data | None = None,
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> BudgetReport:
    """Measure what a lossy file loses on test images, against its checkpoint in eager PyTorch float32 on the CPU.

    Each side runs in a process of its own. The budget is compared with the upper end of the paired 95% interval of
    the loss, which the loss exceeds in 2.5% of cases, and not with the loss that happened to be measured. Nothing is
    raised if it is exceeded; the report says so, see :meth:`BudgetReport.require`.

    Args:
        artifact: A file that is lossy, or is run with options that are; or a deployment's folder.
        against: The checkpoint it came from, or a :class:`Reference` of it, which runs it once for many files.
        budget: Percentage points of accuracy that may be lost.
        run: How the artifact is run; it and what follows are as for :func:`verify`.
        images: The first so many test images, all of them by default.
        data: As there; its images need labels.
        deadline, progress: As there.

    Raises:
        ArtifactError, CheckpointError: A file cannot be opened, or gives up no accuracy on purpose.
        QuantizationError: The budget is not a number above 0 and at most 100.
        DeviceUnavailableError, DataError, Stopped: As there.

    >>> cnndeploy.verify_budget("lenet.int8.onnx", "lenet.pt", budget=20, images=64).within_budget
    True
    """
    require_budget(budget)
    candidate = resolve(artifact, run)
    candidate.artifact.require_manifest()
    if not candidate.lossy:
        raise ArtifactError(
            f"{candidate.artifact.path} computes in float32, so it has no budget: it is equivalent or it is not. "
            "Use verify."
        )
    with examination(candidate, against, images, data, deadline, progress) as opened:
        report = BudgetReport(**opened.identity(), budget_points=float(budget))
        truth = require_labels(opened.test, opened.reference.dataset)
        reasons = opened.mismatches()
        if not reasons:
            try:
                report = _with_figures(report, *_labels(opened), truth)
                opened.reference.files_measured += 1
                report = replace(report, files_measured=opened.reference.files_measured)
                reasons = _beyond_budget(report, len(opened.reference.test))
            except NotRun as error:
                reasons = [str(error)]
        return replace(report, reasons=(*reasons, *opened.replaced()))


def require_budget(budget: float, *, or_zero: bool = False) -> None:
    """Raise QuantizationError unless it is a number of percentage points, above 0 ``or_zero``."""
    is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not is_number or not (0 < budget <= 100 or (or_zero and budget == 0)):
        least = "from 0 to 100" if or_zero else "above 0 and at most 100"
        raise QuantizationError(
            f"a budget is in percentage points of accuracy, {least}, as 0.5 is; not {budget!r}"
        )


def _labels(opened: Examination) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the labels (images,) that the artifact and the checkpoint give; raise NotRun if there are none."""
    count = len(opened.test)
    opened.total = 2 * count + BATCH
    batches = [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
    logits, again = opened.logits(batches), opened.logits(batches[:1])
    opened.runner.check_noise()
    finite = np.isfinite(logits).all(axis=1)  # (images,)
    if not finite.all():
        raise NotRun(f"the artifact gives NaN or infinite logits, first for image {int(finite.argmin())}")
    first = logits[: len(again)]
    if (np.abs(again - first).max(axis=1) > REPEATABLE * scales(first, typical_logit(logits))).any():
        raise NotRun("run again, the same images give other logits: something random is active")
    checkpoint_logits = opened.reference.logits(range(count), progress=opened.counting())
    if not np.isfinite(checkpoint_logits).all():
        raise NotRun("the checkpoint gives NaN or infinite logits; train it again")
    expected = checkpoint_logits.argmax(axis=1)
    if count >= _FEWEST_TO_DIFFER and len(np.unique(expected)) == 1:
        raise NotRun(_ALL_THE_SAME)
    return logits.argmax(axis=1), expected


def require_labels_that_differ(reference: Reference, count: int) -> None:
    """Raise BudgetError if a checkpoint gives the first ``count`` test images all the same label.

    Nothing that is made of it could be shown to keep a budget, however long it took to make. Raise ArtifactError if it
    gives NaN or infinity.
    """
    for looked_at in (min(count, _LOOKED_AT), count):  # nearly all images may be of one class
        if len(np.unique(reference.labels(looked_at))) > 1:
            return
    if count >= _FEWEST_TO_DIFFER:
        raise BudgetError(f"{reference.artifact.path} cannot be held to a budget: {_ALL_THE_SAME}")


def _with_figures(
    report: BudgetReport,
    labels: NDArray[np.intp],
    expected: NDArray[np.intp],
    truth: NDArray[np.integer[Any]],
) -> BudgetReport:
    """Compare the labels (images,) of both sides with the true ones."""
    (lost, gained), count = paired_counts(labels, expected, truth), len(labels)
    low, high = paired_interval(lost, gained, count)
    return replace(
        report,
        images=count,
        top1_agreement=float((labels == expected).mean()),
        artifact_accuracy=float((labels == truth).mean()),
        checkpoint_accuracy=float((expected == truth).mean()),
        loss_points=100 * (lost - gained) / count,
        loss_low_points=100 * low,
        loss_high_points=100 * high,
        gained=gained,
        lost=lost,
    )


def _beyond_budget(report: BudgetReport, all_images: int) -> list[str]:
    """Return what stands against the measured loss, of ``all_images`` that there are; nothing if it is in budget."""
    loss, low, most = report.loss_points, report.loss_low_points, report.loss_high_points
    budget = report.budget_points
    if loss is None or low is None or most is None or most <= budget:
        return []
    measured = f"{'loses' if loss >= 0 else 'gains'} {abs(loss):.2f} percentage points of accuracy"
    on = counted(report.images, "image")
    reason = f"it {measured} on {on} and may lose up to {most:.2f}"
    if low <= budget and report.images < all_images:  # then more images may show that it keeps the budget
        few = f"{on} {'is' if report.images == 1 else 'are'} too few to say whether it keeps the budget of {budget:g}"
        more = f"Measure it on more of the {all_images:,} images before you allow a larger budget"
        return [f"{few}: {reason}. {more}"]
    return [f"{reason}, beyond the budget of {budget:g}"]
