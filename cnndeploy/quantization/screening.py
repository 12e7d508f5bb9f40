"""Screening: what a setting costs on training images that no calibration saw, so that test images choose nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.specs import Manifest
from cnndeploy.verification.paired import paired_interval

_Z = 1.96  # of a 95% interval
# Fewer images for larger networks, by their multiply-adds.
_FEWEST, _MOST, _MULTIPLY_ADDS = 128, 2000, 4e11
_SENSITIVITY_IMAGES = 64
_BATCH_FLOATS = 2**22  # of a batch's prepared images and, many times that, its activations


def screen_size(work: int) -> int:
    """Images to screen a network on whose layers take ``work`` multiply-adds an image."""
    return int(min(_MOST, max(_FEWEST, _MULTIPLY_ADDS // max(1, work))))


def batches(
    images: NDArray[np.uint8], manifest: Manifest, floats_an_image: int = 0
) -> Iterator[NDArray[Any]]:
    """Raw images (n, height, width) as the network takes them, in batches of bounded size."""
    height, width = manifest.preprocessing.size
    size = max(1, min(64, _BATCH_FLOATS // max(height * width * 16, floats_an_image)))
    for start in range(0, len(images), size):
        yield manifest.prepared(images[start : start + size])


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting and what it cost on the screen.

    ``logit_error`` is the root mean square of the logits' error relative to that of the float file's logits;
    ``changed`` the share of labels that are not the float file's. ``predicted_high_points`` is the upper end of the
    interval that the test images would give, in percentage points; it assumes the screen's rate of discordant images
    and the smallest loss that the screen does not rule out.
    """

    method: str
    float_layers: tuple[str, ...]
    images: int
    logit_error: float
    changed: float
    loss_points: float
    predicted_high_points: float


class Screen:
    """Training images, their labels, and the float file's logits for them; ``tests`` images will be asked later."""

    def __init__(
        self, network: onnx.ModelProto, manifest: Manifest, images: data.Images, tests: int, threads: int
    ) -> None:
        self._manifest, self._images, self._tests, self._threads = manifest, images, tests, threads
        self._expected = self._logits(network, len(images))

    def trial(self, model: onnx.ModelProto, method: str, float_layers: Sequence[str]) -> Trial:
        """Run the whole screen."""
        right, count = self._images.labels, len(self._images)
        logits = self._logits(model, count)
        labels, expected = logits.argmax(axis=1), self._expected.argmax(axis=1)
        lost = int(((expected == right) & (labels != right)).sum())
        gained = int(((expected != right) & (labels == right)).sum())
        # at least one: that none of so few differed does not mean that none of 10,000 would
        discordant = max(1, lost + gained) / count
        # of so few images two labels are half a point: only what they prove counts against a setting
        proven, _ = paired_interval(lost, gained, count)
        high = max(0.0, proven) + _Z * math.sqrt(discordant / self._tests)
        return Trial(
            method=method,
            float_layers=tuple(float_layers),
            images=count,
            logit_error=_relative_error(logits, self._expected),
            changed=float((labels != expected).mean()),
            loss_points=100 * (lost - gained) / count,
            predicted_high_points=100 * high,
        )

    def logit_error(self, model: onnx.ModelProto) -> float:
        """Of some dozens of images, to rank layers by."""
        logits = self._logits(model, _SENSITIVITY_IMAGES)
        return _relative_error(logits, self._expected[: len(logits)])

    def _logits(self, model: onnx.ModelProto, count: int) -> NDArray[np.float32]:
        session = open_on_cpu(model, self._threads)
        (name,), wanted = (value.name for value in model.graph.input), [self._manifest.output.name]
        given = batches(self._images.images[:count], self._manifest)
        return np.concatenate([session.run(wanted, {name: batch})[0] for batch in given])


def open_on_cpu(model: onnx.ModelProto, threads: int) -> Any:
    """Open an ONNX Runtime session in this process, whose threads do not spin between runs.

    It is for trying settings; what is shipped is measured elsewhere, in a process of its own.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _relative_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    error = logits.astype(np.float64) - expected
    return float(np.sqrt((error**2).mean() / max(float((expected.astype(np.float64) ** 2).mean()), 1e-30)))
