"""What NVIDIA's management library tells, and what becomes of it if it does not; see cuda_stub."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cuda_stub
import pytest

from cnndeploy import nvml
from cnndeploy.benchmark import conditions
from cnndeploy.benchmark.conditions import Watch

GPU = "0000:10:00.0"
OWN = os.getpid()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library of the stub."""
    folder = tmp_path_factory.mktemp("nvml")
    cuda_stub.build_one(folder, cuda_stub.NVML)
    return ctypes.CDLL(str(folder / cuda_stub.NVML))


@pytest.fixture
def stub(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes the library unusual."""
    monkeypatch.setattr(nvml, "_library", lambda: library)
    return lambda words: monkeypatch.setenv("CUDA_STUB_NVML", words)


def _told(gpu: str = GPU, pid: int = OWN) -> tuple[Any, ...]:
    return nvml.driver_version(), nvml.memory_bytes(gpu, pid), nvml.utilization(gpu), nvml.slowed_by(gpu)


NOTHING: tuple[Any, ...] = (None, None, None, set())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", ("580.95.05", 300 << 20, 0.0, set())),
        ("busy hot", ("580.95.05", 300 << 20, 0.4, {"heat"})),
        ("hot capped", ("580.95.05", 300 << 20, 0.0, {"heat", "its power limit"})),
        ("old", ("580.95.05", 300 << 20, 0.0, {"heat", "its power limit"})),
        ("windows", ("580.95.05", None, 0.0, set())),
        ("many", ("580.95.05", None, 0.0, set())),
        ("mig busy hot", ("580.95.05", *NOTHING[1:])),
        ("fails busy hot", NOTHING),
    ],
)
def test_what_the_library_tells(words: str, told: tuple[Any, ...], stub: Callable[[str], None]) -> None:
    stub(words)
    assert _told() == told


def test_of_another_gpu_or_process_nothing_is_told(stub: Callable[[str], None]) -> None:
    stub("busy hot")
    assert _told(gpu="0000:20:00.0") == ("580.95.05", *NOTHING[1:])
    assert nvml.memory_bytes(GPU, 2**31) is None
    assert nvml.memory_bytes(GPU, 1) == 5 << 20


def _no_library(_name: str) -> Any:
    raise OSError("no such file")


@pytest.mark.parametrize(
    "load",
    [_no_library, lambda _name: SimpleNamespace(), lambda _name: SimpleNamespace(nvmlInit_v2=lambda: 9)],
)
def test_without_a_library_that_works_nothing_is_told(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert nvml._library.__wrapped__() is None
    monkeypatch.setattr(nvml, "_library", lambda: None)
    assert _told() == NOTHING


def test_a_function_that_an_old_library_lacks_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_library", lambda: ctypes.CDLL(None))
    assert _told() == NOTHING


@pytest.mark.parametrize(("words", "use"), [("", 0.0), ("busy", 0.4), ("settles", 0.0), ("fails", None)])
def test_a_gpu_is_busy_only_if_it_does_not_become_idle(
    words: str, use: float | None, stub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first a sample may have the candidates' own work in it."""
    monkeypatch.setattr(conditions, "_GPU_STEP_S", 0.001)
    monkeypatch.setattr(conditions, "_GPU_LISTEN_S", 60 if words == "settles" else 0.1)
    stub(words)
    assert Watch([GPU]).conditions()["busy_gpu"] == use


def test_what_slowed_a_gpu_once_is_remembered(stub: Callable[[str], None]) -> None:
    watch = Watch([GPU])
    for words in ("hot", "", "capped"):
        stub(words)
        watch.look()
    assert watch.conditions()["gpu_slowed"] == ["heat", "its power limit"]


def test_on_a_cpu_the_library_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise AssertionError("NVML was loaded")

    monkeypatch.setattr(nvml, "_library", asked)
    watch = Watch()
    watch.look()
    assert not {"busy_gpu", "gpu_slowed"} & watch.conditions().keys()
