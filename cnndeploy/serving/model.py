"""A model that is served: what it takes and returns in the protocol's words, and how its requests went."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.classifier import Classifier
from cnndeploy.errors import CnndeployError, DataError, InputMismatchError, ServingError
from cnndeploy.images import read_image
from cnndeploy.specs import TensorSpec

SERVER = {
    "name": "cnndeploy",
    "version": version("cnndeploy"),
    "extensions": ["binary_tensor_data", "model_repository", "statistics"],
}
VERSION = "1"  # of every model: a file is served as it is
# The protocol's names of dtypes. Source: Open Inference Protocol, "Tensor Data Types".
DATATYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_MOST_NAME = 100
Tensors = Mapping[str, NDArray[Any]]


class RequestError(Exception):
    """A request that cannot be answered, and the HTTP ``status`` that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Statistics:
    """How requests for inference went: their number and nanoseconds; ``images`` are those of the successful ones."""

    succeeded: int = 0
    failed: int = 0
    images: int = 0
    succeeded_ns: int = 0
    failed_ns: int = 0
    last_ms: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, started_ns: int, images: int) -> None:
        """Note a request that began at ``started_ns`` of the clock that counts up; 0 images if it failed."""
        took = time.perf_counter_ns() - started_ns
        with self.lock:
            if images:
                self.succeeded += 1
                self.images += images
                self.succeeded_ns += took
                self.last_ms = time.time_ns() // 1_000_000
            else:
                self.failed += 1
                self.failed_ns += took


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An opened file under the name by which clients ask for it; ``most_images`` is the largest batch it accepts."""

    name: str
    classifier: Classifier
    most_images: int
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""
        return self.classifier.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns."""
        return self.classifier.session.outputs

    @property
    def platform(self) -> str:
        """What runs it, and the kind of file, as ``onnxruntime_onnx``."""
        session = self.classifier.session
        return f"{session.run_as.runtime}_{session.artifact.format}"

    def infer(self, feeds: Tensors, wanted: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs of these names, all if there are none, for a batch of inputs.

        Raise RequestError if the inputs are not what the model takes, or it fails on them.
        """
        started, images = time.perf_counter_ns(), 0
        try:
            outputs = self._infer(feeds, wanted)
            images = len(next(iter(feeds.values())))
        finally:
            self.statistics.note(started, images)
        return outputs

    def classify(self, content: bytes, top: int) -> list[dict[str, Any]]:
        """Return the most probable classes of the bytes of an image file, the likeliest first.

        Raise RequestError if they are no image, or the model fails on it.
        """
        started, images = time.perf_counter_ns(), 0
        try:
            image = read_image(io.BytesIO(content), self.classifier.manifest.preprocessing.channels)
            (first,) = self.classifier.classify([image], top=min(top, len(self.classifier.labels)))
            images = 1
        except (DataError, InputMismatchError) as error:
            raise RequestError(400, str(error)) from error
        except CnndeployError as error:
            raise RequestError(500, str(error)) from error
        finally:
            self.statistics.note(started, images)
        return [{"label": one.label, "probability": one.probability} for one in (first, *first.runners_up)]

    def _infer(self, feeds: Tensors, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
        known = {spec.name for spec in self.outputs}
        if unknown := [name for name in wanted if name not in known]:
            raise RequestError(400, f"there is no output {unknown[0]!r}; there are {sorted(known)}")
        for array in feeds.values():
            if array.ndim and not 0 < len(array) <= self.most_images:
                raise RequestError(
                    400, f"a batch of 1 to {self.most_images} images is served, and not of {len(array)}"
                )
        try:
            outputs = self.classifier.session.run(feeds)
        except InputMismatchError as error:
            raise RequestError(400, str(error)) from error
        except CnndeployError as error:
            raise RequestError(500, str(error)) from error
        if not all(np.isfinite(array.sum(dtype=np.float64)) for array in outputs.values()):
            if all(np.isfinite(array).all() for array in feeds.values()):
                raise RequestError(500, f"{self.name} computes NaN or infinite values of this input")
            raise RequestError(400, "the input holds NaN or infinite values")
        return {name: outputs[name] for name in wanted} if wanted else outputs


def find(models: Mapping[str, ServedModel], name: str, of_version: str = "") -> ServedModel:
    """Return a model by its name; raise RequestError with status 404 if there is none, or not of that version."""
    model = models.get(name)
    if model is None:
        raise RequestError(404, f"there is no model {name!r:.80}; there are {', '.join(models)}")
    if of_version not in ("", VERSION):
        raise RequestError(
            404, f"the model {name} has no version {of_version!r:.20}; its version is {VERSION}"
        )
    return model


def check_name(name: str) -> None:
    """Raise ServingError if a name cannot stand in the path of a request, or be that of a folder."""
    if not name.strip(". ") or len(name) > _MOST_NAME or not name.isprintable() or set(name) & set("/\\?#%"):
        raise ServingError(f"{name!r:.60} is no name for a model in the path of a request; give another")


def array_of(name: str, datatype: str, shape: Sequence[int], content: bytes | memoryview) -> NDArray[Any]:
    """Return an input that came as bytes, in C order and little-endian; raise RequestError if they do not fit."""
    dtype = np.dtype(dtype_of(name, datatype))
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise RequestError(
            400, f"input {name!r}: {list(shape)} {datatype} takes {expected:,} bytes, not {len(content):,}"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def dtype_of(name: str, datatype: Any) -> str:
    """Return numpy's name of a datatype; raise RequestError with status 400 if it is none of the protocol's."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise RequestError(400, f"input {name!r}: the datatype is one of {', '.join(DTYPES)}")
    return DTYPES[datatype]


def protocol_shape(spec: TensorSpec) -> list[int]:
    """Return a shape in the protocol's way: -1 for an axis of any length."""
    return [-1 if isinstance(axis, str) else axis for axis in spec.shape]
