"""The loss of accuracy of one file against another, by the images on which they differ."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

_Z = 1.959963984540054  # the standard normal distribution's 97.5th percentile
_HALVINGS = 60


def paired_counts(labels: NDArray[Any], expected: NDArray[Any], truth: NDArray[Any]) -> tuple[int, int]:
    """Count the images, (images,), that are lost, which only ``expected`` has right, and gained, only ``labels``."""
    right, wanted = labels == truth, expected == truth
    return int((wanted & ~right).sum()), int((right & ~wanted).sum())


def paired_interval(lost: int, gained: int, images: int) -> tuple[float, float]:
    """Return the 95% interval of the share of images that an artifact loses against its checkpoint.

    Tango's score interval: the differences that a score test of the paired counts does not reject. Unlike Wald's it
    has a width if no image differs, and it keeps its level if few do.

    Args:
        lost: Images that the checkpoint gets right and the artifact wrong.
        gained: Images that the artifact gets right and the checkpoint wrong.
        images: All images, at least 1.

    Returns:
        Lower and upper end, as shares from -1 to 1; above 0 the artifact is worse. Each end errs in 2.5%.

    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 1998, equations 5 to 9.

    >>> from cnndeploy.verification.paired import paired_interval
    >>> low, high = paired_interval(lost=30, gained=20, images=10_000)
    >>> f"{low:.4f} to {high:.4f}"
    '-0.0004 to 0.0024'
    """
    if not (images > 0 and lost >= 0 and gained >= 0 and lost + gained <= images):
        raise ValueError(f"no paired counts: {lost} lost and {gained} gained of {images}")
    return -_upper(gained, lost, images), _upper(lost, gained, images)


def _upper(lost: int, gained: int, images: int) -> float:
    """Return the difference at which the score falls to -z, by bisection: it falls as the difference grows."""
    low, high = (lost - gained) / images, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _score(lost, gained, images, middle) > -_Z:
            low = middle
        else:
            high = middle
    return high


def _score(lost: int, gained: int, images: int, difference: float) -> float:
    """Return the score statistic for a true difference, with the other parameter at its restricted maximum."""
    surplus = lost - gained - images * difference
    if surplus == 0:
        return 0.0
    linear = (2 * images - lost + gained) * difference - lost - gained
    constant = -gained * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear**2 - 8 * images * constant))
    share = (root - linear) / (4 * images)  # of images that would be gained
    variance = images * (2 * share + difference * (1 - difference))
    return surplus / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, surplus)
