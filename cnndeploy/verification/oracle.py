"""The oracle: are the artifact's errors those of rounding, as eager float32's own are?

A tolerance says how far two programs may differ, and is a guess. The same checkpoint computed in float64 is as
good as exact, so it tells how much of a difference is float32's own rounding: eager PyTorch in float32 errs
from it too. An artifact that computes the same, in another order, errs about as much; one that computes
something else errs more.

Source: Higham, Accuracy and stability of numerical algorithms, 2nd edition, 2002, sections 1.5 and 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnndeploy.verification.decisions import CHUNK

LIMIT = 4.0
# One rounding of float32: an eager run that happens to err less is no yardstick.
FLOOR = 2.0**-23


@dataclass(frozen=True, slots=True)
class OracleCheck:
    """Errors from float64, each image's largest relative to its largest logit.

    ``images`` were compared, all of them or a random sample drawn with ``seed``. ``ratio`` is the larger of
    the two quotients of the artifact's and eager's errors, at the 99.9th percentile and at the maximum, where
    eager's count at least ``floor``.
    """

    images: int
    seed: int
    artifact_p999: float
    artifact_max: float
    eager_p999: float
    eager_max: float
    ratio: float
    limit: float = LIMIT
    floor: float = FLOOR

    def reasons(self) -> list[str]:
        """Why this is no pass; empty where it is one."""
        if self.images and self.ratio <= self.limit:  # a NaN is no pass
            return []
        return [
            f"against float64 its error is {self.ratio:.3g} times eager float32's own, beyond {self.limit:g}: "
            f"up to {self.artifact_max:.3g}, eager's up to {self.eager_max:.3g}"
        ]


def check_against_oracle(
    artifact: NDArray[np.float32], eager: NDArray[np.float32], oracle: NDArray[np.float64], seed: int
) -> OracleCheck:
    """Compare logits (images, classes), the same images in each, with the oracle's."""
    scale = np.maximum(oracle.max(axis=1), -oracle.min(axis=1))  # (images,)
    scale = np.maximum(scale, np.finfo(np.float64).tiny)
    (artifact_p999, artifact_max), (eager_p999, eager_max) = (
        (float(np.quantile(errors, 0.999)), float(errors.max()))
        for errors in (_largest_errors(logits, oracle) / scale for logits in (artifact, eager))
    )
    ratio = max(artifact_p999 / max(eager_p999, FLOOR), artifact_max / max(eager_max, FLOOR))
    return OracleCheck(len(oracle), seed, artifact_p999, artifact_max, eager_p999, eager_max, ratio)


def _largest_errors(logits: NDArray[np.float32], oracle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each image's largest error, (images,), a part of the images at a time to bound the memory."""
    starts = range(0, len(oracle), CHUNK)
    parts = (logits[start : start + CHUNK] - oracle[start : start + CHUNK] for start in starts)
    return np.concatenate([np.abs(part).max(axis=1) for part in parts])
