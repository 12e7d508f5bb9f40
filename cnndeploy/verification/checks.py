"""The checks of logits: tolerance, float64 as an oracle, what a user is told, independence of the batch, the loss.

A tolerance says how far two programs may differ, and is a guess. The same checkpoint computed in float64 is as good as
exact, so it tells how much of a difference is float32's own rounding: eager PyTorch in float32 errs from it too. An
artifact that computes the same, in another order, errs about as much; one that computes something else errs more.

Source: Higham, Accuracy and stability of numerical algorithms, 2nd edition, 2002, sections 1.5 and 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.verification.paired import paired_counts

Logits = NDArray[np.float32]  # (images, classes)
CHUNK = 256  # images at a time, so that float64 copies of many classes stay small
# In tolerances: below, a network that ignores its input would be hard to tell from one that does not.
_LEAST_SENSITIVITY = 10
# How many times eager's own error the artifact's may be.
LIMIT = 4.0
TYPICAL_LIMIT = 8.0  # float16's rounding errs by a thousand times float32's
# Four roundings of float32: an eager run that happens to err less is no yardstick. At one, sound files of convnext_tiny
# and swin_v2_t on OpenVINO were rejected, which err by 1.1e-6.
FLOOR = 2.0**-21
PROBE_SIZES, PROBED_ROWS = (2, 7, 64), 3


@dataclass(frozen=True, slots=True)
class Tolerance:
    """An image passes if its largest logit error is at most ``absolute + relative * scale``, see :func:`scales`.

    float32 rounds to 1.2e-7 of a value, and two correct programs add up a layer's thousands of products in
    different orders. Errors are measured against the image's largest logit, not each logit's own size:
    rounding follows the size of what is added up, and a logit that happens to be near zero is no sign.
    """

    absolute: float = 1e-8
    relative: float = 3e-5

    def at_least(self, eager_error: float) -> Tolerance:
        """Return the tolerance for a network in which eager itself errs by so much, relative to the largest logit.

        An artifact that errs :data:`LIMIT` times as much is sound, and the two may err in opposite directions. For
        shallow networks that is less than the constant, which is the floor; torchvision's ShuffleNet errs by 2.2e-5.
        """
        return replace(self, relative=max(self.relative, (LIMIT + 1) * eager_error))

    @classmethod
    def of_tf32(cls) -> Tolerance:
        """Return the tolerance for products in TF32, whose factors keep 10 bits: each loses 5e-4 of a value.

        Emulated on the CPU, our six networks' largest error of 12 to 48 images and two seeds was 3.0e-3 of the
        largest logit, and float32's was 1.8e-6.
        """
        return cls(relative=1e-2)


@dataclass(slots=True)
class Comparison:
    """What :meth:`add` has seen so far. ``typical`` is :func:`typical_logit` of all images, not of a batch."""

    tolerance: Tolerance = field(default_factory=Tolerance)
    typical: float = 0.0
    images: int = 0
    batch_sizes: set[int] = field(default_factory=set)
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    agreeing: int = 0
    beyond_tolerance: int = 0
    first_beyond: int | None = None
    lowest: NDArray[np.float32] | float = math.inf
    highest: NDArray[np.float32] | float = -math.inf

    def add(self, expected: Logits, actual: Logits) -> str | None:
        """Compare a batch of logits, float32 (batch, classes); return the reason if it cannot be."""
        if (reason := self._incomparable(expected, actual)) is not None:
            self.max_abs_error = self.max_rel_error = (
                math.inf
            )  # logits that cannot be compared have no known error
            return reason
        self.lowest = np.minimum(self.lowest, expected.min(axis=0))  # (classes,)
        self.highest = np.maximum(self.highest, expected.max(axis=0))
        error = _largest_errors(actual, expected)  # (batch,)
        scale = scales(expected, self.typical)  # (batch,)
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

    def _incomparable(self, expected: Logits, actual: Logits) -> str | None:
        batch, last = len(expected), self.images + len(expected) - 1
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return f"a batch of {batch} gives {actual.dtype} {actual.shape}, not {expected.dtype} {expected.shape}"
        for side, logits in (("the checkpoint", expected), ("the artifact", actual)):
            if not np.isfinite(logits).all():
                return f"{side} gives NaN or infinite logits within images {self.images} to {last}"
        return None

    @property
    def sensitivity(self) -> float:
        """How far the checkpoint's logits vary from image to image, relative to the largest."""
        largest = float(np.maximum(np.abs(self.lowest), np.abs(self.highest)).max())
        return float(np.max(self.highest - self.lowest)) / largest if self.images and largest else 0.0

    @property
    def top1_agreement(self) -> float:
        """The share of images given the same label, 0 if nothing was compared."""
        return self.agreeing / self.images if self.images else 0.0

    def reasons(self) -> list[str]:
        """Return why this is no pass; nothing if it is one.

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


@dataclass(frozen=True, slots=True)
class OracleCheck:
    """Errors from float64, each image's largest relative to its scale, see :func:`scales`.

    ``images`` were compared, all of them or a random sample drawn with ``seed``. ``ratio`` is the larger of
    the two quotients of the artifact's and eager's errors, at the 99.9th percentile and at the maximum;
    eager's count at least ``floor``. ``typical_ratio`` is the same at the median: if eager errs much on one image,
    that excuses no error on all.
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
    typical_ratio: float = 0.0

    def reasons(self) -> list[str]:
        """Return why this is no pass; nothing if it is one."""
        reasons = []
        if not (self.images and self.ratio <= self.limit):  # a NaN is no pass
            reasons.append(
                f"against float64 its error is {self.ratio:.3g} times eager float32's own, beyond {self.limit:g}: "
                f"up to {self.artifact_max:.3g}, eager's up to {self.eager_max:.3g}"
            )
        elif not self.typical_ratio <= TYPICAL_LIMIT:
            reasons.append(
                f"against float64 its error on the median image is {self.typical_ratio:.3g} times eager float32's own, "
                f"beyond {TYPICAL_LIMIT:g}"
            )
        return reasons


def check_against_oracle(
    artifact: Logits, eager: Logits, oracle: NDArray[np.float64], seed: int
) -> OracleCheck:
    """Compare logits (images, classes), the same images in each, with the oracle's."""
    (own, own_p999, own_max), (its, its_p999, its_max) = (
        [float(value) for value in np.quantile(relative_errors(logits, oracle), (0.5, 0.999, 1.0))]
        for logits in (artifact, eager)
    )
    ratio = max(own_p999 / max(its_p999, FLOOR), own_max / max(its_max, FLOOR))
    typical = own / max(its, FLOOR)
    return OracleCheck(len(oracle), seed, own_p999, own_max, its_p999, its_max, ratio, typical_ratio=typical)


def relative_errors(logits: Logits, oracle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each image's largest error relative to its scale, (images,)."""
    scale = np.maximum(scales(oracle, typical_logit(oracle)), np.finfo(np.float64).tiny)
    errors: NDArray[np.float64] = _largest_errors(logits, oracle) / scale
    return errors


def scales(logits: NDArray[Any], typical: float) -> NDArray[np.float64]:
    """Return what each image's error is relative to, (images,): its largest logit, and at least the ``typical`` one.

    Rounding follows the size of what is added up, and that is no smaller for an image whose logits cancel out. A
    network of two classes has images with both logits near zero; relative to these, sound programs err without limit.
    """
    return np.maximum(_largest_logits(logits), typical)


def typical_logit(logits: NDArray[Any]) -> float:
    """Return the median over the images of the largest logit; NaN and infinite ones are left out."""
    largest = _largest_logits(logits)
    finite = largest[np.isfinite(largest)]
    return float(np.median(finite)) if finite.size else 0.0


def _largest_logits(logits: NDArray[Any]) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = np.maximum(logits.max(axis=1), -logits.min(axis=1)).astype(np.float64)
    return largest


def _largest_errors(logits: Logits, exact: NDArray[Any]) -> NDArray[np.float64]:
    """Return each image's largest error, (images,)."""
    parts = _chunks(logits)
    return np.concatenate(
        [np.abs(logits[part].astype(np.float64) - exact[part]).max(axis=1) for part in parts]
    )


def _chunks(images: NDArray[Any]) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(images), CHUNK)]


@dataclass(frozen=True, slots=True)
class Decisions:
    """Labels and accuracies of both sides over the same images.

    ``flipped`` are the numbers, in the test set, of images that got another label. ``certified`` counts the
    images whose label was safe: twice the largest logit error is below the margin between the
    checkpoint's two largest logits. ``mcnemar_p`` is the exact two-sided p-value for equal accuracy. It and the
    accuracies are None if nobody knows what the images show.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or
    percentages, 1947, in its exact, binomial form.
    """

    flipped: tuple[int, ...]
    certified: int
    artifact_accuracy: float | None
    checkpoint_accuracy: float | None
    mcnemar_p: float | None


def decide(artifact: Logits, checkpoint: Logits, labels: NDArray[np.integer[Any]] | None) -> Decisions:
    """Compare logits (images, classes) of the same images; ``labels`` (images,) are the right ones, if known."""
    given, expected = artifact.argmax(axis=1), checkpoint.argmax(axis=1)
    # copied, for a view of the two largest would keep all that was sorted
    largest = np.concatenate(
        [np.sort(checkpoint[part], axis=1)[:, -2:].copy() for part in _chunks(checkpoint)]
    )
    margins = np.diff(largest.astype(np.float64))[:, 0]  # (images,)
    return Decisions(
        flipped=tuple(np.flatnonzero(given != expected).tolist()),
        certified=int((2 * _largest_errors(artifact, checkpoint) < margins).sum()),
        artifact_accuracy=None if labels is None else float((given == labels).mean()),
        checkpoint_accuracy=None if labels is None else float((expected == labels).mean()),
        mcnemar_p=None if labels is None else mcnemar(*paired_counts(given, expected, labels)),
    )


def probability_change(artifact: Logits, checkpoint: Logits) -> float:
    """Return the largest difference between two probabilities, of logits (images, classes)."""
    changes = (
        np.abs(_softmax(artifact[part]) - _softmax(checkpoint[part])).max() for part in _chunks(artifact)
    )
    return float(max(changes))


def _softmax(logits: Logits) -> NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p-value that ``first`` and ``second`` discordant pairs come from equal accuracies."""
    pairs = first + second
    tail = sum(math.comb(pairs, count) for count in range(min(first, second) + 1))
    return float(min(1.0, 2 * tail / 2**pairs))


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """``max_rel_spread`` is the largest difference between an image's logits alone and in a batch of
    ``batch_sizes``, first or last, relative to its scale; over ``rows`` images. ``max_rel_repeat_spread``
    is that between two runs of the image alone.
    """

    rows: int
    batch_sizes: tuple[int, ...]
    max_rel_spread: float
    max_rel_repeat_spread: float
    limit: float

    def reasons(self) -> list[str]:
        """Return why this is no pass; nothing if it is one."""
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
    """Return batches of each image alone, twice, then first and last in larger ones, as far as there are images."""
    batches = []
    for row in np.linspace(0, images - 1, min(PROBED_ROWS, images)).astype(int).tolist():
        batches += [[row], [row]]
        for size in (size for size in PROBE_SIZES if size <= images):
            others = [(row + offset) % images for offset in range(1, size)]
            batches += [[row, *others], [*others, row]]
    return batches


def check_invariance(
    batches: Sequence[list[int]], logits: Iterable[Logits], limit: float, typical: float = 0.0
) -> BatchInvariance:
    """Compare the logits of :func:`probes`, batch by batch (batch, classes); ``typical`` as for :func:`scales`."""
    alone: dict[int, Logits] = {}
    row, spreads, repeats = -1, [0.0], [0.0]
    for batch, values in zip(batches, logits, strict=True):
        if len(batch) == 1 and batch[0] not in alone:
            row = batch[0]
            alone[row] = values[0]
            continue
        scale = max(float(scales(alone[row][None], typical)[0]), float(np.finfo(np.float32).tiny))
        spread = float(np.abs(values[batch.index(row)] - alone[row]).max()) / scale
        (repeats if len(batch) == 1 else spreads).append(spread)
    sizes = {len(batch) for batch in batches} - {1}
    return BatchInvariance(
        len(alone), tuple(sorted(sizes)), float(np.max(spreads)), float(np.max(repeats)), limit
    )
