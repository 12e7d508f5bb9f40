"""Classifier: raw images in, labels and probabilities out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, DataError, InputMismatchError
from cnndeploy.runtimes import Session, open_session
from cnndeploy.specs import Manifest

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 256
_MAX_SIDE = 8192


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class and its probability, 0 to 1."""

    label: str
    probability: float


class Classifier:
    """An opened model that takes raw images; a context manager.

    Images are uint8, one channel, light on dark as in Fashion-MNIST, of any size; they are prepared as the
    model's manifest says.
    """

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session = session
        self.manifest = manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.manifest.labels

    def logits(self, images: NDArray[np.uint8] | Sequence[Image] | Image) -> NDArray[np.float32]:
        """Unnormalised class scores.

        Args:
            images: uint8 (n, height, width), one image (height, width), or PIL images.

        Returns:
            float32 (n, classes).

        Raises:
            InputMismatchError: No images, or another dtype or shape.
            ArtifactError: The model gives NaN or infinity.
        """
        name, output = self.manifest.input.name, self.manifest.output.name
        prepared = [self.manifest.preprocessing(batch) for batch in _batches(images)]
        if not prepared:
            raise InputMismatchError("no images were given")
        logits = np.concatenate([self._session.run({name: image})[output] for image in prepared])
        if not np.isfinite(logits).all():
            raise ArtifactError(f"{self._session.artifact.path} gives NaN or infinite logits; do not use it")
        return logits

    def probabilities(self, images: NDArray[np.uint8] | Sequence[Image] | Image) -> NDArray[np.float32]:
        """Softmax of :meth:`logits`; takes and raises the same, gives float32 (n, classes) that sum to 1."""
        logits = self.logits(images)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities

    def classify(self, images: NDArray[np.uint8] | Sequence[Image] | Image) -> list[Prediction]:
        """The most probable class of each image; takes and raises what :meth:`logits` does."""
        probabilities = self.probabilities(images)
        return [Prediction(self.labels[row.argmax()], float(row.max())) for row in probabilities]

    def close(self) -> None:
        """Release the model; closing twice is harmless."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Classifier:
    """Open an exported file, or a checkpoint, to classify images.

    Args:
        path: What ``cnndeploy export`` or ``cnndeploy train`` wrote; ONNX needs no torch.
        runtime: What runs it; its format's own by default.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads, all that the process may use by default.

    Raises:
        ArtifactError: The file cannot be opened, or has no manifest.
        DeviceUnavailableError: ``device`` does not work here.
        MissingDependencyError: The runtime is not installed.
    """
    artifact = Artifact.open(path)
    manifest = artifact.require_manifest()
    return Classifier(open_session(artifact, runtime=runtime, device=device, threads=threads), manifest)


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an image file as grey levels.

    Returns:
        uint8 (height, width).

    Raises:
        DataError: No image, damaged, or too large to be meant.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if max(image.size) > _MAX_SIDE:
                raise DataError(
                    f"{path} is {image.size[0]} x {image.size[1]}; at most {_MAX_SIDE} a side are taken"
                )
            return _grey(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; give the paths of image files") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _grey(image: Image) -> NDArray[np.uint8]:
    """A PIL image as uint8 (height, width); what is transparent is background, which is black here."""
    from PIL import Image as Pillow

    if image.mode.startswith(("I", "F")):
        raise DataError("the image has more than 8 bits a channel; convert it to 8 bits first")
    if image.has_transparency_data:
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.asarray(image.convert("L"))


def _batches(images: Any) -> list[NDArray[np.uint8]]:
    """Raw images as uint8 (batch, height, width) arrays of one size each, at most _BATCH long."""
    if hasattr(images, "convert"):
        images = [images]
    if not isinstance(images, np.ndarray):
        arrays = [_grey(image) if hasattr(image, "convert") else np.asarray(image) for image in images]
        return [batch for array in arrays for batch in _batches(array)]
    if images.ndim == 2:
        images = images[None]
    if images.dtype != np.uint8 or images.ndim != 3 or 0 in images.shape:
        raise InputMismatchError(
            f"expected uint8 images (n, height, width) with 0 to 255, got {images.dtype} {images.shape}"
        )
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
