"""Doubts: whether an accuracy on real images shows that labels, or red and blue, are in another order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cnndeploy.datasets import Images
from cnndeploy.evaluation import Evaluation
from cnndeploy.importing.outputs import Compute
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.verification.paired import paired_counts, paired_interval

_BATCH = 16
_NAMED = 20
# Another order fits if by it at least half of the images are right, and this share more than before.
_FITS, _GAIN = 0.5, 0.05


def doubts_of(
    evaluation: Evaluation, compute: Compute, preprocessing: Preprocessing, images: Images
) -> Iterator[str]:
    """Yield a sentence for each thing that looks wrong: an accuracy near chance, the order of labels, that of colours.

    ``images`` are some of the evaluation's, whose labels are known; red and blue are exchanged in them.
    """
    chance = max(one.images for one in evaluation.per_class) / evaluation.images
    near_chance = evaluation.interval[0] <= chance
    if near_chance:
        yield (
            f"an accuracy of {evaluation.accuracy:.4f} is no better than the {chance:.4f} of always naming the "
            "commonest class; weights, preprocessing or labels may be wrong"
        )
    order, right = _other_order(evaluation) if evaluation.confusion else ("", 0.0)
    if order:
        yield order
    # what explains less than an order of the labels does is no explanation
    if preprocessing.channels == 3 and (
        colours := _other_colours(compute, preprocessing, images, max(chance, right - _GAIN))
    ):
        yield colours


def _other_order(evaluation: Evaluation) -> tuple[str, float]:
    """Say that the labels are in another order, if most images would be right in one; return that share too."""
    confusion = np.array(evaluation.confusion)  # (classes, classes): shown, answered
    seen = np.flatnonzero(confusion.sum(axis=1))
    answered = confusion[seen].argmax(axis=1)
    counts = confusion[seen, answered]
    right = int(counts.sum())
    # most images of each class that moves get its answer
    clear = (counts > _FITS * confusion[seen].sum(axis=1))[answered != seen].all()
    fits = right >= max(_FITS * evaluation.images, evaluation.correct + _GAIN * evaluation.images)
    if not fits or not clear or len(set(answered.tolist())) < len(seen):
        return "", 0.0
    labels = evaluation.labels
    moved = [
        f"{labels[shown]} is answered by output {output}, {labels[output]}"
        for shown, output in zip(seen, answered, strict=True)
        if shown != output
    ]
    more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
    return (
        f"the labels seem to be in another order: {'; '.join(moved[:_NAMED])}{more}. In that order "
        f"{right / evaluation.images:.4f} of the images are right",
        right / evaluation.images,
    )


def _other_colours(compute: Compute, preprocessing: Preprocessing, images: Images, least: float) -> str:
    """Say that the network was trained on BGR, if it is more often right with red and blue exchanged."""
    truth = images.labels
    assert truth is not None  # noqa: S101 - they were evaluated
    as_it_is, exchanged = (
        _answers(compute, preprocessing, images, exchanged=exchanged) for exchanged in (False, True)
    )
    lost, gained = paired_counts(exchanged, as_it_is, truth)
    before, after = float((as_it_is == truth).mean()), float((exchanged == truth).mean())
    if paired_interval(lost, gained, len(images))[1] >= 0 or after <= least:
        return ""
    return (
        f"with red and blue exchanged {after:.4f} of {len(images)} images are right, and {before:.4f} as they are: the "
        "network seems to be trained on BGR, the order of cv2.imread. Exchange the input channels of its first "
        "convolution, weight[:, [2, 1, 0]]"
    )


def _answers(
    compute: Compute, preprocessing: Preprocessing, images: Images, *, exchanged: bool
) -> NDArray[np.int64]:
    def prepare(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return preprocessing(batch[..., ::-1] if exchanged else batch)

    answers = []
    for start in range(0, len(images), _BATCH):
        places = range(start, min(start + _BATCH, len(images)))
        answers.append(compute(images.prepared(places, prepare)).argmax(axis=1))
    return np.concatenate(answers)
