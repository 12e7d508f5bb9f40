"""Comparison: running figures over batches of logits, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An image passes where its largest logit error is at most ``absolute + relative * largest logit``.

    float32 rounds to 1.2e-7 of a value, and two correct programs add up a layer's thousands of products in
    different orders. Errors are measured against the image's largest logit, not each logit's own size:
    rounding follows the size of what is added up, and a logit that happens to be near zero is no sign.
    """

    absolute: float = 1e-8
    relative: float = 1e-5


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

    def add(self, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> str | None:
        """Compare a batch of logits, float32 (batch, classes); gives the reason where it cannot be."""
        batch = len(expected)
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return (
                f"a batch of {batch} gives {actual.dtype} {actual.shape}, "
                f"not {expected.dtype} {expected.shape}"
            )
        for side, logits in (("the checkpoint", expected), ("the artifact", actual)):
            if not np.isfinite(logits).all():
                return f"{side} gives NaN or infinite logits within images {self.images} to {self.images + batch - 1}"
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
        self.images += batch
        self.batch_sizes.add(batch)
        return None

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
        if not self.beyond_tolerance:
            return []
        reasons = [
            f"{self.beyond_tolerance} of {self.images} images are beyond the tolerance, first image "
            f"{self.first_beyond}: error up to {self.max_abs_error:.3g}, {self.max_rel_error:.3g} of the largest logit"
        ]
        if self.agreeing < self.images:
            reasons.append(f"{self.images - self.agreeing} of {self.images} labels differ")
        return reasons
