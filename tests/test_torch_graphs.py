"""CUDA graphs of torch, on the CPU: a stand-in records operators, and a replay runs them on the same memory.

Whether a GPU records and replays like that is looked at by benchmarks/gpu.py.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import _with_graphs, candidates_of
from cnndeploy.errors import ArtifactError, DeviceUnavailableError
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import RUNTIMES, _graphs, open_session
from cnndeploy.runtimes.compiled import _BATCH_SIZES, CompiledSession
from cnndeploy.runtimes.eager import EagerSession, network_of
from helpers import Trained

CPU = torch.device("cpu")
GRAPH = RuntimeOptions(cuda_graph=True)


class FakeGraph:
    """What torch.cuda.CUDAGraph is for a GPU: the operators that were recorded, and the memory that they work on."""

    made: list[weakref.ref[FakeGraph]] = []  # noqa: RUF012 - emptied by each test

    def __init__(self) -> None:
        self.operators: list[tuple[Any, Any, Any, Any]] = []
        self.thread = 0
        FakeGraph.made.append(weakref.ref(self))

    def replay(self) -> None:
        assert self.thread == threading.get_ident()
        for operator, args, kwargs, results in self.operators:
            for there, now in zip(_tensors(results), _tensors(operator(*args, **kwargs)), strict=True):
                there.copy_(now)


class _Recording(TorchDispatchMode):
    """Notes operators; as on a GPU, what they return is not computed before a replay."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        # by the address of their memory, which nothing else gets meanwhile
        self.own: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, operator: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:
        if operator in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        results = operator(*args, **(kwargs or {}))
        self.graph.operators.append((operator, args, kwargs or {}, results))
        given = {_address(one) for one in _tensors((args, kwargs))}
        self.own |= {_address(one): one for one in _tensors(results) if _address(one) not in given}
        return results


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _address(values: torch.Tensor) -> int:
    return values.untyped_storage().data_ptr()


class FakeCuda:
    """A stand-in for what of torch.cuda records graphs; ``current`` is the stream of each thread."""

    CUDAGraph = FakeGraph

    def __init__(self) -> None:
        self.modes: list[str] = []
        self.current: dict[int, object] = {}

    def Stream(self, device: torch.device) -> Any:  # noqa: N802 - torch's name
        return self.current_stream(device)

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        before = self.current.get(threading.get_ident())
        self.current[threading.get_ident()] = stream
        try:
            yield
        finally:
            self.current[threading.get_ident()] = before

    def current_stream(self, _: torch.device) -> Any:
        class Stream:
            def wait_stream(self, _: object) -> None: ...

        return Stream()

    def device(self, _: torch.device) -> Any:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, *, stream: object, capture_error_mode: str) -> Iterator[None]:
        """Record as torch does: if recording fails, its end fails too, and leaves the thread on its stream."""
        assert stream is not None
        self.modes.append(capture_error_mode)
        graph.thread = threading.get_ident()
        before = self.current.get(graph.thread)
        self.current[graph.thread] = stream
        try:
            with _Recording(graph) as recording:
                yield
        except RuntimeError:
            raise RuntimeError("CUDA error: failed due to a previous error during capture")  # noqa: B904 - as torch
        self.current[graph.thread] = before
        for values in recording.own.values():
            if values.is_floating_point():
                values.fill_(float("nan"))


class Counted(torch.nn.Module):
    """A network that notes the threads that call it, and how many images it gets."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[int, int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(images), threading.get_ident()))
        logits: torch.Tensor = self.network(images)
        return logits


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    FakeGraph.made.clear()
    for name in ("CUDAGraph", "Stream", "current_stream", "device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def _session(
    trained: Trained, kind: type[EagerSession] = EagerSession, options: RuntimeOptions = GRAPH
) -> tuple[EagerSession, Counted]:
    artifact = Artifact.open(trained.checkpoint)
    network = Counted(network_of(artifact, CPU)).eval()
    return kind(artifact, Run("eager", "cuda:0", 1, options), CPU, network), network


def _images(count: int, seed: int) -> dict[str, NDArray[np.float32]]:
    return {"image": np.random.default_rng(seed).random((count, 1, 28, 28), np.float32)}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("kind", [EagerSession, CompiledSession])
def test_a_shape_is_recorded_once_and_a_replay_sees_each_input(
    kind: type[EagerSession], trained: Trained
) -> None:
    session, network = _session(trained, kind)
    plain, _ = _session(trained, kind, RuntimeOptions())
    sizes = [1, 2, 1, 1, 2, 3, 1]
    given = [_images(size, seed) for seed, size in enumerate(sizes)]
    kept = [session.run(feeds)["logits"] for feeds in given]
    for feeds, logits in zip(given, kept, strict=True):  # all are still what they were
        assert np.array_equal(logits, plain.run(feeds)["logits"])
    three_to_warm_up_and_one = [1] * 4 + [2] * 4 + [3] * 4
    assert [size for size, _ in network.calls] == three_to_warm_up_and_one
    assert len(FakeGraph.made) == 3
    kept[0][:] = 0  # the caller's own
    assert np.array_equal(session.run(given[2])["logits"], kept[2])


def test_shapes_beyond_the_eighth_run_without_a_graph(trained: Trained, fake: FakeCuda) -> None:
    session, network = _session(trained)
    plain, _ = _session(trained, options=RuntimeOptions())
    for seed, size in enumerate([*range(1, 11), 9, 8]):
        feeds = _images(size, seed)
        assert np.array_equal(session.run(feeds)["logits"], plain.run(feeds)["logits"])
    assert fake.modes == ["thread_local"] * 8
    assert [size for size, _ in network.calls][4 * 8 :] == [9, 10, 9]


def test_inputs_of_any_layout_are_copied_right(trained: Trained, fake: FakeCuda) -> None:
    session, _ = _session(trained)
    images = _images(3, 0)["image"]
    right = session.run({"image": images})["logits"]
    images.setflags(write=False)
    for same in (np.asfortranarray(images), images[::-1].copy()[::-1], images):
        assert np.array_equal(session.run({"image": same})["logits"], right)
    assert len(fake.modes) == 1


@pytest.mark.usefixtures("fake")
def test_one_thread_makes_all_calls(trained: Trained) -> None:
    sessions = [_session(trained) for _ in range(2)]
    work = [(session, size) for session, _ in sessions for size in (1, 2, 9)] * 5
    with ThreadPoolExecutor(6) as threads:
        shapes = list(threads.map(lambda each: each[0].run(_images(each[1], 0))["logits"].shape[0], work))
    assert shapes == [size for _, size in work]
    (thread,) = {thread for _, network in sessions for _, thread in network.calls}
    assert thread != threading.get_ident()


def test_a_network_that_cannot_be_recorded_is_an_error_that_says_so(trained: Trained, fake: FakeCuda) -> None:
    session, network = _session(trained)

    def reads(_: object, images: tuple[torch.Tensor, ...]) -> None:
        images[0].sum().item()

    hook = network.register_forward_pre_hook(reads)
    why = "operation not permitted when stream is capturing"
    with pytest.raises(
        ArtifactError, match=rf"cannot record .*lenet.pt as a CUDA graph: .*{why}.*leave them out"
    ):
        session.run(_images(1, 0))
    assert set(fake.current.values()) == {None}, "the thread is that of other sessions too"
    hook.remove()
    session.run(_images(1, 0))
    assert len(fake.modes) == 2, "it is tried again"


@pytest.mark.usefixtures("fake")
def test_they_are_released_with_the_session(trained: Trained) -> None:
    session, network = _session(trained)
    for size in (1, 2):
        session.run(_images(size, 0))
    alive: list[weakref.ref[Any]] = [*FakeGraph.made, weakref.ref(network)]
    assert len(alive) == 3
    assert all(each() is not None for each in alive)
    del network
    gc.disable()  # the memory of a GPU does not wait for a collection
    try:
        session.close()
        _graphs._THREAD.submit(int).result()  # it has forgotten the last call by then
        assert [each() for each in alive] == [None] * 3
    finally:
        gc.enable()
    with pytest.raises(ArtifactError, match="closed"):
        session.run(_images(1, 0))


@pytest.mark.usefixtures("fake")
def test_the_outputs_of_modules_are_seen_although_a_replay_calls_none(trained: Trained) -> None:
    session, network = _session(trained)
    plain, _ = _session(trained, options=RuntimeOptions())
    feeds = _images(2, 0)
    session.run(feeds)
    shown, expected = session.activations(feeds), plain.activations(feeds)
    assert [each.module for each in shown] == [each.module for each in expected] != []
    before = len(network.calls)
    session.run(feeds)
    assert len(network.calls) == before, "graphs are used again"


def test_graphs_are_for_gpus_and_for_eager_and_compiled(trained: Trained) -> None:
    for runtime in ("eager", "compiled"):
        with pytest.raises(DeviceUnavailableError, match="CUDA graphs are for CUDA GPUs; leave them out"):
            open_session(Artifact.open(trained.checkpoint), Run(runtime, options=GRAPH))
    assert "cuda_graph" not in RUNTIMES.get("torchscript").options


def test_every_thread_may_compile_for_more_than_eight_batch_sizes(trained: Trained) -> None:
    """torch keeps the limit for each thread."""
    import torch._dynamo

    session, _ = _session(trained, CompiledSession, RuntimeOptions())

    def limits() -> list[int]:
        before = torch._dynamo.config.recompile_limit
        session.run(_images(1, 0))
        return [before, torch._dynamo.config.recompile_limit]

    with ThreadPoolExecutor(1) as thread:
        before, then = thread.submit(limits).result()
    assert before < then == _BATCH_SIZES


def test_bench_has_a_row_more_for_each_that_can_have_graphs(
    trained: Trained, cli: Callable[..., Result]
) -> None:
    files = [trained.checkpoint, trained.onnx, trained.torchscript]
    runtimes = ["eager", "compiled", "onnxruntime", "openvino", "torchscript"]
    candidates = _with_graphs(candidates_of(files, runtimes, device="cuda", precisions=["float32"]))
    assert [(one.run.runtime, one.run.choices.cuda_graph) for one in candidates] == [
        *[(name, graph) for name in ("eager", "compiled", "onnxruntime") for graph in (False, True)],
        *[("openvino", False), ("torchscript", False)],
    ]
    planned = [replace(candidates[0], run=Run("eager", "cuda", 1, GRAPH))]
    assert _with_graphs(planned) == planned
    refused = cli("bench", trained.onnx, "--cuda-graphs")
    assert refused.exit_code == 1
    assert "CUDA graphs are for CUDA GPUs and the runtimes compiled, eager, onnxruntime" in refused.stderr
    assert cli("bench", trained.onnx, "--cuda-graphs", "--self-test").exit_code == 2
