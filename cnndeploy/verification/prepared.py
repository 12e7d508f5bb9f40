"""What a file that resizes as Pillow does makes of raw images, against what its checkpoint's preprocessing makes.

Such a file also returns what its network got. Both are multiples of a grey level after the same normalisation, so
their difference is a whole number of levels, apart from float32's rounding. These numbers are the *moves*. The network
is then judged on exactly the images that it got: the checkpoint is given the moved ones. So no tolerance becomes wider.

How far values may be moved follows from the arithmetic. A resizing is two weighted sums, each rounded to 8 bits. A
runtime whose weights differ in the last bits breaks ties otherwise, and hardly anything else; then a value is off by
one level, and one that the first rounding has moved may be moved once more by the second. How many tie depends on the
sizes: halves and quarters are exact in binary, thirds never tie, so sixths tie most, as at 24 to 36 pixels. The most
that was measured at any size is 18% of an image's values, on black and white; the limit leaves some room.
docs/PREPROCESSING.md has the figures.

That limit is wide, and on smooth photos many a wrong resizing keeps it. So a file also gets noise, on which neighbours
have nothing in common. The sides of its images are primes: weights then have large denominators, hardly a sum is tied,
and the limit is tight. No photo is needed for that, nor the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.preprocessing import Preprocessing
from cnndeploy.variants import explained, in_levels
from cnndeploy.words import counted

# Of photos; smooth ones are full of values halfway between two levels, and what they hide shows on noise.
MOST_LEVELS, MOST_MOVED = 2, 0.5
# Of noise. A sound file moves 3% at most, or 6.2% for a network of 6 x 6 pixels; rounding once instead of twice moves
# 12% and more, another filter nearly all.
MOST_MOVED_OF_NOISE = 0.08
# Sides relative to the network's: tall, wide, and too small.
_NOISE_SIZES = ((2.3, 1.25), (1.1, 2.7), (0.7, 0.6))
# Of small networks more images, so that chance decides nothing.
_NOISE_PIXELS, _MOST_NOISE_IMAGES = 20_000, 64
# What float32 may round, in levels; it rounds a value of 255 levels to 3e-5.
_ROUNDING = 0.01


@dataclass(frozen=True, slots=True)
class PreparedCheck:
    """How a file's own preprocessing differs from the checkpoint's, over all images and sizes that were run.

    Of ``values``, ``moved`` are off, by ``levels`` grey levels at most; in one image at most the share ``worst``.
    ``probability_change`` is the most that this changes a probability; None if it is not known. ``most_levels`` and
    ``most_moved`` are the limits for levels, and for the share of an image's values.
    """

    values: int = 0
    moved: int = 0
    levels: int = 0
    worst: float = 0.0
    probability_change: float | None = None
    most_levels: int = MOST_LEVELS
    most_moved: float = MOST_MOVED

    def plus(self, other: PreparedCheck) -> PreparedCheck:
        """Return the check of both sets of images."""
        return PreparedCheck(
            self.values + other.values,
            self.moved + other.moved,
            max(self.levels, other.levels),
            max(self.worst, other.worst),
            self.probability_change,
        )

    @property
    def share(self) -> float:
        """The share of values that are off."""
        return self.moved / self.values if self.values else 0.0


def moves_of(
    own: Preprocessing, images: NDArray[np.uint8], prepared: NDArray[Any], *, exact: bool
) -> tuple[NDArray[np.int8], PreparedCheck, str]:
    """Return the moves (batch, channels, *size), their figures, and what is wrong with ``prepared``, if anything is.

    ``exact``: values that are off by no whole number of levels, or too many of them, are wrong. Both are expected of a
    lossy file, which may round its input to 8 bits.
    """
    expected = own(images)
    if prepared.shape != expected.shape or not np.isfinite(prepared).all():
        what = prepared.shape if prepared.shape != expected.shape else "NaN or infinite"
        return np.zeros(0, np.int8), PreparedCheck(), f"its prepared images are {what}, not {expected.shape}"
    difference = in_levels(own, prepared - expected)
    whole = np.rint(difference)
    moved = (whole != 0).reshape(len(whole), -1)
    levels, worst = int(np.abs(whole).max()), float(moved.mean(axis=1).max())
    check = PreparedCheck(whole.size, int(moved.sum()), levels, worst)
    rounding = float(np.abs(difference - whole).max()) if exact else 0.0
    if levels <= MOST_LEVELS and rounding <= _ROUNDING and (worst <= MOST_MOVED or not exact):
        return whole.astype(np.int8), check, ""
    size = " x ".join(map(str, images.shape[1:3]))
    most = float(np.abs(difference).max())
    reason = (
        f"its preprocessing is not the checkpoint's: on images of {size} it is off by up to {most:.3g} grey levels, in "
        f"up to {worst:.1%} of an image's values"
    )
    why = explained(own, images, prepared)
    return np.zeros(0, np.int8), check, f"{reason}; {why}" if why else reason


def noise_sizes(own: Preprocessing) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths of the noise that a file is run on."""
    height, width = own.size
    return tuple((_prime(height * tall), _prime(width * wide)) for tall, wide in _NOISE_SIZES)


def noise(own: Preprocessing, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return images of noise, (n, *size) or (n, *size, 3), the same each time."""
    count = min(_MOST_NOISE_IMAGES, 1 + _NOISE_PIXELS // math.prod(own.size))
    shape = (count, *size, *(() if own.channels == 1 else (3,)))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def wrong_on_noise(
    own: Preprocessing, images: NDArray[np.uint8], prepared: NDArray[Any], *, exact: bool
) -> str:
    """Say what is wrong with what a file made of noise; empty if nothing is. For ``exact`` see :func:`moves_of`."""
    _, check, reason = moves_of(own, images, prepared, exact=exact)
    if reason:
        return f"it fails on noise: {reason}"
    if not exact or check.share <= MOST_MOVED_OF_NOISE:
        return ""
    return (
        f"its preprocessing is not the checkpoint's: on noise {check.share:.1%} of the values are off, by up to "
        f"{counted(check.levels, 'grey level')}; the limit is {MOST_MOVED_OF_NOISE:.0%}"
    )


def _prime(least: float) -> int:
    """Return the first prime number from ``least`` on."""
    number = max(2, math.ceil(least))
    while any(number % factor == 0 for factor in range(2, math.isqrt(number) + 1)):
        number += 1
    return number


def save_moves(folder: Path, numbers: Sequence[int], moves: NDArray[np.int8]) -> None:
    """Write the moves of each image that has any, by its number in the test set."""
    for number, values in zip(numbers, moves.reshape(len(moves), -1), strict=True):
        (places,) = values.nonzero()
        if len(places):
            np.save(folder / f"{number}.npy", np.stack([places, values[places]]), allow_pickle=False)


def has_moves(folder: Path, number: int) -> bool:
    """Return whether an image has any moves."""
    return (folder / f"{number}.npy").exists()


def with_moves(
    own: Preprocessing, prepared: NDArray[Any], folder: Path, numbers: Sequence[int]
) -> NDArray[Any]:
    """Return prepared images (batch, channels, height, width) with their moves, in their dtype."""
    moved = prepared.copy()
    level = (own.scale / np.array(own.stds, np.float64)).astype(prepared.dtype)  # (channels,)
    for image, number in zip(moved, numbers, strict=True):
        if has_moves(folder, number):
            places, values = np.load(folder / f"{number}.npy", allow_pickle=False)
            image.reshape(-1)[places] += values * level[places // (own.size[0] * own.size[1])]
    return moved
