"""What a model takes, what it gives, and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import ArtifactError

Axis = int | str
RAW_SIDE = 28  # of the images in Fashion-MNIST
MAX_SIDE = 8192  # of images, and of what they are resized to


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one input or output.

    An axis is an int where its length is fixed and a name, such as ``"batch"``, where it is not.
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"

    def accepts(self, array: NDArray[Any]) -> bool:
        """Whether dtype, rank and every fixed axis agree."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(
                isinstance(axis, str) or axis == length
                for axis, length in zip(self.shape, array.shape, strict=True)
            )
        )

    def with_batch(self, batch_size: int, side: int | None = None) -> tuple[int, ...]:
        """The shape with its first axis, if it is symbolic, set to ``batch_size``, and the others to ``side``.

        Raises:
            ValueError: An axis is symbolic and no ``side`` is given, or the first is fixed to another length.
        """
        if not self.shape:
            raise ValueError(f"{self.name} {self}: it has no batch axis")
        first, rest = self.shape[0], self.shape[1:]
        lengths = (side if isinstance(axis, str) else axis for axis in rest)
        fixed = tuple(length for length in lengths if length is not None)
        if len(fixed) != len(rest):
            raise ValueError(f"{self.name} {self}: an axis other than the first is not fixed")
        if isinstance(first, int) and first != batch_size:
            raise ValueError(f"{self.name} {self}: the batch axis is fixed to {first}, not {batch_size}")
        return (batch_size, *fixed)


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
        """Raise ArtifactError where a value is none that images can be prepared by."""
        try:
            height, width = self.size
            numbers = {name: float(getattr(self, name)) for name in ("scale", "mean", "std")}
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"not a preprocessing: {self}") from error
        if not all(map(math.isfinite, numbers.values())) or numbers["std"] <= 0:
            raise ArtifactError(f"not a preprocessing: {self}")
        if not all(type(side) is int and 0 < side <= MAX_SIDE for side in (height, width)):
            raise ArtifactError(f"not a size in pixels, height and width: {self.size}")
        for name, value in {
            "size": (height, width),
            **numbers,
        }.items():  # such as they came, numpy's would compute in float64
            object.__setattr__(self, name, value)

    def __call__(self, images: NDArray[np.uint8], dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
        """Prepare a batch.

        Args:
            images: uint8 (batch, height, width), 0 is black.
            dtype: What is computed in; float32 rounds where torch does in training, float64 is as good as exact.

        Returns:
            ``dtype`` (batch, 1, *size), C-contiguous.
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """What travels inside every file: what the model takes and gives, and where it came from.

    ``input`` is what ``preprocessing`` gives, float32 (batch, 1, height, width), or for a file that does that itself
    raw images, uint8 (batch, height, width) of any size; such a file gives ``probabilities`` too, the softmax of
    ``output``, the logits. ``training`` holds recipe, accuracy and data set checksums, empty for untrained weights.
    ``checkpoint_sha256`` names the checkpoint file an artifact was exported from; a checkpoint itself, which cannot
    hold its own hash, has None. ``rewrites`` are the exact simplifications that the exported network went through, as
    ``"merge_linear(classifier.1, classifier.3)"``. ``quantization`` says how a file was made that computes in less than
    float32, and so is ``lossy``.

    >>> manifest = cnndeploy.Artifact.open("lenet.onnx").require_manifest()
    >>> print(manifest.input, "->", manifest.output)
    float32 (batch, 1, 28, 28) -> float32 (batch, 10)
    """

    architecture: str
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    checkpoint_sha256: str | None = None
    probabilities: TensorSpec | None = None
    rewrites: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None

    @property
    def lossy(self) -> bool:
        """Whether the file gives up accuracy on purpose, so that it has a budget to keep and is never equivalent."""
        return self.quantization is not None

    @property
    def takes_images(self) -> bool:
        """Whether the file does the preprocessing itself."""
        return self.input.dtype == "uint8"

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """All outputs, in order."""
        return (self.output, *(() if self.probabilities is None else (self.probabilities,)))

    def taking_images(self) -> Manifest:
        """The manifest of the same network in a file that does the preprocessing itself."""
        return replace(
            self,
            input=TensorSpec(self.input.name, "uint8", (self.input.shape[0], "height", "width")),
            probabilities=replace(self.output, name="probabilities"),
        )

    def prepared(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """What the file takes for raw images, uint8 (batch, height, width)."""
        return images if self.takes_images else self.preprocessing(images)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return asdict(self)

    def to_json(self) -> str:
        """The same manifest always gives the same text, so that exports are reproducible byte by byte."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: The text is no manifest.
        """
        try:
            values = json.loads(text)
            manifest = cls(
                architecture=values["architecture"],
                input=_tensor_spec(values["input"]),
                output=_tensor_spec(values["output"]),
                preprocessing=_preprocessing(values["preprocessing"]),
                labels=tuple(values["labels"]),
                training=values["training"],
                versions=values["versions"],
                checkpoint_sha256=values["checkpoint_sha256"],
                probabilities=_tensor_spec(given) if (given := values.get("probabilities")) else None,
                rewrites=tuple(values.get("rewrites", ())),
                quantization=values.get("quantization"),
            )
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a cnndeploy manifest: {error!r}") from error
        manifest._validate()
        return manifest

    def _validate(self) -> None:
        """Raise ValueError where a value is not what the rest of cnndeploy relies on."""
        texts = (self.architecture, *self.labels, *self.rewrites, *self.versions, *self.versions.values())
        classes = self.output.shape[-1]
        side = ("height", "width") if self.takes_images else (1, *self.preprocessing.size)
        requirements = {
            "texts": all(isinstance(text, str) for text in texts),
            "labels": len(self.labels) == classes,
            "input": self.input.shape[1:] == side,
            "output": len(self.output.shape) == 2,
            "probabilities": self.probabilities in (None, replace(self.output, name="probabilities")),
            "training": isinstance(self.training, dict),
            "versions": isinstance(self.versions, dict),
            "quantization": isinstance(self.quantization, dict | None),
            "checkpoint_sha256": isinstance(self.checkpoint_sha256, str | None),
        }
        wrong = [name for name, met in requirements.items() if not met]
        if wrong:
            raise ValueError(f"not a cnndeploy manifest: {', '.join(wrong)}")


def _tensor_spec(values: Mapping[str, Any]) -> TensorSpec:
    name, dtype, shape = values["name"], values["dtype"], tuple(values["shape"])
    if not (isinstance(name, str) and isinstance(dtype, str) and shape):
        raise ValueError(f"not a tensor's name, dtype and shape: {values}")
    if not all(isinstance(axis, str) or (type(axis) is int and axis > 0) for axis in shape):
        raise ValueError(f"not a shape: {shape}")
    return TensorSpec(name, dtype, shape)


def _preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    try:
        return Preprocessing(
            tuple(values["size"]), *(float(values[name]) for name in ("scale", "mean", "std"))
        )
    except ArtifactError as error:
        raise ValueError(str(error)) from error
