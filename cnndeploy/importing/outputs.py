"""The trials of any network, whatever runs it: whether it is a classifier, and how images are prepared for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.datasets import Images
from cnndeploy.errors import ArtifactError
from cnndeploy.preprocessing import Preprocessing

Compute = Callable[[NDArray[np.float32]], NDArray[Any]]
"""From prepared images, float32 (batch, channels, height, width), to logits (batch, classes)."""
BATCH = 3
# Of the largest logit. Alone and in a batch a library may add up in another order; a network whose rows influence each
# other, as batch normalisation in training mode does, differs by far more.
SPREAD = 1e-3
_SUM_ERROR = 1e-4
_TRANSFORMED = 32  # images on which two preprocessings are compared


def sample(preprocessing: Preprocessing, batch: int = BATCH) -> NDArray[np.float32]:
    """Return prepared noise, float32 (batch, channels, height, width), the same each time, each image brighter."""
    channels = () if preprocessing.channels == 1 else (3,)
    raw = np.random.default_rng(0).integers(256, size=(batch, *preprocessing.size, *channels), dtype=np.uint8)
    brightness = np.linspace(0.4, 1, batch).reshape(-1, *(1 for _ in raw.shape[1:]))
    return preprocessing((raw * brightness).astype(np.uint8))


def difference(logits: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference relative to the largest expected logit; infinite for other shapes and NaN."""
    if logits.shape != expected.shape:
        return math.inf
    relative = float(np.abs(logits - expected).max()) / (float(np.abs(expected).max()) or 1.0)
    return relative if math.isfinite(relative) else math.inf


def check_logits(compute: Compute, images: NDArray[np.float32], classes: int | None) -> int:
    """Raise ArtifactError unless a network is a classifier that can be deployed; return its classes.

    Such a network returns logits, float32 (batch, classes). It returns the same ones each time, and for each image
    whatever else is in the batch.
    """
    logits, again = compute(images), compute(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ArtifactError(
            f"for images {images.shape} the network returns {logits.shape}, not logits (batch, classes)"
        )
    if classes is not None and logits.shape[1] != classes:
        raise ArtifactError(
            f"the network tells {logits.shape[1]} classes apart, and there are {classes} labels; "
            "give a label for each class, in the order of the outputs"
        )
    if logits.shape[1] < 2:
        raise ArtifactError(
            "the network returns one number for each image; a classifier has 2 classes or more"
        )
    if not np.isfinite(logits).all():
        raise ArtifactError("the network returns NaN or infinite logits")
    if (spread := difference(again, logits)) > SPREAD:
        raise ArtifactError(
            f"run again, the network's logits change by {spread:.2g} of the largest: something random is active in "
            "eval mode"
        )
    alone = np.concatenate([compute(image[None]) for image in images])
    if (spread := difference(alone, logits)) > SPREAD:
        raise ArtifactError(
            f"an image's logits depend on the others in its batch, by {spread:.2g} of the largest: something, such as "
            "batch normalisation without running statistics, looks across the batch"
        )
    if (logits >= 0).all() and float(np.abs(logits.sum(axis=1) - 1).max()) < _SUM_ERROR:
        raise ArtifactError(
            "the network returns probabilities, which add up to 1, and not logits; leave out the softmax at its end"
        )
    return int(logits.shape[1])


def check_transform(transform: Callable[[Any], Any], preprocessing: Preprocessing, images: Images) -> str:
    """Compare the caller's own transform of PIL images with ``preprocessing``; return a sentence on it.

    Raise ArtifactError if they differ. Pillow 13 resizes tall images height first, which the caller's transform then
    does too, so only images that are at least as wide as high are compared.
    """
    from PIL import Image

    compared, largest = 0, 0.0
    for pixels in images.read(range(min(_TRANSFORMED, len(images)))):
        if pixels.shape[1] < pixels.shape[0]:
            continue
        try:
            theirs = np.asarray(transform(Image.fromarray(pixels)), np.float32)
        except Exception as error:  # it is the caller's
            raise ArtifactError(f"your transform fails on an image {pixels.shape}: {error!r:.300}") from error
        ours = preprocessing(pixels[None])[0]
        if theirs.shape != ours.shape:
            raise ArtifactError(f"your transform returns {theirs.shape}, and the preprocessing {ours.shape}")
        largest = max(largest, float(np.abs(theirs - ours).max()))
        compared += 1
    if not compared:
        return "your transform was not compared with the preprocessing: no image is at least as wide as high"
    if largest > 0:
        raise ArtifactError(
            f"your transform and the preprocessing differ by up to {largest:.3g} on {compared} images, so the "
            "network would not get what it was trained on"
        )
    return f"your transform and the preprocessing agree bit for bit on {compared} images"
