"""What a model takes, what it gives, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Axis = int | str


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

    def with_batch(self, batch_size: int) -> tuple[int, ...]:
        """The shape with its first axis, if it is symbolic, set to ``batch_size``.

        Raises:
            ValueError: Another axis is symbolic too, or the first is fixed to another length.
        """
        first, rest = self.shape[0], self.shape[1:]
        fixed = tuple(axis for axis in rest if isinstance(axis, int))
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
    """

    size: tuple[int, int]
    scale: float = 1 / 255
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepare a batch.

        Args:
            images: uint8 (batch, height, width), 0 is black.

        Returns:
            float32 (batch, 1, *size), C-contiguous.
        """
        import numpy as np

        prepared = images.astype(np.float32) * np.float32(self.scale)  # (batch, height, width)
        if images.shape[1:] != self.size:
            rows = _interpolation(images.shape[1], self.size[0])
            columns = _interpolation(images.shape[2], self.size[1])
            prepared = rows @ prepared @ columns.T  # (batch, *size)
        if self.mean != 0.0 or self.std != 1.0:
            prepared = (prepared - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(prepared[:, None], dtype=np.float32)


def _interpolation(source: int, target: int) -> NDArray[np.float32]:
    """The (target, source) matrix of linear interpolation with half-pixel centres, clamped at the edges.

    Source: ONNX operator Resize, mode linear, coordinate_transformation_mode half_pixel.
    """
    import numpy as np

    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(position).astype(int)
    weight = position - low
    matrix = np.zeros((target, source))
    row = np.arange(target)
    matrix[row, low] += 1 - weight
    matrix[row, np.minimum(low + 1, source - 1)] += weight
    return matrix.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What travels inside every file: what the model takes and gives, and where it came from.

    ``training`` holds recipe, accuracy and data set checksums, empty for untrained weights.
    ``checkpoint_sha256`` names the checkpoint file an artifact was exported from; a checkpoint itself,
    which cannot hold its own hash, has None.
    """

    architecture: str
    input: TensorSpec
    output: TensorSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    checkpoint_sha256: str | None = None

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
            values["input"] = _tensor_spec(values["input"])
            values["output"] = _tensor_spec(values["output"])
            preprocessing = values["preprocessing"]
            height, width = preprocessing["size"]
            values["preprocessing"] = Preprocessing(**{**preprocessing, "size": (int(height), int(width))})
            values["labels"] = tuple(map(str, values["labels"]))
            return cls(**values)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a cnndeploy manifest: {error!r}") from error


def _tensor_spec(values: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=values["name"], dtype=values["dtype"], shape=tuple(values["shape"]))
