"""The worker process: opens one artifact and times it when told. ``python -m cnndeploy.benchmark.worker``."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.candidate import RAW, RAW_ONNXRUNTIME, RAW_OPENVINO, Settings
from cnndeploy.classifier import Classifier
from cnndeploy.errors import ArtifactError, BenchmarkError, missing_dependency
from cnndeploy.machine import peak_memory_bytes, reset_peak_memory
from cnndeploy.preprocessing import RAW_SIDE
from cnndeploy.process import Message, serve
from cnndeploy.runtimes import RUNTIMES, Session, open_session
from cnndeploy.runtimes.onnxruntime import tensor_spec
from cnndeploy.runtimes.openvino import tensor_spec as openvino_spec
from cnndeploy.specs import TensorSpec


def main(path: str, settings_json: str, started: str) -> None:
    """Say how the artifact was opened, then answer each request with the seconds of its calls."""
    settings = Settings.from_json(settings_json)

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        _import_package_of(settings.runtime)
        imported = time.time()
        subject = _open(path, settings)
        with contextlib.closing(subject):
            yield {
                "import_s": imported - float(started),
                "open_s": time.time() - imported,
                "clock_s": _clock_s(),
                "device": subject.device,
                "threads": subject.threads,
                "settings": subject.settings,
            }
            call, batch_size = None, 0
            for request in requests:
                if call is None or request["batch_size"] != batch_size:
                    batch_size = request["batch_size"]
                    call = _prepared(subject, batch_size)
                    reset_peak_memory()
                seconds = _time(subject, call, request["samples"], request["repeats"])
                yield {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}

    serve(path, answers)


Call = Callable[[], Iterable[NDArray[Any]]]
"""Runs one batch; gives what must be finite."""


class _Subject(ABC):
    """What is timed."""

    device: str
    threads: int
    settings: dict[str, Any]

    @abstractmethod
    def prepare(self, batch_size: int) -> Call:
        """A call on one batch of random images, the same for every candidate."""

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Wait until all work handed to the device is done."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""


class _OfSession(_Subject):
    def __init__(self, session: Session) -> None:
        self.device, self.threads, self.settings = session.device, session.threads, session.settings()
        self._session = session

    def prepare(self, batch_size: int) -> Call:
        feeds = _random_feeds(self._session.inputs, batch_size)
        return lambda: self._session.run(feeds).values()

    def synchronize(self) -> None:
        self._session.synchronize()

    def close(self) -> None:
        self._session.close()


class _EndToEnd(_OfSession):
    """From raw uint8 images to probabilities."""

    def prepare(self, batch_size: int) -> Call:
        classifier = Classifier(self._session, self._session.artifact.require_manifest())
        shape = (batch_size, RAW_SIDE, RAW_SIDE)
        images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        return lambda: [np.array([each.probability for each in classifier.classify(images)])]


class _RawOnnxRuntime(_Subject):
    """ONNX Runtime as a plain script uses it: what our own layer costs is the distance to this."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.device, self.threads, self.settings = "cpu", threads, {"threads": threads}

    def prepare(self, batch_size: int) -> Call:
        feeds = _random_feeds([tensor_spec(each) for each in self._session.get_inputs()], batch_size)
        return lambda: self._session.run(None, feeds)

    def close(self) -> None:
        self._session = None


class _RawOpenVino(_Subject):
    """OpenVINO as a plain script uses it: in bfloat16 where the processor can, which is its default."""

    def __init__(self, path: str, threads: int) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads}
        self._model = openvino.compile_model(path, "CPU", settings)
        precision = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.device, self.threads = "cpu", threads
        self.settings = {"threads": threads, "precision": precision}

    def prepare(self, batch_size: int) -> Call:
        feeds = _random_feeds([openvino_spec(port) for port in self._model.inputs], batch_size)
        request = self._model.create_infer_request()
        return lambda: request.infer(feeds).values()

    def close(self) -> None:
        self._model = None


def _random_feeds(inputs: Sequence[TensorSpec], batch_size: int) -> dict[str, NDArray[Any]]:
    """In the range that preprocessing gives, or for raw images 8-bit."""
    random = np.random.default_rng(0)
    feeds = {}
    for spec in inputs:
        values = random.random(spec.with_batch(batch_size, RAW_SIDE))
        feeds[spec.name] = (values * 256 if spec.dtype == "uint8" else values).astype(spec.dtype)
    return feeds


def _import_package_of(runtime: str) -> None:
    package = RAW.get(runtime) or RUNTIMES.get(runtime).package
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


def _open(path: str, settings: Settings) -> _Subject:
    if settings.runtime == RAW_ONNXRUNTIME:
        return _RawOnnxRuntime(path, int(settings.threads))
    if settings.runtime == RAW_OPENVINO:
        return _RawOpenVino(path, int(settings.threads))
    artifact = Artifact.open(path)
    session = open_session(
        artifact,
        runtime=settings.runtime,
        device=settings.device,
        threads=settings.threads,
        options=settings.options,
    )
    return _EndToEnd(session) if settings.end_to_end else _OfSession(session)


def _prepared(subject: _Subject, batch_size: int) -> Call:
    try:
        return subject.prepare(batch_size)
    except (ValueError, TypeError, IndexError, MemoryError) as error:
        raise BenchmarkError(f"it cannot be fed a batch of {batch_size}: {error}") from error


def _time(subject: _Subject, call: Call, samples: int, repeats: int) -> list[float]:
    """Every call gives its results on the host, so that one on a GPU has ended when it returns."""
    stamps = []
    subject.synchronize()
    gc.collect()
    gc.disable()
    try:
        stamps.append(time.perf_counter())
        for _ in range(samples):
            for _ in range(repeats):
                outputs = call()
            stamps.append(time.perf_counter())
        subject.synchronize()
    finally:
        gc.enable()
    if not all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f"):
        raise ArtifactError("it gives NaN or infinite values")
    return [(end - start) / repeats for start, end in pairwise(stamps)]


def _clock_s() -> float:
    """Seconds that reading the clock takes; the least of several tries, for anything may come between."""
    count, tries = 200, 20
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        for _ in range(count):
            time.perf_counter()
        seconds.append((time.perf_counter() - started) / count)
    return min(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
