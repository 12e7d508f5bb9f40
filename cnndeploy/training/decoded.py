"""Images of a data set, decoded once into a temporary file that is mapped into memory."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.architectures._recipe import Recipe
from cnndeploy.datasets import Images, fashion_mnist, warn_of
from cnndeploy.datasets._dataset import Prepare
from cnndeploy.datasets._threads import in_threads
from cnndeploy.errors import DataError, InputMismatchError, Stopped, TrainingError
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.progress import Progress

_MARGIN = 8 / 7  # the usual 256 pixels for 224


@dataclass(frozen=True, slots=True)
class Decoded:
    """Images of one size, uint8 (n, h, w) or (n, h, w, 3), or prepared float32 (n, channels, h, w); and their labels.

    ``images`` are in a temporary file without a name, which is gone when they are, whatever happens to the process;
    ``sha256`` is of their bytes.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return len(self.images)


Held = fashion_mnist.Images | Decoded
"""Images as the loop takes them."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The way from the images of a data set to arrays; for the callbacks see :func:`cnndeploy.train`."""

    preprocessing: Preprocessing
    recipe: Recipe
    progress: Progress
    should_stop: Callable[[], bool]

    def to_train(self, images: Images) -> Decoded:
        """Decode images to train on, as bytes; with a margin if they are cut at random."""
        geometry = _geometry(self.preprocessing)
        if self.recipe.crop:
            geometry = with_margin(geometry)
        return self._decoded(images, lambda raw: _bytes(geometry(raw)), "Decoding images to train on")

    def to_test(self, images: Images) -> Decoded:
        """Decode images to test on, as bytes if nothing is lost by that, and else as the network takes them.

        Pillow resizes to bytes, so what it has resized is only scaled later, by what :func:`finishing` returns.
        """
        geometry, prepare = _geometry(self.preprocessing), self.preprocessing
        by_pillow = self.preprocessing.antialias
        return self._decoded(
            images,
            (lambda raw: _bytes(geometry(raw))) if by_pillow else prepare,
            "Decoding images to test on",
        )

    def _decoded(self, images: Images, prepare: Prepare, text: str) -> Decoded:
        """Write what ``prepare`` makes of each image one after the other, without those that cannot be read."""

        def one(place: int) -> NDArray[Any] | None:
            try:
                return images.prepared([place], prepare)
            except (DataError, InputMismatchError):
                return None

        kept, left_out, sha256 = list[int](), list[int](), hashlib.sha256()
        with tempfile.TemporaryFile() as file:
            for place, image in enumerate(in_threads(one, range(len(images)))):
                if self.should_stop():
                    raise Stopped("Training stopped before its first step, while images were decoded.")
                if image is None:
                    left_out.append(place)
                else:
                    if not kept:
                        shape, dtype = image.shape[1:], image.dtype
                        _check_space(image.nbytes * len(images))
                    _append(file, image)
                    sha256.update(np.ascontiguousarray(image).data)
                    kept.append(place)
                self.progress(place + 1, len(images), text)
            damaged = images.take(left_out).sound(self.preprocessing.resized_size).damaged if left_out else ()
            if not kept:
                raise DataError(f"no image can be read: {damaged[0].reason}")
            # torch wants arrays that may be written to; a private map never changes the file
            pixels: NDArray[Any] = np.memmap(file, dtype, "c", shape=(len(kept), *shape))
        warn_of(damaged)
        labels = np.asarray(images.take(kept).labels, np.int64)
        return Decoded(pixels, labels, sha256.hexdigest())


def _append(file: Any, image: NDArray[Any]) -> None:
    try:
        file.write(image.tobytes())
        file.flush()  # what is left in a buffer may find the disk full too
    except OSError as error:
        raise TrainingError(_no_space(error.strerror or str(error))) from error


def finishing(preprocessing: Preprocessing, images: Decoded) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns images that were decoded to test on into what the network takes, bit for bit as deployed."""
    if images.images.dtype != np.uint8:
        return np.array
    return replace(preprocessing, resize=None)  # they have their size


def with_margin(geometry: Preprocessing) -> Preprocessing:
    """Return how images are resized of which a part as large as the network takes is cut at random."""
    height, width = (math.ceil(side * _MARGIN) for side in geometry.size)
    resize = geometry.resize
    if isinstance(resize, int):
        resize = max(resize, height, width)
    elif resize is not None:
        resize = (max(resize[0], height), max(resize[1], width))
    return replace(geometry, size=(height, width), resize=resize)


def _geometry(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing without what changes values."""
    return replace(preprocessing, scale=1.0, mean=0.0, std=1.0)


def _bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn images, float32 (n, channels, h, w), into uint8 (n, h, w) or (n, h, w, 3)."""
    rounded = np.rint(images).astype(np.uint8).transpose(0, 2, 3, 1)
    return rounded[..., 0] if rounded.shape[-1] == 1 else rounded


def _check_space(needed: int) -> None:
    if (free := shutil.disk_usage(tempfile.gettempdir()).free) < needed:
        raise TrainingError(_no_space(f"{free / 1e9:.1f} GB are free and {needed / 1e9:.1f} GB are needed"))


def _no_space(reason: str) -> str:
    return (
        f"The images are decoded into a temporary file in {tempfile.gettempdir()}, and it cannot hold them: {reason}. "
        "Name a folder with more space in the environment variable TMPDIR."
    )
