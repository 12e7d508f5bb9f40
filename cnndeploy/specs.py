"""TensorSpec and Manifest: a model's inputs and outputs, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import ArtifactError
from cnndeploy.limits import BeyondLimit, require_small
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.serial import jsonable, structure

Axis = int | str
IMPORTED_ONNX = "onnx:"  # begins the name of a network that was imported as an ONNX file
PREPARED = "prepared"  # the output that shows what a file's network got
Resizing = Literal["native", "portable"]
"""How a file resizes as Pillow does: by ONNX's own operator, or by matrix products that every runtime has."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, dtype and shape of one input or output.

    An axis is an int if its length is fixed, and otherwise a name, such as ``"batch"``.
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"

    def accepts(self, array: NDArray[Any]) -> bool:
        """Return whether dtype, rank and every fixed axis agree."""
        return self.fits(array.dtype, array.shape)

    def fits(self, dtype: object, shape: Sequence[int]) -> bool:
        """Return what :meth:`accepts` does, for an array that numpy cannot see."""
        if dtype != self.dtype or len(shape) != len(self.shape):
            return False
        pairs = zip(self.shape, shape, strict=True)
        return all(isinstance(axis, str) or axis == length for axis, length in pairs)

    def with_batch(self, batch_size: int, side: int | None = None) -> tuple[int, ...]:
        """Return the shape with ``batch_size`` for a symbolic first axis, and ``side`` for the other symbolic ones.

        Raise ValueError if another axis is symbolic and no ``side`` is given, or the first is fixed to another length.
        """
        if not self.shape:
            raise ValueError(f"{self.name} {self}: it has no batch axis")
        first, *rest = self.shape
        lengths = (side if isinstance(axis, str) else axis for axis in rest)
        fixed = tuple(length for length in lengths if length is not None)
        if len(fixed) != len(rest):
            raise ValueError(f"{self.name} {self}: an axis other than the first is not fixed")
        if isinstance(first, int) and first != batch_size:
            raise ValueError(f"{self.name} {self}: the batch axis is fixed to {first}, not {batch_size}")
        return (batch_size, *fixed)


@dataclass(frozen=True, slots=True)
class Source:
    """How a network is built, beside the name of its architecture.

    ``arguments`` are keyword arguments of the function that builds it. ``sha256`` is of the file that defines this
    function, or None for an architecture of cnndeploy, torchvision or timm. ``output`` names the logits of a network
    with several outputs: a key, an attribute or a number. ``ranks`` names layers by their path in what that function
    builds: in the place of each are two, with so many channels between them. ``widths`` names layers, these among them,
    that have fewer channels than that function gives them: those of their input and of their output.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    output: str | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The facts inside every file: the model's inputs and outputs, and where it came from.

    ``input`` is what ``preprocessing`` returns, float32 (batch, channels, height, width). A file that does the
    preprocessing itself takes raw images, uint8 (batch, height, width) or for RGB (batch, height, width, 3), of any
    size; it also returns ``probabilities``, the softmax of the logits, ``output``. If it resizes as Pillow does,
    ``resizing`` says in which form, and it returns ``prepared`` too, which its network got, so that it can be checked.
    ``training`` holds recipe, accuracy and data set checksums; it is empty for untrained weights. ``checkpoint_sha256``
    names the checkpoint file that an artifact was exported from, or the imported ONNX file; it is None in such a file
    itself, which cannot hold its own hash. ``rewrites`` lists the exact simplifications of the exported network, such
    as ``"merge_linear(classifier.1, classifier.3)"``. ``quantization`` says how a ``lossy`` file was made, which
    computes in less than float32. ``source`` says how the architecture is built. ``data`` is the data set to run on,
    ``fashion-mnist`` or a folder as it was named, or None if there is none. ``compression`` says from which checkpoint
    a smaller network was made, ``original_sha256``, and how; whatever is made of that network is ``lossy`` too.

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
    source: Source = field(default_factory=Source)
    data: str | None = None
    resizing: Resizing | None = None
    compression: Mapping[str, Any] | None = None

    @property
    def lossy(self) -> bool:
        """Whether the file trades accuracy for speed or size, and so must keep a budget and is never equivalent."""
        return self.quantization is not None or self.compression is not None

    @property
    def budget_points(self) -> float | None:
        """The percentage points of accuracy that a lossy file may lose, as it was made; None if nothing says so."""
        made = self.quantization or self.compression or {}
        points = made.get("budget_points")  # another program's file may say anything
        return float(points) if isinstance(points, int | float) else None

    @property
    def held_against(self) -> str | None:
        """The SHA-256 of the file that this one is compared with: the first original, if the network was compressed."""
        if self.compression is None:
            return self.checkpoint_sha256
        return str(self.compression.get("original_sha256"))

    @property
    def is_reference(self) -> bool:
        """Whether an ONNX file with it was imported, so that other files are compared with that."""
        return (
            self.architecture.startswith(IMPORTED_ONNX) and self.checkpoint_sha256 is None and not self.lossy
        )

    @property
    def takes_images(self) -> bool:
        """Whether the file does the preprocessing itself."""
        return self.input.dtype == "uint8"

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """All outputs, in order."""
        more = () if self.probabilities is None else (self.probabilities,)
        return (self.output, *more, *(() if self.resizing is None else (self.prepared_output,)))

    @property
    def prepared_output(self) -> TensorSpec:
        """The output of a file that resizes as Pillow does: what its network got."""
        return TensorSpec(PREPARED, "float32", (self.input.shape[0], *self.preprocessing.shape))

    def taking_images(self, resizing: Resizing = "native") -> Manifest:
        """Return the manifest of the same network in a file that does the preprocessing itself.

        ``resizing`` says how, if images are resized as Pillow does; without antialias runtimes resize alike.
        """
        return replace(
            self,
            input=TensorSpec(self.input.name, "uint8", (self.input.shape[0], *_raw_axes(self.preprocessing))),
            probabilities=replace(self.output, name="probabilities"),
            resizing=resizing if self.preprocessing.antialias else None,
        )

    def prepared(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn raw images, uint8 (batch, height, width) or (batch, height, width, 3), into the file's input."""
        return images if self.takes_images else self.preprocessing(images)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict of the fields, without those that are empty in every older file."""
        values = dict(jsonable(self))
        for name in ("resizing", "compression"):
            if values[name] is None:
                del values[name]
        for name in ("ranks", "widths"):
            if not values["source"][name]:
                del values["source"][name]
        return values

    def to_json(self) -> str:
        """Return the same text for the same manifest, so that exports are reproducible byte by byte."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read what :meth:`to_json` wrote; raise ValueError if the text is not a manifest."""
        try:
            require_small(len(text))
            manifest = structure(cls, json.loads(text))
        except BeyondLimit:
            raise
        except (ArtifactError, ValueError, RecursionError) as error:
            raise ValueError(f"not a cnndeploy manifest: {error}") from error
        given, logits = manifest.input, manifest.output
        own = manifest.preprocessing
        rest = _raw_axes(own) if manifest.takes_images else own.shape
        shapes = [spec.shape for spec in (given, *manifest.outputs)]
        requirements = {  # what the rest of cnndeploy relies on
            "shapes": all(shapes)
            and all(isinstance(axis, str) or axis > 0 for shape in shapes for axis in shape),
            "labels": logits.shape[-1:] == (len(manifest.labels),),
            "input": given.shape[1:] == rest,
            "output": len(logits.shape) == 2,
            "resizing": manifest.resizing is None or (manifest.takes_images and own.antialias),
            "probabilities": manifest.probabilities in (None, replace(logits, name="probabilities")),
        }
        if wrong := [name for name, met in requirements.items() if not met]:
            raise ValueError(f"not a cnndeploy manifest: {', '.join(wrong)}")
        return manifest


def _raw_axes(preprocessing: Preprocessing) -> tuple[Axis, ...]:
    return ("height", "width") if preprocessing.channels == 1 else ("height", "width", 3)
