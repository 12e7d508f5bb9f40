"""Evaluation: how often a file is right on the test images, in all and for each class."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.runtimes import default_runtime, open_session

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Of the ``images`` that show ``label``, ``correct`` were given it."""

    label: str
    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        """The share that was right; NaN where there was no image."""
        return self.correct / self.images if self.images else math.nan


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``confusion[i][j]`` images show class i and were given label j.

    >>> evaluation = cnndeploy.evaluate("lenet.onnx", images=100)
    >>> low, high = evaluation.interval
    >>> evaluation.images, 0 <= low <= evaluation.accuracy <= high <= 1
    (100, True)
    """

    artifact: str
    sha256: str
    runtime: str
    device: str
    threads: int
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def images(self) -> int:
        """How many were run."""
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        """How many were given their label."""
        return sum(row[number] for number, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the accuracy, see :func:`wilson`."""
        return wilson(self.correct, self.images)

    @property
    def per_class(self) -> tuple[ClassAccuracy, ...]:
        """Each class by itself, in the labels' order."""
        return tuple(
            ClassAccuracy(label, row[number], sum(row))
            for number, (label, row) in enumerate(zip(self.labels, self.confusion, strict=True))
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the accuracy of a class without images is None."""
        return {
            **asdict(self),
            "accuracy": self.accuracy,
            "interval": self.interval,
            "correct": self.correct,
            "images": self.images,
            "per_class": [
                {**asdict(each), "accuracy": each.accuracy if each.images else None}
                for each in self.per_class
            ],
        }


def evaluate(
    artifact: str | os.PathLike[str] | Artifact,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    images: int | None = None,
    batch_size: int = 256,
    data_dir: str | os.PathLike[str] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run test images through a checkpoint or an exported file and count the right labels.

    Args:
        artifact: Any file of ours.
        runtime: The format's own by default.
        images: The first so many test images, all 10,000 by default.
        batch_size: Images a run.
        on_batch: Called with the images run and the images to run.

    Raises:
        ArtifactError, CheckpointError, DataError, DeviceUnavailableError: As they say.

    >>> sum(each.images for each in cnndeploy.evaluate("lenet.onnx", images=100).per_class)
    100
    """
    opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
    manifest = opened.require_manifest()
    test = data.load("test", data_dir).first(images)
    confusion = np.zeros((len(manifest.labels), len(manifest.labels)), np.int64)
    with open_session(opened, runtime=runtime, device=device, threads=threads) as session:
        for start in range(0, len(test), batch_size):
            batch = slice(start, start + batch_size)
            feeds = {manifest.input.name: manifest.prepared(test.images[batch])}
            outputs = session.run(feeds)
            labels = test.labels[batch]
            given = _labels_given(
                outputs.get(manifest.output.name), (len(labels), len(manifest.labels)), opened
            )
            np.add.at(confusion, (labels, given), 1)
            if on_batch is not None:
                on_batch(min(start + batch_size, len(test)), len(test))
        return Evaluation(
            artifact=str(opened.path),
            sha256=opened.sha256,
            runtime=runtime or default_runtime(opened.format),
            device=session.device,
            threads=session.threads,
            labels=manifest.labels,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
        )


def _labels_given(
    logits: NDArray[Any] | None, shape: tuple[int, int], artifact: Artifact
) -> NDArray[np.intp]:
    if logits is None or logits.shape != shape or logits.dtype != np.float32:
        found = "it has no such output" if logits is None else f"they are {logits.dtype} {logits.shape}"
        raise ArtifactError(f"{artifact.path} should give logits float32 {shape}, but {found}")
    if not np.isfinite(logits).all():
        raise ArtifactError(f"{artifact.path} gives NaN or infinite logits; it has no accuracy")
    given: NDArray[np.intp] = logits.argmax(axis=1)
    return given


def wilson(correct: int, images: int) -> tuple[float, float]:
    """The 95% score interval of a share.

    Source: Wilson: Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, z2 = correct / images, _Z_95**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z_95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return max(0.0, middle - half), min(1.0, middle + half)
