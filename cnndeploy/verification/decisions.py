"""Decisions: what the two sides would tell a user, image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 256  # images at a time, so that float64 copies of many classes stay small


@dataclass(frozen=True, slots=True)
class Decisions:
    """Labels and accuracies of both sides over the same images.

    ``flipped`` are the numbers, in the test set, of images that got another label. ``certified`` counts the
    images for which no flip was possible: twice the largest logit error is below the margin between the
    checkpoint's two largest logits. ``mcnemar_p`` is the exact two-sided p-value for equal accuracy.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or
    percentages, 1947, in its exact, binomial form.
    """

    flipped: tuple[int, ...]
    certified: int
    artifact_accuracy: float
    checkpoint_accuracy: float
    mcnemar_p: float


def decide(
    artifact: NDArray[np.float32], checkpoint: NDArray[np.float32], labels: NDArray[np.uint8]
) -> Decisions:
    """Compare logits (images, classes) of the same images, whose right ``labels`` (images,) are known."""
    given, expected = artifact.argmax(axis=1), checkpoint.argmax(axis=1)
    gained = int(((given == labels) & (expected != labels)).sum())
    lost = int(((given != labels) & (expected == labels)).sum())
    parts = (slice(start, start + CHUNK) for start in range(0, len(labels), CHUNK))
    return Decisions(
        flipped=tuple(np.flatnonzero(given != expected).tolist()),
        certified=sum(_certified(artifact[part], checkpoint[part]) for part in parts),
        artifact_accuracy=float((given == labels).mean()),
        checkpoint_accuracy=float((expected == labels).mean()),
        mcnemar_p=mcnemar(gained, lost),
    )


def _certified(artifact: NDArray[np.float32], checkpoint: NDArray[np.float32]) -> int:
    """Count the images for which no flip was possible."""
    largest = np.sort(checkpoint.astype(np.float64), axis=1)
    margin = largest[:, -1] - largest[:, -2]
    error = np.abs(artifact.astype(np.float64) - checkpoint).max(axis=1)
    return int((2 * error < margin).sum())


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p-value that ``first`` and ``second`` discordant pairs come from equal accuracies."""
    pairs = first + second
    tail = sum(math.comb(pairs, count) for count in range(min(first, second) + 1))
    return float(min(1.0, 2 * tail / 2**pairs))
