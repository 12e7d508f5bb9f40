"""Images as apps hand them over, arrays, PIL images and files, to raw pixels."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import DataError, InputMismatchError
from cnndeploy.kinds import HEAD, stand_in
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.preprocessing import MAX_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = NDArray[np.uint8] | Image | Iterable[NDArray[np.uint8] | Image]

# The limits of one run: images, and pixels, raw or prepared, unless it is a single image.
MOST_IMAGES, _MOST_PIXELS = 256, 2**20
# What apps usually get. Pillow knows more, some of them programs that it has others run, such as PostScript.
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
# The names of such files, in lower case. Windows saves JPEG files of the web as .jfif.
SUFFIXES = frozenset(
    {
        *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    }
)
# Those that are read if Pillow can: it brings AVIF from 11.3 on, and a plugin of the app's may bring HEIF.
_OPTIONAL = {"AVIF": (".avif",), "HEIF": (".heic", ".heif")}
# Other pictures: who looks for images should hear that these were passed over.
_OTHERS = frozenset(
    {
        *(".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".tga", ".ico", ".svg", ".eps"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    }
)
# The last axis of (height, width, channels), as other libraries read files; no real image is so narrow.
_CHANNELS = (1, 3, 4)
_SHAPES = {1: "(n, height, width)", 3: "(n, height, width, 3)"}
_OF_THE_CALLER = 5  # frames from a warning to the code that called a Classifier, where it is an array
# Weights of red, green and blue in a grey level, and what rounds; as PIL's convert("L") computes, after ITU-R BT.601.
# EXIF's orientations 2 to 8, and what turns each upright. Source: CIPA DC-008, tag 0x0112.
_ORIENTATION = 0x0112
_UPRIGHT = (
    *(
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_270",
        "TRANSVERSE",
        "ROTATE_90",
    ),
)
# What begins one of the scans of a JPEG, in each of which all its pixels may be refined; programs write about ten.
_SCAN, _MOST_SCANS = b"\xff\xda", 100
# Grey levels: if less is left of a picture than can be seen, although its alpha channel has a shape in it.
_SHAPE, _SEEN = 128, 16
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
        raise InputMismatchError(
            f"image is {width} x {height} pixels; the limit is {MAX_SIDE} a side. Make it smaller first"
        )


def read_image(source: str | os.PathLike[str] | BinaryIO | bytes, channels: int = 1) -> NDArray[np.uint8]:
    """Read a BMP, GIF, JPEG, PNG, PGM, PPM, TIFF or WebP file as uint8 (height, width) or (height, width, 3), upright.

    Transparent pixels become black; an image of which nothing is left then is refused. AVIF is read too if Pillow can.

    Args:
        source: A path, an open binary file, as an upload is, or the content of a file.
        channels: 1 for grey levels, 3 for RGB.

    Raises:
        DataError: The file is not an image, is damaged, has more than 8 bits a channel, Lab colours, or more than 8192
            pixels a side, or is dark on a transparent ground.

    >>> cnndeploy.read_image("shoe.png").shape
    (28, 28)
    """
    from PIL import Image, UnidentifiedImageError

    name = f"{source}" if isinstance(source, str | os.PathLike) else "the file"
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=(*_KINDS, *_optional_kinds())) as image:
            return _pixels(image, channels)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder; give the paths of image files") from error
    except UnidentifiedImageError as error:
        if kind := stand_in(_head(source)):
            raise DataError(f"{name} is no image, but {kind}") from error
        raise DataError(f"{name} is not an image of a kind that is read here: {', '.join(_KINDS)}") from error
    except (InputMismatchError, DataError) as error:
        raise DataError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:  # before there is anything whose sides could be asked for
        limits = f"{Image.MAX_IMAGE_PIXELS} pixels, which is Pillow's, and {MAX_SIDE} a side, which is ours"
        raise DataError(
            f"{name} says that it is far larger than the limits: {limits}. Make it smaller first"
        ) from error
    except Exception as error:  # whatever a damaged file makes Pillow do
        raise DataError(f"{name} cannot be read as an image: {_reason(error)}") from error


def suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that :func:`read_image` reads on this machine."""
    return SUFFIXES.union(*(_OPTIONAL[kind] for kind in _optional_kinds()))


def other_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of pictures that are not read on this machine."""
    return _OTHERS - suffixes()


def _optional_kinds() -> list[str]:
    from PIL import Image

    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        if not AvifImagePlugin.SUPPORTED:
            return [kind for kind in _OPTIONAL if kind != "AVIF" and kind in Image.OPEN]
    return [kind for kind in _OPTIONAL if kind in Image.OPEN]


def _head(source: str | os.PathLike[str] | BinaryIO | bytes) -> bytes:
    """Return the first bytes of a file that was read before; none if they cannot be read again."""
    try:
        if isinstance(source, bytes):
            return source[:HEAD]
        if isinstance(source, str | os.PathLike):
            if not os.path.isfile(source):  # noqa: PTH113 - a named pipe may never end
                return b""
            with open(source, "rb") as file:  # noqa: PTH123 - half of what a Path takes
                return file.read(HEAD)
        source.seek(0)
        return source.read(HEAD)
    except OSError:
        return b""


def _reason(error: Exception) -> str:
    return "there is not enough memory" if isinstance(error, MemoryError) else str(error) or repr(error)


def _pixels(image: Image, channels: int) -> NDArray[np.uint8]:
    """Return a PIL image as an array; what is transparent is background, which is black here."""
    from PIL import Image as Pillow

    _check_size(image.height, image.width)  # before its pixels are read
    # Pillow reads colours of 16 bits by their upper halves
    if image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise InputMismatchError("the image has more than 8 bits a channel; convert it to 8 bits first")
    if image.mode == "LAB":
        raise InputMismatchError("the image has the colours of Lab; convert it to RGB first")
    try:
        _check_scans(image)
        image.load()
        image = _upright(image)
        if image.has_transparency_data:
            drawn = image.convert("RGBA")
            image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "black"), drawn)
            _check_seen(drawn, image)
        return np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except InputMismatchError:
        raise
    except Exception as error:  # as in read_image()
        raise DataError(f"the image cannot be read: {_reason(error)}") from error


def _check_scans(image: Image) -> None:
    """Raise InputMismatchError for a JPEG that goes over its pixels so often that this takes minutes."""
    file = getattr(image, "fp", None)
    if "progressive" not in image.info or file is None:
        return
    place = file.tell()
    file.seek(0)
    scans = sum(chunk.count(_SCAN) for chunk in iter(partial(file.read, 2**20), b""))
    file.seek(place)
    if scans > _MOST_SCANS:
        raise InputMismatchError(
            f"the image has {scans:,} scans, and the limit is {_MOST_SCANS}; save it again"
        )


def _upright(image: Image) -> Image:
    """Turn a photo that was taken upright and is stored lying; whatever else is wrong in its EXIF costs nothing.

    Pillow's own exif_transpose writes the EXIF again, and Pillow 11.0 fails at numbers such as 0/0.
    """
    from PIL import Image as Pillow

    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - whatever a broken tag makes Pillow do
        return image
    if type(orientation) is not int or not 2 <= orientation <= 8:
        return image
    return image.transpose(Pillow.Transpose[_UPRIGHT[orientation - 2]])


def _check_seen(drawn: Image, composed: Image) -> None:
    """Raise InputMismatchError if a picture has a shape, and on black nothing is left of it."""
    *colours, alpha = _ranges(drawn)
    *left, _ = _ranges(composed)
    lowest, highest = min(low for low, _ in left), max(high for _, high in left)
    if alpha == (0, 0) and any(low < high for low, high in colours):
        raise InputMismatchError("all of the image is transparent; save it without its alpha channel")
    if alpha[1] - alpha[0] >= _SHAPE and highest - lowest < _SEEN:
        raise InputMismatchError(
            "the image is dark on a transparent ground, which becomes black, so that nothing is left of it; put it on "
            "white first, and then invert it if the network was trained on light on dark"
        )


def _ranges(image: Image) -> list[tuple[int, int]]:
    """Return the least and the greatest value of each channel."""
    extremes: Any = image.getextrema()
    return list(extremes)
