"""Devices: one is asked about and no other is started, and what a GPU says is told."""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cnndeploy import devices, machine
from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, allow_tf32, gpu_status, last_line, require_device
from cnndeploy.errors import DeviceUnavailableError
from cnndeploy.machine import CudaDriver
from cnndeploy.run import Run
from cnndeploy.runtimes import RUNTIMES, open_session
from helpers import Trained

GPUS = CudaDriver(("A", "B", "C"), "13.0")


class FourGpus:
    """A runtime that notes which devices it is asked to start."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def status(self, device: str) -> DeviceStatus:
        self.started.append(device)
        return DeviceStatus(device != "cuda:3", "it is broken")

    def devices(self) -> dict[str, DeviceStatus]:
        return {name: self.status(name) for name in ("cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:3")}


@pytest.mark.parametrize(("device", "index"), [("cpu", None), ("cuda", 0), ("cuda:2", 2)])
def test_one_device_is_asked_about(device: str, index: int | None) -> None:
    runtime = FourGpus()
    assert require_device(device, "its name", runtime) == index
    assert runtime.started == ["cuda:0" if device == "cuda" else device]


def test_the_error_lists_the_devices_that_work() -> None:
    with pytest.raises(
        DeviceUnavailableError, match=r"to x: it is broken. Available: cpu, cuda:0, cuda:1, cuda:2"
    ):
        require_device("cuda:3", "x", FourGpus())


@pytest.mark.parametrize("runtime", ["eager", "torchscript", "onnxruntime"])
def test_a_session_on_the_cpu_does_not_ask_for_gpus(
    runtime: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> CudaDriver:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(devices, "cuda_driver", asked)
    path = {"eager": trained.checkpoint, "torchscript": trained.torchscript}.get(runtime, trained.onnx)
    open_session(Artifact.open(path), Run(runtime, "cpu", 1)).close()


def test_torch_computes_on_the_gpu_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def ones(_count: int, device: str) -> Any:
        used.append(device)
        return torch.zeros(1)

    monkeypatch.setattr(devices, "cuda_driver", lambda: GPUS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.ones", ones)
    assert RUNTIMES.get("eager").status("cuda:1").usable  # type: ignore[attr-defined]
    assert used == ["cuda:1"]
    assert list(RUNTIMES.get("eager").devices()) == ["cpu", "cuda:0", "cuda:1", "cuda:2"]


def test_cuda_does_not_survive_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_driver", lambda: GPUS)
    assert gpu_status("cuda:0").usable
    assert gpu_status("cuda:3") == DeviceStatus(False, "this machine has no such GPU")
    monkeypatch.setattr(devices, "cuda_driver", lambda: replace(GPUS, process=os.getppid()))
    assert "does not survive a fork" in gpu_status("cuda:0").reason


@pytest.mark.parametrize(
    ("init", "count", "reason"),
    [
        (100, 0, "no GPU is visible; look at CUDA_VISIBLE_DEVICES"),
        (0, 100, "no GPU is visible"),
        (802, 0, "fabric manager"),
        (803, 0, "of different versions"),
        (999, 0, "the NVIDIA driver does not start (CUDA error 999)"),
    ],
)
def test_what_the_driver_says_is_told_in_words(
    init: int, count: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimpleNamespace(cuInit=lambda _flags: init, cuDeviceGetCount=lambda _count: count)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: driver)
    assert reason in machine.cuda_driver.__wrapped__().reason


NO_KERNEL = """CUDA error: no kernel image is available for execution on the device
Search for `cudaErrorNoKernelImageForDevice' in https://docs.nvidia.com/cuda/ for more information.
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
NO_COMPILER = """backend='inductor' raised:
RuntimeError: Failed to find C compiler.

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace. For even more developer context, set TORCH_LOGS="+dynamo"
"""


def test_advice_behind_an_error_is_not_taken_for_the_error() -> None:
    assert last_line(RuntimeError(NO_KERNEL)).endswith(
        "no kernel image is available for execution on the device"
    )
    assert last_line(RuntimeError(NO_COMPILER)) == "RuntimeError: Failed to find C compiler."
    assert last_line(KeyError()) == "KeyError"
    assert last_line(RuntimeError("Traceback\n  of the archive\nValueError: x")) == "ValueError: x"


def test_float32_is_strict_even_if_the_app_allows_tf32_by_the_new_names() -> None:
    backends: Any = torch.backends
    owners = (backends, backends.cudnn.conv, backends.cuda.matmul)
    before = [owner.fp32_precision for owner in owners]
    owners[0].fp32_precision = "tf32"
    try:
        for allowed, precision in ((False, "ieee"), (True, "tf32")):
            allow_tf32(allowed)
            assert [owner.fp32_precision for owner in owners[1:]] == [precision, precision]
    finally:
        for owner, value in zip(owners, before, strict=True):
            owner.fp32_precision = value


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "CUDA failure 700: an illegal memory access",
        "This operator requires cuDNN, but cuDNN is unavailable",
        "BFCArena: Failed to allocate memory for requested buffer",
    ],
)
def test_a_gpu_that_fails_in_a_run_is_no_fault_of_the_file(message: str, trained: Trained) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    with open_session(Artifact.open(trained.onnx), Run(threads=1)) as session:
        session._session, feeds = SimpleNamespace(run=fail), {"image": np.zeros((1, 1, 28, 28), "f4")}  # type: ignore[attr-defined]
        with pytest.raises(Exception, match="could not run") as on_cpu:
            session.run(feeds)
        session.device = "cuda:0"
        with pytest.raises(DeviceUnavailableError, match=r"on cuda:0: "):
            session.run(feeds)
    assert not isinstance(on_cpu.value, DeviceUnavailableError)


def test_compiled_needs_a_c_compiler_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.TorchDevices, "status", lambda self, device: DeviceStatus(True))
    monkeypatch.setattr("shutil.which", lambda name: name if name in ("g++", "my-cc") else None)
    monkeypatch.delenv("CC", raising=False)
    compiled: Any = RUNTIMES.get("compiled")
    assert compiled.status("cpu").usable
    assert "torch.compile needs a C compiler, such as gcc" in compiled.status("cuda:0").reason
    monkeypatch.setenv("CC", "my-cc")
    assert compiled.status("cuda:0").usable


def test_compiled_is_not_told_off_for_strict_float32(trained: Trained) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session(Artifact.open(trained.checkpoint), Run("compiled", "cpu", 1)).close()
        warnings.warn("TensorFloat32 tensor cores for float32 available but not enabled.", stacklevel=1)


def test_the_libraries_of_cuda_are_among_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"of {package}")
    assert {"nvidia-cudnn-cu13", "nvidia-cublas", "triton"} <= machine.versions().keys()
