"""Images as apps hand them over, arrays, PIL images and files, to raw pixels."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import DataError, InputMismatchError
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.preprocessing import MAX_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = NDArray[np.uint8] | Image | Iterable[NDArray[np.uint8] | Image]

# The limits of one run: images, and pixels, raw or prepared, unless it is a single image.
MOST_IMAGES, _MOST_PIXELS = 256, 2**20
# What apps usually get. Pillow knows more, some of them programs that it has others run, such as PostScript.
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
# The names of such files, in lower case.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# The last axis of (height, width, channels), as other libraries read files; no real image is so narrow.
_CHANNELS = (1, 3, 4)
_SHAPES = {1: "(n, height, width)", 3: "(n, height, width, 3)"}
_OF_THE_CALLER = 5  # frames from a warning to the code that called a Classifier, where it is an array
# Weights of red, green and blue in a grey level, and what rounds; as PIL's convert("L") computes, after ITU-R BT.601.
_LUMA, _HALF, _SHIFT = np.array((19595, 38470, 7471), np.uint32), np.uint32(0x8000), np.uint32(16)


def most_images(height: int, width: int) -> int:
    """Return how many images of this size one run takes."""
    return min(MOST_IMAGES, max(1, _MOST_PIXELS // (height * width)))


def stack_of(images: NDArray[Any], channels: int = 1) -> NDArray[np.uint8]:
    """Return an array as raw images, (n, height, width) or with 3 ``channels`` (n, height, width, 3).

    Colours become grey levels as PIL's ``convert("L")`` computes them, and a grey level is taken for red, green and
    blue alike; raise InputMismatchError if the array is something else.
    """
    if type(images) is not np.ndarray:
        if hasattr(images, "mask"):
            raise InputMismatchError(
                "expected images, got a masked array; fill its masked pixels with 0 first"
            )
        images = np.asarray(images)
    coloured = images.ndim in (3, 4) and images.shape[-1] == 3
    one = images.ndim == (3 if coloured else 2)
    stack = images[None] if one else images
    if stack.dtype != np.uint8 or stack.ndim != (4 if coloured else 3):
        got = f"{images.dtype} {images.shape}{_advice(stack)}"
        raise InputMismatchError(f"expected uint8 images {_SHAPES[channels]} with 0 to 255, got {got}")
    if not coloured and images.ndim == 3 and images.shape[2] in _CHANNELS:
        unlike = "; of one channel use image[..., 0], of red, green, blue and alpha image[..., :3]"
        raise InputMismatchError(
            f"an array {images.shape} looks like one image in {images.shape[2]} channels{unlike}"
        )
    if channels == 3 and not coloured and images.ndim == 3 and len(images) == 3:
        raise InputMismatchError(
            f"an array {images.shape} looks like one image with its channels first; use image.transpose(1, 2, 0)"
        )
    if channels == 3 and not coloured:
        warnings.warn(
            "the network was trained on colours and gets grey levels, for red, green and blue alike. "
            f"{_reader(channels)} reads colours",
            CnndeployWarning,
            stacklevel=_OF_THE_CALLER,
        )
    if not stack.size:
        raise InputMismatchError(f"no images were given, or images of 0 pixels: uint8 {images.shape}")
    _check_size(*stack.shape[1:3])
    if coloured and channels == 1:
        return (((stack @ _LUMA) + _HALF) >> _SHIFT).astype(np.uint8)
    return np.repeat(stack[..., None], 3, axis=-1) if channels == 3 and not coloured else stack


def stacks_of(images: Images, limit: int = MOST_IMAGES, channels: int = 1) -> Iterator[NDArray[np.uint8]]:
    """Yield raw images as arrays of one size as :func:`stack_of` returns, no more than one run takes and ``limit``.

    :class:`~cnndeploy.classifier.Classifier` says what images may be; raise InputMismatchError for anything else.
    """
    for stack in (
        (stack_of(images, channels),) if isinstance(images, np.ndarray) else _grouped(images, channels)
    ):
        most = min(limit, most_images(*stack.shape[1:3]))
        for start in range(0, len(stack), most):
            yield stack[start : start + most]


def _grouped(images: Image | Iterable[Any], channels: int) -> Iterator[NDArray[np.uint8]]:
    """Yield images of one size that follow each other as one array."""
    if isinstance(images, str | os.PathLike):
        raise InputMismatchError(
            f"expected images, got the path {images!r}; read it with {_reader(channels)}"
        )
    kind = type(images).__name__
    if isinstance(images, bytes | bytearray | memoryview | type):
        raise InputMismatchError(f"expected images, got {kind}; cnndeploy.read_image reads bytes")
    if hasattr(images, "convert"):
        images = [images]
    if not isinstance(images, Iterable):
        raise InputMismatchError(f"expected images, got {kind}")
    ones = (_one(image, channels) for image in images)
    for (height, width, *_), same_size in itertools.groupby(ones, key=np.shape):
        while group := list(itertools.islice(same_size, most_images(height, width))):
            yield np.stack(group)


def _one(image: Any, channels: int) -> NDArray[np.uint8]:
    """Return an element of a list as (height, width), or with 3 ``channels`` (height, width, 3)."""
    if hasattr(image, "convert") and not isinstance(image, type):
        image = _pixels(image, channels)
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        kind = f"an array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        fit = "a list of images, each uint8 (height, width) or (height, width, 3), or a PIL image"
        raise InputMismatchError(f"expected {fit}, got {kind} in it")
    one: NDArray[np.uint8] = stack_of(image, channels)[0]
    return one


def _reader(channels: int) -> str:
    return f"cnndeploy.read_image(path{', channels=3' if channels == 3 else ''})"


def _advice(images: NDArray[Any]) -> str:
    """Say how an array may become a stack of raw images; empty if it is not clear."""
    if images.dtype.kind == "f":
        return "; if its values are 0 to 1, use (images * 255).round().astype(np.uint8)"
    if images.dtype.kind == "b":
        return "; if it is a mask, use images * np.uint8(255)"
    if images.dtype.kind in "iu" and images.dtype != np.uint8:
        return "; if its values are 0 to 255, use images.astype(np.uint8)"
    if images.ndim == 4:
        first = "; if axis 1 is the only channel, use images[:, 0]"
        return first if images.shape[1] == 1 else "; channels come last, (n, height, width, 3)"
    return ""


def _check_size(height: int, width: int) -> None:
    if max(height, width) > MAX_SIDE:
        raise InputMismatchError(f"image is {width} x {height} pixels; the limit is {MAX_SIDE} a side")


def read_image(source: str | os.PathLike[str] | BinaryIO | bytes, channels: int = 1) -> NDArray[np.uint8]:
    """Read a BMP, GIF, JPEG, PNG, PGM, PPM, TIFF or WebP file as uint8 (height, width) or (height, width, 3), upright.

    Transparent pixels become black.

    Args:
        source: A path, an open binary file, as an upload is, or the content of a file.
        channels: 1 for grey levels, 3 for RGB.

    Raises:
        DataError: The file is not an image, is damaged, has more than 8 bits a channel or 8192 pixels a side.

    >>> cnndeploy.read_image("shoe.png").shape
    (28, 28)
    """
    from PIL import Image, UnidentifiedImageError

    name = f"{source}" if isinstance(source, str | os.PathLike) else "the file"
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=_KINDS) as image:
            return _pixels(image, channels)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder; give the paths of image files") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image of a kind that is read here: {', '.join(_KINDS)}") from error
    except (InputMismatchError, DataError) as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # whatever a damaged file makes Pillow do
        raise DataError(f"{name} cannot be read as an image: {error}") from error


def _pixels(image: Image, channels: int) -> NDArray[np.uint8]:
    """Return a PIL image as an array; what is transparent is background, which is black here."""
    from PIL import Image as Pillow, ImageOps

    _check_size(image.height, image.width)  # before its pixels are read
    if image.mode.startswith(("I", "F")):
        raise InputMismatchError("the image has more than 8 bits a channel; convert it to 8 bits first")
    try:
        image = ImageOps.exif_transpose(image)  # a photo taken upright may be stored lying
        if image.has_transparency_data:
            image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "black"), image.convert("RGBA"))
        return np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # as in read_image()
        raise DataError(f"the image cannot be read: {error}") from error
