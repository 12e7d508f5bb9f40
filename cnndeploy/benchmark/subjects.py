"""What a worker times: a session, a classifier around one, or a raw runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.raw import RAW_ONNXRUNTIME, RAW_OPENVINO
from cnndeploy.classifier import Classifier
from cnndeploy.preprocessing import RAW_SIDE
from cnndeploy.run import Run
from cnndeploy.runtimes import Session, open_session
from cnndeploy.specs import TensorSpec

Call = Callable[[], Iterable[NDArray[Any]]]
"""Runs one batch; returns what must be finite."""


class Subject(ABC):
    """What is timed."""

    device: str
    threads: int
    settings: dict[str, Any]

    @abstractmethod
    def prepare(self, batch_size: int) -> Call:
        """Return a call on one batch of random images, the same for every candidate."""

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Wait until all work handed to the device is done."""

    @abstractmethod
    def close(self) -> None:
        """Release the model."""


def open_subject(path: str, run: Run, end_to_end: bool) -> Subject:
    """Open a file as a candidate is run; raise what :func:`open_session` raises."""
    if run.runtime == RAW_ONNXRUNTIME:
        return _RawOnnxRuntime(path, run.thread_count)
    if run.runtime == RAW_OPENVINO:
        return _RawOpenVino(path, run.thread_count)
    session = open_session(Artifact.open(path), run)
    return _EndToEnd(session) if end_to_end else _OfSession(session)


class _OfSession(Subject):
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
        return lambda: [np.array([prediction.probability for prediction in classifier.classify(images)])]


class _RawOnnxRuntime(Subject):
    """ONNX Runtime as a plain script uses it: what our own layer costs is the distance to this."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.device, self.threads, self.settings = "cpu", threads, {"threads": threads}

    def prepare(self, batch_size: int) -> Call:
        from cnndeploy.runtimes.onnxruntime import tensor_spec

        feeds = _random_feeds([tensor_spec(argument) for argument in self._session.get_inputs()], batch_size)
        return lambda: self._session.run(None, feeds)

    def close(self) -> None:
        self._session = None


class _RawOpenVino(Subject):
    """OpenVINO as a plain script uses it: in bfloat16 if the processor can, which is its default."""

    def __init__(self, path: str, threads: int) -> None:
        import openvino

        self._model = openvino.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads})
        precision = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.device, self.threads = "cpu", threads
        self.settings = {"threads": threads, "precision": precision}

    def prepare(self, batch_size: int) -> Call:
        from cnndeploy.runtimes.openvino import tensor_spec

        feeds = _random_feeds([tensor_spec(port) for port in self._model.inputs], batch_size)
        request = self._model.create_infer_request()
        return lambda: request.infer(feeds).values()

    def close(self) -> None:
        self._model = None


def _random_feeds(inputs: Sequence[TensorSpec], batch_size: int) -> dict[str, NDArray[Any]]:
    """Return random images: 8-bit if raw ones are taken, else in the range of prepared ones."""
    random = np.random.default_rng(0)
    feeds = {}
    for spec in inputs:
        values = random.random(spec.with_batch(batch_size, RAW_SIDE))
        feeds[spec.name] = (values * 256 if spec.dtype == "uint8" else values).astype(spec.dtype)
    return feeds
