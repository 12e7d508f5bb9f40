"""Evaluation: how often a file is right on the test images, overall and for each class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Data, feeds, open_dataset, require_labels, sound
from cnndeploy.deployment import ArtifactLike, resolve
from cnndeploy.errors import ArtifactError
from cnndeploy.progress import Progress, silent
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from cnndeploy.serial import jsonable

_Z_95 = 1.959963984540054
# The confusion matrix of more classes has more cells than anybody looks at.
MOST_CONFUSED = 1000
TOP = 5


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

    With more than 1,000 classes ``confusion`` is empty, and ``counts`` has the right answers and the images of each.
    ``top5_correct`` counts the images whose class is among the five likeliest; None if there are no more than five.
    ``options`` are those of the runtime that differ from their defaults.

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
    top5_correct: int | None = None
    counts: tuple[tuple[int, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

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
    def top5_accuracy(self) -> float | None:
        """The share of images whose class is among the five likeliest; None if there are no more than five."""
        return None if self.top5_correct is None else self.top5_correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the accuracy, see :func:`wilson`."""
        return wilson(self.correct, self.images)

    @property
    def per_class(self) -> tuple[ClassAccuracy, ...]:
        """The accuracy for each class, in the order of the labels."""
        rows = ((row[number], sum(row)) for number, row in enumerate(self.confusion))
        counts = self.counts or rows
        return tuple(ClassAccuracy(label, *count) for label, count in zip(self.labels, counts, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; the accuracy of a class without images is None."""
        per_class = [{**jsonable(one), "accuracy": jsonable(one.accuracy)} for one in self.per_class]
        names = ("accuracy", "top5_accuracy", "interval", "correct", "images")
        values = {**jsonable(self), **{name: getattr(self, name) for name in names}, "per_class": per_class}
        del values["counts"]  # per_class has them
        return values


def evaluate(
    artifact: ArtifactLike,
    *,
    run: Run | None = None,
    images: int | None = None,
    batch_size: int = 256,
    data: Data | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Run test images through a checkpoint, an exported file or a deployment, and count the right labels.

    Images that cannot be read are left out, with a warning.

    Args:
        artifact: A file that cnndeploy wrote, or a folder that ``cnndeploy tune`` wrote, which runs as its plan says.
        run: How it is run; what this leaves open is as planned, or the default.
        images: Use only the first N test images; all of them by default.
        batch_size: Images in one call.
        data: ``fashion-mnist`` or a folder of images, see :mod:`cnndeploy.datasets.image_folder`; what the file was
            made on by default.
        progress: Called with the number of images that were run, and of all.

    Raises:
        ArtifactError, CheckpointError, DataError, DeviceUnavailableError: As their names say.

    >>> sum(one.images for one in cnndeploy.evaluate("lenet.onnx", images=100).per_class)
    100
    """
    candidate = resolve(artifact, run)
    opened, manifest = candidate.artifact, candidate.artifact.require_manifest()
    dataset = open_dataset(data, manifest.data, opened.path)
    test = dataset.split("test", manifest.preprocessing.channels, manifest.labels).first(images)
    require_labels(test, dataset)  # before anything is read
    prepare = None if manifest.takes_images else manifest.preprocessing
    with open_session(
        opened, candidate.run
    ) as session:  # what cannot be run is said before a warning of images
        test = sound(test, manifest.preprocessing.resized_size, progress)
        labels, classes = require_labels(test, dataset), len(manifest.labels)
        given, top = np.empty(len(test), np.int64), 0
        for start in range(0, len(test), batch_size):
            batch = range(start, min(start + batch_size, len(test)))
            for part, images_of_a_size in feeds(test, batch, prepare):
                places = start + np.array(part)
                outputs = session.run({manifest.input.name: images_of_a_size})
                logits = _logits(outputs.get(manifest.output.name), (len(places), classes), opened)
                given[places] = logits.argmax(axis=1)
                top += int((ranks(logits, labels[places]) < TOP).sum())
            progress(batch.stop, len(test), f"Evaluating {opened.path.name}")
        if not opened.is_unchanged():
            raise ArtifactError(f"{opened.path} is no longer the file that was opened; evaluate it again")
        how = candidate.run.runtime, session.device, session.threads
        counted = _counted(labels, given, classes)
        top5 = top if classes > TOP else None
        return Evaluation(
            str(opened.path),
            opened.sha256,
            *how,
            manifest.labels,
            **counted,
            top5_correct=top5,
            options=candidate.run.choices.changed,
        )


def _counted(labels: NDArray[np.integer[Any]], given: NDArray[np.int64], classes: int) -> dict[str, Any]:
    """Count the images (images,) of each class: by the class given, or if there are many only the right ones."""
    if classes > MOST_CONFUSED:
        right, images = (
            np.bincount(ones, minlength=classes).tolist() for ones in (labels[labels == given], labels)
        )
        return {"confusion": (), "counts": tuple(zip(right, images, strict=True))}
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, given), 1)
    return {"confusion": tuple(map(tuple, confusion.tolist()))}


def _logits(logits: NDArray[Any] | None, shape: tuple[int, int], artifact: Artifact) -> NDArray[np.float32]:
    if logits is None or logits.shape != shape or logits.dtype != np.float32:
        fault = "it has no such output" if logits is None else f"they are {logits.dtype} {logits.shape}"
        raise ArtifactError(f"{artifact.path} should return logits, float32 {shape}, but {fault}")
    if not np.isfinite(logits).all():
        raise ArtifactError(f"{artifact.path} returns NaN or infinite logits; it has no accuracy")
    return logits


def ranks(logits: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return how many classes come before the right one, (images,); of equal logits the first, as argmax has it."""
    own = np.take_along_axis(logits, labels[:, None].astype(np.intp), axis=1)  # (images, 1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    before_it: NDArray[np.int64] = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return before_it


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Return the 95% score interval of a share.

    Source: Wilson: Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, z2 = correct / images, _Z_95**2
    middle = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z_95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return max(0.0, middle - half), min(1.0, middle + half)
