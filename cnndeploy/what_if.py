"""What mistakes of preprocessing would cost: the accuracy of a network if an app prepares its images differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.datasets import Data, open_dataset, require_labels, sound
from cnndeploy.deployment import ArtifactLike, resolve
from cnndeploy.errors import ArtifactError
from cnndeploy.progress import Progress, silent
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from cnndeploy.serial import jsonable
from cnndeploy.variants import Prepare, variants
from cnndeploy.verification.paired import paired_counts, paired_interval

_BATCH = 16  # of images that are prepared in every way at a time


@dataclass(frozen=True, slots=True)
class Mistake:
    """The accuracy with one mistake, and the percentage points that it loses, with the paired 95% interval.

    ``lost`` counts images that only the right preprocessing gets right, ``gained`` those that only the mistake does.
    """

    name: str
    accuracy: float
    lost: int
    gained: int
    loss_points: float
    loss_low_points: float
    loss_high_points: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The accuracy of a file on ``images`` prepared as its manifest says, and with each mistake."""

    artifact: str
    sha256: str
    runtime: str
    images: int
    accuracy: float
    mistakes: tuple[Mistake, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return dict(jsonable(self))


def what_if(
    artifact: ArtifactLike,
    *,
    run: Run | None = None,
    images: int | None = None,
    data: Data | None = None,
    progress: Progress = silent,
) -> WhatIf:
    """Run test images through a file, prepared as they should be and with the usual mistakes.

    Args:
        artifact: A checkpoint, or a file that takes prepared images.
        run, images, data, progress: As for :func:`~cnndeploy.evaluation.evaluate`.

    Raises:
        ArtifactError: The file does its own preprocessing, in which an app can make no mistake; or as there.
        CheckpointError, DataError, DeviceUnavailableError: As for :func:`~cnndeploy.evaluation.evaluate`.

    >>> from cnndeploy.what_if import what_if
    >>> [mistake.name for mistake in what_if("lenet.onnx", images=32).mistakes][:2]
    ['antialias, as Pillow', 'nearest neighbours']
    """
    candidate = resolve(artifact, run)
    opened, manifest = candidate.artifact, candidate.artifact.require_manifest()
    if manifest.takes_images:
        raise ArtifactError(f"{opened.path} does its own preprocessing; ask this of its checkpoint")
    own = manifest.preprocessing
    ways: dict[str, Prepare] = {"": own, **variants(own)}
    dataset = open_dataset(data, manifest.data, opened.path)
    test = dataset.split("test", own.channels, manifest.labels).first(images)
    require_labels(test, dataset)  # before anything is read

    def in_every_way(raw: NDArray[np.uint8]) -> NDArray[Any]:
        return np.stack(
            [prepare(raw) for prepare in ways.values()], axis=1
        )  # (n, ways, channels, height, width)

    with open_session(
        opened, candidate.run
    ) as session:  # an error of the file comes before a warning about images
        test = sound(test, manifest.preprocessing.resized_size, progress)
        truth = require_labels(test, dataset)
        given = np.empty((len(ways), len(test)), np.int64)
        for start in range(0, len(test), _BATCH):
            places = range(start, min(start + _BATCH, len(test)))
            prepared = test.prepared(places, in_every_way)
            for way in range(len(ways)):
                feeds = {manifest.input.name: np.ascontiguousarray(prepared[:, way])}
                logits = session.run(feeds)[manifest.output.name]
                if not np.isfinite(logits).all():
                    raise ArtifactError(f"{opened.path} returns NaN or infinite logits; it has no accuracy")
                given[way, start : places.stop] = logits.argmax(axis=1)
            progress(places.stop, len(test), f"Evaluating {opened.path.name}")
    if not opened.is_unchanged():
        raise ArtifactError(f"{opened.path} is no longer the file that was opened; evaluate it again")
    mistakes = tuple(_mistake(name, given[way], given[0], truth) for way, name in enumerate(ways) if way)
    accuracy = float((given[0] == truth).mean())
    return WhatIf(str(opened.path), opened.sha256, candidate.run.runtime, len(test), accuracy, mistakes)


def _mistake(name: str, labels: NDArray[Any], expected: NDArray[Any], truth: NDArray[Any]) -> Mistake:
    (lost, gained), count = paired_counts(labels, expected, truth), len(truth)
    low, high = paired_interval(lost, gained, count)
    accuracy = float((labels == truth).mean())
    return Mistake(name, accuracy, lost, gained, 100 * (lost - gained) / count, 100 * low, 100 * high)
