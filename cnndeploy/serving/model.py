"""A model that is served: what it takes and returns in the protocol's words, and how its requests went."""

from __future__ import annotations

import asyncio
import io
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnndeploy.classifier import Classifier
from cnndeploy.errors import CnndeployError, DataError, InputMismatchError, ServingError
from cnndeploy.images import read_image
from cnndeploy.preprocessing import MAX_SIDE
from cnndeploy.specs import TensorSpec

SERVER = {
    "name": "cnndeploy",
    "version": version("cnndeploy"),
    "extensions": ["binary_tensor_data", "statistics"],
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
Answer = TypeVar("Answer")
_MOST_NAME, _MOST_AXES, _MOST_LENGTH = 100, 8, 2**31
_MOST_PIXELS = MAX_SIDE**2  # of all raw images of a request
_RESERVED = "stats"  # a path of the server's
Tensors = Mapping[str, NDArray[Any]]


class RequestError(Exception):
    """A request that cannot be answered, and the HTTP ``status`` that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Statistics:
    """How requests for inference went: their number, and nanoseconds from arrival to answer.

    ``images`` are those of the successful requests. ``waited_ns`` of their time they waited for a worker.
    """

    succeeded: int = 0
    failed: int = 0
    images: int = 0
    succeeded_ns: int = 0
    waited_ns: int = 0
    failed_ns: int = 0
    last_ms: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An opened file under the name by which clients ask for it; ``most_images`` is the largest batch it accepts.

    ``workers`` are the threads that run it: as many as the CPUs have room for.
    """

    name: str
    classifier: Classifier
    workers: Executor
    most_images: int
    _statistics: Statistics = field(default_factory=Statistics)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

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

    @property
    def statistics(self) -> Statistics:
        """How requests went until now."""
        with self._lock:
            return replace(self._statistics)

    async def answer(self, work: Callable[[ServedModel], tuple[Answer, int]]) -> Answer:
        """Have a worker do ``work``, which returns an answer and for how many images it is; note how it went."""
        arrived = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.workers, self._noted, work, arrived)

    def _noted(self, work: Callable[[ServedModel], tuple[Answer, int]], arrived: int) -> Answer:
        began, images = time.perf_counter_ns(), 0
        try:
            answer, images = work(self)
            return answer
        finally:
            took = time.perf_counter_ns() - arrived
            with self._lock:
                if images:
                    self._statistics.succeeded += 1
                    self._statistics.images += images
                    self._statistics.succeeded_ns += took
                    self._statistics.waited_ns += began - arrived
                    self._statistics.last_ms = time.time_ns() // 1_000_000
                else:
                    self._statistics.failed += 1
                    self._statistics.failed_ns += took

    def infer(self, feeds: Tensors, wanted: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Return the outputs of these names, all if there are none, for a batch of inputs.

        Raise RequestError if the inputs are not what the model takes, or it fails on them.
        """
        names = {spec.name for spec in self.outputs}
        if unknown := [name for name in wanted if name not in names]:
            raise RequestError(400, f"there is no output {unknown[0]!r:.80}; there are {sorted(names)}")
        for array in feeds.values():
            self._check_size(array)
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

    def _check_size(self, array: NDArray[Any]) -> None:
        """Raise RequestError for more images, or larger raw ones, than are served."""
        if array.ndim and not 0 < len(array) <= self.most_images:
            raise RequestError(
                400, f"a batch of 1 to {self.most_images} images is served, and not of {len(array)}"
            )
        if self.classifier.manifest.takes_images and array.ndim > 2:
            height, width = array.shape[1:3]
            if max(height, width) > MAX_SIDE or len(array) * height * width > _MOST_PIXELS:
                most = f"sides of {MAX_SIDE} pixels, and of {_MOST_PIXELS:,} pixels in all, are served"
                raise RequestError(400, f"images of at most {most}, and not {array.shape}")

    def classify(self, content: bytes | bytearray, top: int) -> list[dict[str, Any]]:
        """Return the most probable classes of the bytes of an image file, the likeliest first.

        Raise RequestError if they are no image, or the model fails on it.
        """
        try:
            image = read_image(io.BytesIO(content), self.classifier.manifest.preprocessing.channels)
            (first,) = self.classifier.classify([image], top=min(top, len(self.classifier.labels)))
        except (DataError, InputMismatchError) as error:
            raise RequestError(400, str(error)) from error
        except CnndeployError as error:
            raise RequestError(500, str(error)) from error
        return [{"label": one.label, "probability": one.probability} for one in (first, *first.runners_up)]


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
    if (
        not name.strip(". ")
        or name == _RESERVED
        or len(name) > _MOST_NAME
        or not name.isprintable()
        or set(name) & set("/\\?#%")
    ):
        raise ServingError(f"{name!r:.60} is no name for a model in the path of a request; give another")


def check_shape(name: str, shape: Any) -> list[int]:
    """Return the shape of an input; raise RequestError with status 400 if it is none."""
    if (
        not isinstance(shape, Sequence)
        or isinstance(shape, str)
        or len(shape) > _MOST_AXES
        or any(type(length) is not int or not 0 <= length < _MOST_LENGTH for length in shape)
    ):
        raise RequestError(
            400, f"input {name!r:.80}: the shape is a list of lengths, and not {str(shape)[:60]}"
        )
    return list(shape)


def array_of(name: str, datatype: str, shape: Sequence[int], content: bytes | memoryview) -> NDArray[Any]:
    """Return an input that came as bytes, in C order and little-endian; raise RequestError if they do not fit."""
    dtype = np.dtype(dtype_of(name, datatype))
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise RequestError(
            400,
            f"input {name!r:.80}: {list(shape)} {datatype} takes {expected:,} bytes, not {len(content):,}",
        )
    try:
        # bytes may begin anywhere, and runtimes read where they are told
        return np.require(np.frombuffer(content, dtype).reshape(shape), requirements="A")
    except ValueError as error:  # of no bytes in an impossible shape
        raise RequestError(400, f"input {name!r:.80}: {error}") from error


def dtype_of(name: str, datatype: Any) -> str:
    """Return numpy's name of a datatype; raise RequestError with status 400 if it is none of the protocol's."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise RequestError(400, f"input {name!r}: the datatype is one of {', '.join(DTYPES)}")
    return DTYPES[datatype]


def protocol_shape(spec: TensorSpec) -> list[int]:
    """Return a shape in the protocol's way: -1 for an axis of any length."""
    return [-1 if isinstance(axis, str) else axis for axis in spec.shape]
