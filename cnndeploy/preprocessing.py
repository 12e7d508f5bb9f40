"""Preprocessing: from raw images to a network's input, in numpy and Pillow."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import ArtifactError, InputMismatchError

RAW_SIDE = 28  # of the images in Fashion-MNIST
MAX_SIDE = 8192  # of images, and of what they are resized to
_BYTE = 1 / 255

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The way from raw uint8 images to the model's input; one definition for training and deployment.

    An image is resized, cropped to ``size`` around its centre, scaled, and normalised: minus ``mean``, divided by
    ``std``. ``resize`` is the length of the shorter side, or height and width; by default the image is resized to
    ``size`` itself, and nothing is cropped. What a crop needs beyond an image's edge is black.

    With ``antialias`` images are resized as Pillow resizes them: width first, then height, each rounded to 8 bits.
    That is what torchvision and timm do with a PIL image. Pillow 13 resizes some tall images height first, so here
    each side is resized by itself. Without ``antialias`` images are scaled to float32 and resized bilinearly with
    half-pixel centres, as torch's ``interpolate`` does.

    ``channels`` is 1 for grey levels or 3 for RGB; ``mean`` and ``std`` are one number for all channels or one for
    each.

    Source: torchvision's ``transforms.functional``, resize and center_crop.

    >>> prepared = cnndeploy.Preprocessing(size=(28, 28))(np.full((2, 64, 48), 255, np.uint8))
    >>> prepared.shape, prepared.dtype, float(prepared.max())
    ((2, 1, 28, 28), dtype('float32'), 1.0)
    """

    size: tuple[int, int]
    scale: float = _BYTE
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    channels: Literal[1, 3] = 1
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = False

    def __post_init__(self) -> None:
        """Raise ArtifactError if a value is unusable."""
        try:
            known = (type(self.channels), type(self.interpolation), type(self.antialias)) == (int, str, bool)
            if not known or self.channels not in (1, 3) or self.interpolation not in ("bilinear", "bicubic"):
                raise ValueError("an unknown value")
            # plain floats: numpy scalars would promote the result to float64
            values: dict[str, Any] = {"size": _sides(self.size), "scale": float(self.scale)}
            values |= {"mean": _floats(self.mean), "std": _floats(self.std)}
            if self.resize is not None:
                values["resize"] = (_sides if np.ndim(self.resize) else _whole)(self.resize)
            means, stds = (_per_channel(values[name], self.channels) for name in ("mean", "std"))
        except (TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"not a preprocessing: {self!r:.300}") from error
        numbers = np.array([values["scale"], *means, *stds], np.float64)
        with np.errstate(all="ignore"):  # what float32 cannot hold, no network gets
            usable = (
                np.isfinite(numbers.astype(np.float32)).all()
                and np.float32(1) / np.float32(min(stds)) < np.inf
            )
        if not usable or min(stds) <= 0 or values["scale"] == 0:
            raise ArtifactError(f"not a preprocessing: {self!r:.300}")
        resize = values.get("resize", 1)
        for sides in (values["size"], resize if isinstance(resize, tuple) else (resize, resize)):
            if not all(0 < side <= MAX_SIDE for side in sides):
                raise ArtifactError(f"not a size in pixels, height and width: {sides}")
        if self.interpolation == "bicubic" and not self.antialias:
            raise ArtifactError("bicubic resizing is done with antialias only, as Pillow does it")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return _per_channel(self.mean, self.channels)

    @property
    def stds(self) -> tuple[float, ...]:
        """The standard deviation of each channel."""
        return _per_channel(self.std, self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a prepared image."""
        return (self.channels, *self.size)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is resized to, before it is cropped."""
        if self.resize is None:
            return self.size
        if not isinstance(self.resize, int):
            return self.resize
        short, long = sorted((height, width))
        other = int(self.resize * long / short)
        if other > MAX_SIDE:
            raise InputMismatchError(
                f"an image of {width} x {height} pixels would be resized to {other} on its longer side; the limit is "
                f"{MAX_SIDE}"
            )
        return (other, self.resize) if width <= height else (self.resize, other)

    def __call__(
        self,
        images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        dtype: type[np.floating[Any]] = np.float32,
    ) -> NDArray[Any]:
        """Return a prepared batch, ``dtype`` (batch, channels, *size), C-contiguous.

        Args:
            images: uint8 (batch, height, width) for one channel or (batch, height, width, 3) for RGB, 0 is black; or a
                list of images, whose sizes may differ.
            dtype: The dtype to compute in; float32 rounds as torch does in training, float64 is as good as exact.

        Raises:
            InputMismatchError: Another dtype or shape, or an image so thin that it would be resized beyond all bounds.
        """
        if not isinstance(images, np.ndarray):
            return np.concatenate([self(image[None], dtype) for image in images])
        if images.dtype != np.uint8 or images.ndim != (3 if self.channels == 1 else 4):
            expected = f"uint8 (batch, height, width{', 3' if self.channels == 3 else ''})"
            raise InputMismatchError(f"expected {expected}, got {images.dtype} {images.shape}")
        if self.antialias:
            resized = self._resized_by_pillow(self._with_channels(images)).transpose(0, 3, 1, 2)
            # as torchvision does; a product with 1/255 may differ in the last bit
            prepared = (
                np.divide(resized, 255, dtype=dtype) if self.scale == _BYTE else resized * dtype(self.scale)
            )
        elif self.resize is None and images.shape[1:] == self.size:  # the quick way of a small network
            prepared = (images.astype(dtype) * self.scale)[:, None]
        else:
            prepared = self._resized_in_float(self._with_channels(images).transpose(0, 3, 1, 2), dtype)
        if self.mean != 0.0 or self.std != 1.0:
            mean, std = (np.array(values, dtype)[:, None, None] for values in (self.means, self.stds))
            prepared = (prepared - mean) / std
        return np.ascontiguousarray(prepared)

    def _with_channels(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images[..., None] if self.channels == 1 else images  # (batch, height, width, channels)

    def _resized_by_pillow(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop images (batch, height, width, channels)."""
        height, width = images.shape[1:3]
        target = self.resized_size(height, width)
        if target == (height, width):
            return _cropped(images, self.size)
        from PIL import Image

        kernel = Image.Resampling.BICUBIC if self.interpolation == "bicubic" else Image.Resampling.BILINEAR
        resized = []
        for pixels in images:
            image = Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
            image = image.resize((target[1], height), kernel).resize(target[::-1], kernel)
            resized.append(np.asarray(image).reshape(*target, self.channels))
        return _cropped(np.stack(resized), self.size)

    def _resized_in_float(self, images: NDArray[np.uint8], dtype: type[np.floating[Any]]) -> NDArray[Any]:
        """Scale, resize and crop images (batch, channels, height, width)."""
        height, width = images.shape[2:]
        target = self.resized_size(height, width)
        if target == (height, width):
            scaled: NDArray[Any] = images.astype(dtype) * self.scale
        else:
            rows, row_weights = _interpolation(height, target[0], dtype.__name__)
            columns, column_weights = _interpolation(width, target[1], dtype.__name__)
            needed = images[..., rows[:, None], columns].astype(dtype)  # (batch, channels, rows, columns)
            scaled = row_weights @ (needed * self.scale) @ column_weights.T  # (batch, channels, *target)
        if target == self.size:
            return scaled
        return _cropped(scaled.transpose(0, 2, 3, 1), self.size).transpose(0, 3, 1, 2)


def _sides(value: Any) -> tuple[int, int]:
    height, width = map(_whole, value)
    return height, width


def _whole(value: Any) -> int:
    """Return a whole number as an int, of numpy too; raise TypeError for something else, True among it."""
    if isinstance(value, bool):
        raise TypeError("True and False are no sizes")
    return operator.index(value)


def _floats(value: Any) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)


def _per_channel(value: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    if not isinstance(value, tuple):
        return (value,) * channels
    if len(value) != channels:
        raise ValueError(f"{len(value)} values for {channels} channels")
    return value


def _cropped(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Cut images (batch, height, width, channels) to a size around the centre; black goes where they are too small."""
    lacking = [max(0, wanted - length) for wanted, length in zip(size, images.shape[1:3], strict=True)]
    if any(lacking):
        edges = [(missing // 2, missing - missing // 2) for missing in lacking]
        images = np.pad(images, [(0, 0), *edges, (0, 0)])
    # round() goes to the even number, as torchvision's does
    top, left = (round((length - wanted) / 2) for wanted, length in zip(size, images.shape[1:3], strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


@lru_cache(maxsize=16)
def _interpolation(source: int, target: int, dtype: str) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the pixels that linear interpolation needs, and their weights, (target, pixels needed).

    Pixels have half-pixel centres, and positions are clamped at the edges. In float32, positions are rounded as torch
    rounds them in training: for a photo with some thousand pixels a side the difference is a tenth of a grey level.

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
