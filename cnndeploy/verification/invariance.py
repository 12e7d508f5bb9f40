"""Batch invariance: does an image get the same logits again, in a batch, and at any place in it?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BATCH_SIZES = (2, 7, 64)
ROWS = 3


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """``max_rel_spread`` is the largest difference between an image's logits alone and in a batch of
    ``batch_sizes``, first or last, relative to its largest logit; over ``rows`` images. ``max_rel_repeat_spread``
    is that between two runs of the image alone.
    """

    rows: int
    batch_sizes: tuple[int, ...]
    max_rel_spread: float
    max_rel_repeat_spread: float
    limit: float

    def reasons(self) -> list[str]:
        """Why this is no pass; empty where it is one."""
        if not self.max_rel_repeat_spread <= self.limit:  # a NaN is no pass
            return [
                f"the same image gives other logits each time, by {self.max_rel_repeat_spread:.3g} of the largest: "
                "something random is active, as dropout in training is"
            ]
        if self.max_rel_spread <= self.limit:
            return []
        return [
            f"an image's logits depend on its batch: they differ by {self.max_rel_spread:.3g} of the largest logit "
            f"between alone and in a batch of {', '.join(map(str, self.batch_sizes))}, beyond {self.limit:g}"
        ]


def probes(images: int) -> list[list[int]]:
    """Batches that hold an image alone, twice, then first and last in batches of each size that ``images`` allow."""
    found = []
    for row in np.linspace(0, images - 1, min(ROWS, images)).astype(int).tolist():
        found += [[row], [row]]
        for size in sizes_for(images):
            others = [(row + offset) % images for offset in range(1, size)]
            found += [[row, *others], [*others, row]]
    return found


def sizes_for(images: int) -> tuple[int, ...]:
    """The batch sizes that so many different images can fill."""
    return tuple(size for size in BATCH_SIZES if size <= images)


def check_invariance(
    batches: Sequence[list[int]], logits: Iterable[NDArray[np.float32]], limit: float
) -> BatchInvariance:
    """Compare the logits of :func:`probes`, batch by batch (batch, classes)."""
    alone: dict[int, NDArray[np.float32]] = {}
    row, spreads, repeats = -1, [0.0], [0.0]
    for batch, values in zip(batches, logits, strict=True):
        if len(batch) == 1 and batch[0] not in alone:
            row = batch[0]
            alone[row] = values[0]
            continue
        scale = max(float(np.abs(alone[row]).max()), float(np.finfo(np.float32).tiny))
        spread = float(np.abs(values[batch.index(row)] - alone[row]).max()) / scale
        (repeats if len(batch) == 1 else spreads).append(spread)
    sizes = {len(batch) for batch in batches} - {1}
    return BatchInvariance(
        len(alone), tuple(sorted(sizes)), float(np.max(spreads)), float(np.max(repeats)), limit
    )
