"""Evaluation: how often a file is right on the test images, overall and for each class."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import fashion_mnist
from cnndeploy.deployment import Source, resolve
from cnndeploy.errors import ArtifactError
from cnndeploy.progress import Progress, silent
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from cnndeploy.serial import jsonable

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """The accuracy for one class: ``correct`` of the ``images`` that show ``label`` were classified as such."""

    label: str
    correct: int
    images: int

    @property
    def accuracy(self) -> float:
        """The share that was right; NaN if there were no images."""
        return self.correct / self.images if self.images else math.nan


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation: ``confusion[i][j]`` images show class i and were classified as class j.

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
        """The number of images that were run."""
        return sum(one.images for one in self.per_class)

    @property
    def correct(self) -> int:
        """The number of images that were classified correctly."""
        return sum(one.correct for one in self.per_class)

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
        """The accuracy for each class, in the order of the labels."""
        rows = enumerate(zip(self.labels, self.confusion, strict=True))
        return tuple(ClassAccuracy(label, row[number], sum(row)) for number, (label, row) in rows)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; the accuracy of a class without images is None."""
        per_class = [{**jsonable(one), "accuracy": jsonable(one.accuracy)} for one in self.per_class]
        derived = {name: getattr(self, name) for name in ("accuracy", "interval", "correct", "images")}
        return {**jsonable(self), **derived, "per_class": per_class}


def evaluate(
    artifact: Source,
    *,
    run: Run | None = None,
    images: int | None = None,
    batch_size: int = 256,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Run test images through a checkpoint, an exported file or a deployment, and count the right labels.

    Args:
        artifact: A file that cnndeploy wrote, or a folder that ``cnndeploy tune`` wrote, which runs as its plan says.
        run: How it is run; what this leaves open is as planned, or the default.
        images: Use only the first N test images; all of them by default.
        batch_size: Images in one call.
        data_dir: Folder of the data set.
        progress: Called with the number of images that were run, and of all.

    Raises:
        ArtifactError, CheckpointError, DataError, DeviceUnavailableError: As their names say.

    >>> sum(one.images for one in cnndeploy.evaluate("lenet.onnx", images=100).per_class)
    100
    """
    candidate = resolve(artifact, run)
    opened, manifest = candidate.artifact, candidate.artifact.require_manifest()
    test, classes = fashion_mnist.load("test", data_dir).first(images), len(manifest.labels)
    confusion = np.zeros((classes, classes), np.int64)
    with open_session(opened, candidate.run) as session:
        for start in range(0, len(test), batch_size):
            batch = slice(start, start + batch_size)
            outputs = session.run({manifest.input.name: manifest.prepared(test.images[batch])})
            truth, logits = test.labels[batch], outputs.get(manifest.output.name)
            np.add.at(confusion, (truth, _labels(logits, (len(truth), classes), opened)), 1)
            progress(start + len(truth), len(test), f"Evaluating {opened.path.name}")
        if not opened.is_unchanged():
            raise ArtifactError(f"{opened.path} is not the file any more that was opened; evaluate it again")
        how = candidate.run.runtime, session.device, session.threads
        counts = tuple(map(tuple, confusion.tolist()))
        return Evaluation(str(opened.path), opened.sha256, *how, manifest.labels, counts)


def _labels(logits: NDArray[Any] | None, shape: tuple[int, int], artifact: Artifact) -> NDArray[np.intp]:
    if logits is None or logits.shape != shape or logits.dtype != np.float32:
        fault = "it has no such output" if logits is None else f"they are {logits.dtype} {logits.shape}"
        raise ArtifactError(f"{artifact.path} should return logits, float32 {shape}, but {fault}")
    if not np.isfinite(logits).all():
        raise ArtifactError(f"{artifact.path} returns NaN or infinite logits; it has no accuracy")
    labels: NDArray[np.intp] = logits.argmax(axis=1)
    return labels


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Return the 95% score interval of a share.

    Source: Wilson: Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, z2 = correct / images, _Z_95**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z_95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return max(0.0, middle - half), min(1.0, middle + half)
