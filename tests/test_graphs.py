"""Calls as CUDA graphs: what is recorded, replayed and refused. Numbers need a GPU: benchmarks/gpu.py looks at them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
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
from cnndeploy.tuning.contenders import _runs
from helpers import Trained

GIVEN = TensorSpec("image", "float32", ("batch", 1, 28, 28))
LOGITS = TensorSpec("logits", "float32", ("batch", 10))
GRAPH = RuntimeOptions(cuda_graph=True)


class FakeSession:
    """Of ONNX Runtime, which is asked for what was not recorded."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, names: list[str], feeds: dict[str, NDArray[Any]], options: str) -> list[NDArray[Any]]:
        assert (names, options) == (["logits"], "graph -1")
        self.shapes.append(feeds["image"].shape)
        return [feeds["image"]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> GraphCalls:
    """Calls that return their input; what is recorded is noted in ``recorded``."""
    monkeypatch.setattr(_graphs, "_options", lambda graph: f"graph {graph}")

    def record(self: GraphCalls, given: NDArray[Any]) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
        recorded.append(given.shape)
        self._shapes(given.shape)
        return lambda images: [images]

    recorded: list[tuple[int, ...]] = []
    monkeypatch.setattr(GraphCalls, "_record", record)
    calls = GraphCalls(FakeSession(), "cuda:0", GIVEN, [LOGITS])
    monkeypatch.setattr(calls, "recorded", recorded, raising=False)
    return calls


def _image(batch: int) -> dict[str, NDArray[Any]]:
    return {"image": np.zeros((batch, 1, 28, 28), np.float32)}


def test_each_shape_is_recorded_once_and_only_some_are(calls: Any) -> None:
    sizes = [1, 2, 1, *range(3, 12), 2, 11]
    for size in sizes:
        assert calls.run(_image(size))[0].shape == (size, 1, 28, 28)
    assert [shape[0] for shape in calls.recorded] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [shape[0] for shape in calls._session.shapes] == [9, 10, 11, 11], "without a graph"


def test_the_shapes_of_outputs_follow_from_the_inputs() -> None:
    calls = GraphCalls(None, "cuda:1", GIVEN, [LOGITS, TensorSpec("one", "float32", (1,))])
    assert calls._shapes((7, 1, 28, 28)) == [[7, 10], [1]]
    strange = GraphCalls(None, "cuda:0", GIVEN, [TensorSpec("logits", "float32", ("found", 10))])
    with pytest.raises(ValueError, match="known shapes, and not found"):
        strange._shapes((7, 1, 28, 28))


def test_threads_wait_for_each_other_and_a_call_within_a_call_is_an_error(calls: Any) -> None:
    busy, most = 0, 0

    def slow(images: NDArray[Any]) -> list[NDArray[Any]]:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        threading.Event().wait(0.01)
        busy -= 1
        return [images]

    calls._recorded[1, 1, 28, 28] = slow
    threads = [threading.Thread(target=calls.run, args=(_image(1),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    calls._recorded[1, 1, 28, 28] = lambda _: calls.run(_image(2))
    with pytest.raises(RuntimeError, match="in the middle of a call"):
        calls.run(_image(1))
    assert calls.run(_image(2))[0].shape[0] == 2, "it goes on"


def test_graphs_are_for_gpus_and_onnx_runtime(trained: Trained) -> None:
    artifact = Artifact.open(trained.onnx)
    with pytest.raises(DeviceUnavailableError, match="CUDA graphs are of CUDA GPUs"):
        open_session(artifact, Run(options=GRAPH))
    with pytest.raises(ArtifactError, match="does not support cuda_graph True"):
        open_session(Artifact.open(trained.torchscript), Run(options=GRAPH))


def test_tune_tries_them_on_a_gpu_alone(trained: Trained) -> None:
    artifact = Artifact.open(trained.onnx)
    tried = [run.choices.changed for run in _runs("onnxruntime", artifact, 1, "cuda", lossy=True)]
    graph, tf32 = {"cuda_graph": True}, {"precision": "tf32"}
    assert tried == [{}, graph, tf32, tf32 | graph]
    assert all(not run.choices.cuda_graph for run in _runs("onnxruntime", artifact, 2, "cpu", lossy=True))


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
