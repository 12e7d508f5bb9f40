"""Preprocessing: from raw images to what a network takes, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import ArtifactError

RAW_SIDE = 28  # of the images in Fashion-MNIST
MAX_SIDE = 8192  # of images, and of what they are resized to


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From raw uint8 images to the model's input, in one definition for training and deployment.

    uint8 -> float32 times ``scale`` -> bilinear resize to ``size`` (half-pixel centres, no antialiasing)
    -> minus ``mean``, divided by ``std``.

    >>> prepared = cnndeploy.Preprocessing(size=(28, 28))(np.full((2, 64, 48), 255, np.uint8))
    >>> prepared.shape, prepared.dtype, float(prepared.max())
    ((2, 1, 28, 28), dtype('float32'), 1.0)
    """

    size: tuple[int, int]
    scale: float = 1 / 255
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Raise ArtifactError if a value is unusable."""
        try:
            height, width = self.size
            numbers = {"scale": float(self.scale), "mean": float(self.mean), "std": float(self.std)}
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"not a preprocessing: {self}") from error
        if not all(map(math.isfinite, numbers.values())) or numbers["std"] <= 0:
            raise ArtifactError(f"not a preprocessing: {self}")
        if not all(type(side) is int and 0 < side <= MAX_SIDE for side in (height, width)):
            raise ArtifactError(f"not a size in pixels, height and width: {self.size}")
        # plain floats: numpy scalars would promote the result to float64
        for name, value in {"size": (height, width), **numbers}.items():
            object.__setattr__(self, name, value)

    def __call__(self, images: NDArray[np.uint8], dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
        """Return a prepared batch, ``dtype`` (batch, 1, *size), C-contiguous.

        Args:
            images: uint8 (batch, height, width), 0 is black.
            dtype: What is computed in; float32 rounds where torch does in training, float64 is as good as exact.
        """
        if images.shape[1:] == self.size:
            prepared: NDArray[Any] = images.astype(dtype) * self.scale  # (batch, *size)
        else:
            rows, row_weights = _interpolation(images.shape[1], self.size[0], dtype.__name__)
            columns, column_weights = _interpolation(images.shape[2], self.size[1], dtype.__name__)
            needed = images[:, rows[:, None], columns].astype(dtype)  # (batch, rows, columns)
            prepared = row_weights @ (needed * self.scale) @ column_weights.T  # (batch, *size)
        if self.mean != 0.0 or self.std != 1.0:
            prepared = (prepared - self.mean) / self.std
        return prepared[:, None]


@lru_cache(maxsize=16)
def _interpolation(source: int, target: int, dtype: str) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Linear interpolation with half-pixel centres, clamped at the edges: the pixels needed, and their weights,
    (target, pixels needed).

    In float32 positions are rounded where torch rounds them in training: of a photo of some thousand pixels a side the
    difference is a tenth of a grey level.

    Source: ONNX operator Resize, mode linear, coordinate_transformation_mode half_pixel.
    """
    step = float(np.dtype(dtype).type(source / target))
    centres = (step * (np.arange(target) + 0.5) - 0.5).astype(dtype)
    position = np.clip(centres, 0, source - 1)
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, source - 1)
    needed = np.union1d(low, high)
    weights = np.zeros((target, len(needed)), dtype)
    row = np.arange(target)
    weights[row, np.searchsorted(needed, low)] += 1 - (position - low)
    weights[row, np.searchsorted(needed, high)] += position - low
    return needed, weights


def border_contrast(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return by how many grey levels the border of each image (n, height, width) is brighter than its middle.

    The border is the outermost pixels, by their median, for objects may reach beyond it. Large images are thinned
    out first, for photos have millions of pixels.
    """
    height, width = images.shape[1:]
    thinned = images[:, :: max(1, height // RAW_SIDE), :: max(1, width // RAW_SIDE)]
    edges = (thinned[:, 0], thinned[:, -1], thinned[:, 1:-1, 0], thinned[:, 1:-1, -1])
    height, width = thinned.shape[1:]
    middle = thinned[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    contrast: NDArray[np.float64] = np.median(np.concatenate(edges, axis=1), axis=1) - middle.mean(
        axis=(1, 2)
    )
    return contrast
