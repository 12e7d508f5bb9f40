"""Comparison: running figures over batches of logits, and the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# In tolerances: below, a network that ignores its input would be hard to tell from one that does not.
_LEAST_SENSITIVITY = 10


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An image passes where its largest logit error is at most ``absolute + relative * largest logit``.

    float32 rounds to 1.2e-7 of a value, and two correct programs add up a layer's thousands of products in
    different orders. Errors are measured against the image's largest logit, not each logit's own size:
    rounding follows the size of what is added up, and a logit that happens to be near zero is no sign.
    """

    absolute: float = 1e-8
    relative: float = 3e-5

    @classmethod
    def of_tf32(cls) -> Tolerance:
        """For products in TF32, whose factors keep 10 bits: 5e-4 of a value is lost in each.

        Emulated on the CPU, our six networks' largest error of 12 to 48 images and two seeds was 3.0e-3 of the
        largest logit, where float32's was 1.8e-6.
        """
        return cls(relative=1e-2)


@dataclass(slots=True)
class Comparison:
    """What :meth:`add` has seen so far."""

    tolerance: Tolerance = field(default_factory=Tolerance)
    images: int = 0
    batch_sizes: set[int] = field(default_factory=set)
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    agreeing: int = 0
    beyond_tolerance: int = 0
    first_beyond: int | None = None
    lowest: NDArray[np.float32] | float = math.inf
    highest: NDArray[np.float32] | float = -math.inf

    def add(self, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> str | None:
        """Compare a batch of logits, float32 (batch, classes); return the reason if it cannot be."""
        if (reason := self._incomparable(expected, actual)) is not None:
            self.max_abs_error = self.max_rel_error = math.inf  # of what cannot be compared nothing is known
            return reason
        self.lowest = np.minimum(self.lowest, expected.min(axis=0))  # (classes,)
        self.highest = np.maximum(self.highest, expected.max(axis=0))
        error = np.abs(actual.astype(np.float64) - expected).max(axis=1)  # (batch,)
        scale = np.abs(expected).max(axis=1).astype(np.float64)  # (batch,)
        beyond = error > self.tolerance.absolute + self.tolerance.relative * scale
        relative = np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
        if self.first_beyond is None and beyond.any():
            self.first_beyond = self.images + int(beyond.argmax())
        self.beyond_tolerance += int(beyond.sum())
        self.max_abs_error = max(self.max_abs_error, float(error.max()))
        self.max_rel_error = max(self.max_rel_error, float(relative.max()))
        self.agreeing += int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum())
        self.images += len(expected)
        self.batch_sizes.add(len(expected))
        return None

    def _incomparable(self, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> str | None:
        batch = len(expected)
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return f"a batch of {batch} gives {actual.dtype} {actual.shape}, not {expected.dtype} {expected.shape}"
        for side, logits in (("the checkpoint", expected), ("the artifact", actual)):
            if not np.isfinite(logits).all():
                return f"{side} gives NaN or infinite logits within images {self.images} to {self.images + batch - 1}"
        return None

    @property
    def sensitivity(self) -> float:
        """How far the checkpoint's logits vary from image to image, relative to the largest."""
        largest = float(np.maximum(np.abs(self.lowest), np.abs(self.highest)).max())
        return float(np.max(self.highest - self.lowest)) / largest if self.images and largest else 0.0

    @property
    def top1_agreement(self) -> float:
        """The share of images given the same label, 0 where nothing was compared."""
        return self.agreeing / self.images if self.images else 0.0

    def reasons(self) -> list[str]:
        """Why this is no pass; empty where it is one.

        A label may differ only within the tolerance, which is a tie that rounding decides.
        """
        if self.images == 0:
            return ["nothing was compared"]
        if self.images > 1 and self.sensitivity < _LEAST_SENSITIVITY * self.tolerance.relative:
            return [
                f"the checkpoint gives all images the same logits, to {self.sensitivity:.1g} of the largest, "
                "so agreement proves nothing; train it"
            ]
        if not self.beyond_tolerance:
            return []
        reasons = [
            f"{self.beyond_tolerance} of {self.images} images are beyond the tolerance, first image "
            f"{self.first_beyond}: error up to {self.max_abs_error:.3g}, {self.max_rel_error:.3g} of the largest logit"
        ]
        if self.agreeing < self.images:
            reasons.append(f"{self.images - self.agreeing} of {self.images} labels differ")
        return reasons
