"""The worker process: opens one candidate and times it when told. ``python -m cnndeploy.benchmark.worker``."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
import time
import timeit
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.raw import RAW, RAW_ONNXRUNTIME
from cnndeploy.classifier import Classifier
from cnndeploy.datasets import Batch, open_dataset
from cnndeploy.devices import DeviceStatus, device_index, gpu_status, gpu_statuses
from cnndeploy.errors import ArtifactError, BenchmarkError, DeviceUnavailableError, missing_dependency
from cnndeploy.machine import cuda_driver, peak_memory_bytes, reset_peak_memory
from cnndeploy.preprocessing import RAW_SIDE
from cnndeploy.process import Message, serve
from cnndeploy.run import Run
from cnndeploy.runtimes import RUNTIMES, open_session
from cnndeploy.runtimes._cuda import PROVIDER, load_libraries
from cnndeploy.specs import TensorSpec

_PHOTO = (375, 500, 3)  # as many of ImageNet are
Call = Callable[[], Iterable[NDArray[Any]]]
"""Runs one batch; returns what must be finite."""


def main(path: str, settings: str) -> None:
    """Say how the artifact was opened, then answer each request with the seconds of its calls."""
    told = json.loads(settings)
    run = Run.from_dict(told["run"])

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        try:
            importlib.import_module(RAW.get(run.runtime) or RUNTIMES.get(run.runtime).package)
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        imported = time.time()
        subject = _open(path, run, told["end_to_end"], told["data"])
        with contextlib.closing(subject):
            yield {
                "import_s": imported - told["started"],
                "open_s": time.time() - imported,
                "clock_s": _clock_s(),
                "device": subject.device,
                # not asked on the CPU, where nothing may start CUDA
                "gpu": None if subject.device == "cpu" else cuda_driver().bus_id(subject.device),
                "threads": subject.threads,
                "settings": subject.settings,
            }
            call, batch_size = None, 0
            for request in requests:
                if call is None or request["batch_size"] != batch_size:
                    batch_size = request["batch_size"]
                    try:
                        call = subject.prepare(batch_size)
                    except (ValueError, TypeError, IndexError, MemoryError) as error:
                        raise BenchmarkError(f"it cannot be fed a batch of {batch_size}: {error}") from error
                    reset_peak_memory()
                seconds = _time(subject, call, request["samples"], request["repeats"])
                yield {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}

    serve(path, answers)


def _time(subject: _Subject, call: Call, samples: int, repeats: int) -> list[float]:
    """Return seconds per call; every call has its results on the host, so one on a GPU has ended when it returns."""
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
    """Return the seconds that reading the clock takes; the least of several tries, for anything may come between."""
    return min(timeit.repeat(time.perf_counter, number=200, repeat=20)) / 200


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is timed, opened; ``prepare`` returns a call on random images, the same for every candidate."""

    device: str
    threads: int
    settings: dict[str, Any]
    prepare: Callable[[int], Call]
    synchronize: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


def _open(path: str, run: Run, end_to_end: bool, data: str | None) -> _Subject:
    """Open a file as a candidate is run; raise what :func:`open_session` raises."""
    if run.runtime in RAW:
        return _raw(path, RAW[run.runtime], run)
    session = open_session(Artifact.open(path), run)

    def prepare(batch_size: int) -> Call:
        if end_to_end:  # from raw uint8 images to probabilities
            classifier = Classifier(session, session.artifact.require_manifest())
            images = _raw_images(session.artifact, data, batch_size)
            return lambda: [np.array([label.probability for label in classifier.classify(images)])]
        feeds = _random_feeds(session.inputs, batch_size)
        return lambda: session.run(feeds).values()

    settings = session.settings()
    return _Subject(session.device, session.threads, settings, prepare, session.synchronize, session.close)


def _raw_images(artifact: Artifact, data: str | None, batch_size: int) -> Batch:
    """Return the first test images, decoded, of the data set that is given or was recorded, else random ones."""
    manifest = artifact.require_manifest()
    channels = manifest.preprocessing.channels
    if data is None and manifest.data is None:
        size = (RAW_SIDE, RAW_SIDE) if channels == 1 else _PHOTO
        return np.random.default_rng(0).integers(256, size=(batch_size, *size), dtype=np.uint8)
    dataset = open_dataset(data, manifest.data, artifact.path)
    return dataset.split("test", channels, manifest.labels).first(batch_size).read(slice(None))


def _raw(path: str, package: str, run: Run) -> _Subject:
    """Open a file as a plain script does: what our own layer costs is the distance to this."""
    device, threads = "cpu", run.thread_count
    settings: dict[str, Any] = {"threads": threads}
    if package == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if run.device == "cpu":
            model = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        else:
            model, device = _raw_on_cuda(path, options, run.device)
            settings["provider_options"] = model.get_provider_options()[PROVIDER]
    else:
        import openvino

        model = openvino.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads})
        # bfloat16 if the processor can, which is OpenVINO's default
        settings["precision"] = model.get_property("INFERENCE_PRECISION_HINT").to_string()

    def prepare(batch_size: int) -> Call:
        # here, because it is no part of opening
        tensor_spec = importlib.import_module(f"cnndeploy.runtimes.{package}").tensor_spec
        if package == "onnxruntime":
            feeds = _random_feeds(map(tensor_spec, model.get_inputs()), batch_size)
            return lambda: model.run(None, feeds)
        feeds = _random_feeds(map(tensor_spec, model.inputs), batch_size)
        request = model.create_infer_request()
        return lambda: request.infer(feeds).values()

    return _Subject(device, threads, settings, prepare)


def _raw_on_cuda(path: str, options: Any, device: str) -> tuple[Any, str]:
    """Open a file on a GPU as a plain script does, but never on the CPU instead; return the device's full name too."""
    import onnxruntime

    from cnndeploy.runtimes.onnxruntime import ort_errors

    index = device_index(device, RAW_ONNXRUNTIME, {"cpu": DeviceStatus(True)} | gpu_statuses(gpu_status))
    load_libraries()
    # By default it runs on the CPU what it cannot run on the GPU; that may be all of the file.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = (PROVIDER, {"device_id": str(index)} if index else {})
    try:
        model = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
    except ort_errors() as error:
        raise DeviceUnavailableError(
            f"ONNX Runtime does not run all of {path} on {device}: {str(error).rstrip('.')}. "
            "Nothing was run on the CPU instead. To see whether ONNX Runtime works on this GPU at all: cnndeploy list"
        ) from error
    return model, f"cuda:{index}"


def _random_feeds(inputs: Iterable[TensorSpec], batch_size: int) -> dict[str, NDArray[Any]]:
    """Return random images: 8-bit if raw ones are taken, else in the range of prepared ones."""
    random = np.random.default_rng(0)
    feeds = {}
    for spec in inputs:
        values = random.random(spec.with_batch(batch_size, RAW_SIDE))
        feeds[spec.name] = (values * 256 if spec.dtype == "uint8" else values).astype(spec.dtype)
    return feeds


if __name__ == "__main__":
    main(*sys.argv[1:])
