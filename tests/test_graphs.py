"""Calls as CUDA graphs: what is recorded, replayed and refused. Numbers need a GPU: benchmarks/gpu.py looks at them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import certify, require_certificate
from cnndeploy.errors import ArtifactError, DeviceUnavailableError
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import _graphs, open_session
from cnndeploy.runtimes._graphs import GraphCalls
from cnndeploy.specs import TensorSpec
from helpers import Trained

GIVEN = TensorSpec("image", "float32", ("batch", 1, 28, 28))
LOGITS = TensorSpec("logits", "float32", ("batch", 10))
GRAPH = RuntimeOptions(cuda_graph=True)


class FakeSession:
    """A session of ONNX Runtime that runs what was not recorded."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, names: list[str], feeds: dict[str, NDArray[Any]], options: str) -> list[NDArray[Any]]:
        assert (names, options) == (["logits"], "graph -1")
        self.shapes.append(feeds["image"].shape)
        return [feeds["image"]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> GraphCalls:
    """Calls that return their input; what is recorded is noted in ``recorded``, with the thread."""
    monkeypatch.setattr(_graphs, "_options", lambda graph: f"graph {graph}")

    def recording(self: GraphCalls, given: NDArray[Any]) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
        recorded.append((len(given), threading.get_ident()))
        self._shapes(given.shape)
        return lambda images: [images]

    recorded: list[tuple[int, int]] = []
    monkeypatch.setattr(GraphCalls, "_recording", recording)
    calls = GraphCalls(FakeSession(), "cuda:0", GIVEN, [LOGITS])
    monkeypatch.setattr(calls, "recorded", recorded, raising=False)
    return calls


def _image(batch: int) -> dict[str, NDArray[Any]]:
    return {"image": np.zeros((batch, 1, 28, 28), np.float32)}


def test_each_shape_is_recorded_once_and_only_some_are(calls: Any) -> None:
    sizes = [1, 2, 1, *range(3, 12), 2, 11]
    for size in sizes:
        assert calls.run(_image(size))[0].shape == (size, 1, 28, 28)
    assert [size for size, _ in calls.recorded] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [shape[0] for shape in calls._session.shapes] == [9, 10, 11, 11], "without a graph"


def test_what_could_not_be_recorded_takes_no_place(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> list[NDArray[Any]]:
        raise RuntimeError("out of memory")

    works = GraphCalls._recording
    monkeypatch.setattr(GraphCalls, "_recording", lambda *_: fails)
    for _ in range(9):
        with pytest.raises(RuntimeError, match="out of memory"):
            calls.run(_image(1))
    monkeypatch.setattr(GraphCalls, "_recording", works)
    assert calls.run(_image(1))[0].shape[0] == 1


def test_the_shapes_of_outputs_follow_from_the_inputs() -> None:
    calls = GraphCalls(None, "cuda:1", GIVEN, [LOGITS, TensorSpec("one", "float32", (1,))])
    assert calls._shapes((7, 1, 28, 28)) == [[7, 10], [1]]
    free = TensorSpec("image", "float32", ("unknown", 3, "unknown", 5))
    for given, axis in ((GIVEN, "found"), (free, "unknown")):
        strange = GraphCalls(None, "cuda:0", given, [TensorSpec("logits", "float32", (axis, 10))])
        with pytest.raises(ValueError, match=f"the axis {axis} does not"):
            strange._shapes((7, 3, 28, 5))
    assert GraphCalls(None, "cuda:0", free, [TensorSpec("y", "float32", ("unknown",))])._shapes(
        (7, 3, 7, 5)
    ) == [[7]]


def test_one_thread_makes_the_calls_of_all_threads_and_sessions(calls: Any) -> None:
    others = GraphCalls(FakeSession(), "cuda:0", GIVEN, [LOGITS])
    work = [(one, size) for one in (calls, others) for size in range(1, 5)]
    with ThreadPoolExecutor(8) as threads:
        shapes = list(threads.map(lambda each: each[0].run(_image(each[1]))[0].shape[0], work * 5))
    assert shapes == [size for _, size in work * 5]
    assert sorted(size for size, _ in calls.recorded) == [1, 1, 2, 2, 3, 3, 4, 4]
    (thread,) = {thread for _, thread in calls.recorded}
    assert thread != threading.get_ident()


def test_graphs_are_for_gpus_and_onnx_runtime(trained: Trained) -> None:
    artifact = Artifact.open(trained.onnx)
    with pytest.raises(DeviceUnavailableError, match="CUDA graphs are for CUDA GPUs; leave them out"):
        open_session(artifact, Run(options=GRAPH))
    with pytest.raises(ArtifactError, match="does not support cuda_graph True"):
        open_session(Artifact.open(trained.torchscript), Run(options=GRAPH))


def test_what_was_verified_without_graphs_is_not_certified_with_them(
    trained: Trained, tmp_path: Path
) -> None:
    file = Path(shutil.copy(trained.onnx, tmp_path))
    certify(cnndeploy.verify(file, trained.checkpoint, images=8), file, "cnndeploy verify")
    artifact = Artifact.open(file)
    require_certificate(artifact, Run("onnxruntime", "cpu", 1), True)
    with pytest.raises(ArtifactError, match="certificate"):
        require_certificate(artifact, Run("onnxruntime", "cpu", 1, GRAPH), True)


def test_options_of_a_plan_are_for_its_kind_of_device() -> None:
    planned = Run("onnxruntime", "cuda", 1, GRAPH)
    assert Run(device="cuda:1").over(planned) == Run("onnxruntime", "cuda:1", 1, GRAPH)
    assert Run().over(planned) == planned
    assert Run(device="cpu").over(planned) == Run("onnxruntime", "cpu", 1, None)
