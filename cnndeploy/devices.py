"""Devices and their names, the devices of torch, and how often this process was forked."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from cnndeploy.errors import DeviceUnavailableError, MissingDependencyError
from cnndeploy.machine import cuda_driver

if TYPE_CHECKING:
    import torch

_NO_SUCH_GPU = "this machine has no such GPU"
# How lines begin that torch puts behind an error.
_ADVICE = (
    "CUDA kernel errors",
    "Compile with",
    "For debugging",
    "For even more",
    "Search for `cuda",
    "Set TORCHDYNAMO",
    "You can suppress this exception",
)

_forks: list[None] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(None))


def fork_count() -> int:
    """Count the forks from the process that imported this module to this one; a runtime's threads survive none."""
    return len(_forks)


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Whether a device works on this machine, and if not, why."""

    usable: bool
    reason: str = ""


class HasDevices(Protocol):
    """What can say which devices work, as a runtime can."""

    def devices(self) -> Mapping[str, DeviceStatus]: ...


def status_of(runtime: HasDevices, device: str) -> DeviceStatus:
    """Return the status of one device, ``cpu`` or ``cuda:N``, and start nothing on another.

    A runtime that does not know how to ask about one device is asked about all.
    """
    if (ask := getattr(runtime, "status", None)) is not None:
        status: DeviceStatus = ask(device)
        return status
    return _among(runtime.devices(), device)


def _among(devices: Mapping[str, DeviceStatus], device: str) -> DeviceStatus:
    status = devices.get(device, DeviceStatus(False, "no such device is known"))
    if device not in devices and re.fullmatch(r"cuda:\d+", device):
        status = devices.get("cuda", DeviceStatus(False, _NO_SUCH_GPU))
    return status


def require_device(device: str, name: str, runtime: HasDevices) -> int | None:
    """Return the number of the GPU that a device names, or None for the CPU; ``cuda`` is ``cuda:0``.

    Only this device is tried. Raise DeviceUnavailableError if it is unknown or does not work here; to list those that
    do, the message tries them all.
    """
    status = status_of(runtime, _exact(device))
    if status.usable:
        return _number(device)
    return device_index(device, name, {**runtime.devices(), _exact(device): status})


def device_index(device: str, runtime: str, devices: Mapping[str, DeviceStatus]) -> int | None:
    """Return the number of the GPU that a device names, or None for the CPU; ``cuda`` is ``cuda:0``.

    Raise DeviceUnavailableError if the device is unknown or does not work here; the message lists those that do.
    """
    status = _among(devices, _exact(device))
    if not status.usable:
        usable = ", ".join(known for known, its in devices.items() if its.usable) or "none"
        raise DeviceUnavailableError(
            f"The device {device!r} is not available to {runtime}: {status.reason}. "
            f"Available: {usable}. Nothing was run on another device instead."
        )
    return _number(device)


def _exact(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def _number(device: str) -> int | None:
    return None if device == "cpu" else int(_exact(device).partition(":")[2])


def gpu_status(device: str) -> DeviceStatus:
    """Return whether the NVIDIA driver shows a GPU, ``cuda:N``, to this process."""
    if not re.fullmatch(r"cuda:\d+", device):
        return DeviceStatus(False, "no such device is known")
    driver = cuda_driver()
    if not driver.gpus:
        return DeviceStatus(False, driver.reason)
    if int(device.partition(":")[2]) >= len(driver.gpus):
        return DeviceStatus(False, _NO_SUCH_GPU)
    if driver.process != os.getpid():
        return DeviceStatus(
            False,
            "CUDA was started in the process that this one was forked from, and does not survive a fork. Start "
            "processes by multiprocessing's 'spawn'",
        )
    return DeviceStatus(True)


def gpu_statuses(status: Callable[[str], DeviceStatus]) -> dict[str, DeviceStatus]:
    """Return the status of every GPU; ``cuda`` stands for them if there is none."""
    count = len(cuda_driver().gpus)
    return {name: status(name) for name in map("cuda:{}".format, range(count))} or {"cuda": status("cuda:0")}


def installed(package: str) -> DeviceStatus:
    """Return the status of the CPU for a package: it works if the package is installed."""
    missing = importlib.util.find_spec(package) is None
    return DeviceStatus(not missing, str(MissingDependencyError(package)) if missing else "")


class TorchDevices:
    """The devices of torch, as a runtime that has no others has them."""

    def devices(self) -> dict[str, DeviceStatus]:
        """Return the CPU and every GPU, and whether torch can compute on it."""
        cpu = self.status("cpu")
        return {"cpu": cpu} | (gpu_statuses(self.status) if cpu.usable else {})

    def status(self, device: str) -> DeviceStatus:
        """Return whether torch can compute on one device, and start nothing on another."""
        cpu = installed("torch")
        if device == "cpu" or not cpu.usable:
            return cpu
        gpu = gpu_status(device)
        if not gpu.usable:  # torch itself need not be imported to know
            return gpu
        import torch

        if not torch.cuda.is_available():
            reason = (
                f"torch {torch.__version__} cannot use this GPU (its CUDA: {torch.version.cuda or 'none'})"
            )
            return DeviceStatus(False, reason)
        try:  # torch also lists GPUs for which its build has no kernels
            torch.ones(1, device=device).add(1).item()
        except RuntimeError as error:
            return DeviceStatus(False, f"torch {torch.__version__} cannot compute on it: {last_line(error)}")
        return DeviceStatus(True)


def open_device(device: str, runtime: str, threads: int, tf32: bool = False) -> torch.device:
    """Return a torch device once it is known to work.

    Set ``threads``, and on CUDA ``tf32``, for the whole process: torch has one of each.
    """
    import torch

    index = require_device(device, runtime, TorchDevices())
    if threads > 1 and fork_count():
        raise DeviceUnavailableError(
            "torch hangs with more than one thread in a process that was forked from one in which it had threads. "
            "Open it with threads=1, or start processes by multiprocessing's 'spawn'."
        )
    torch.set_num_threads(threads)
    if index is None:
        return torch.device("cpu")
    allow_tf32(tf32)
    return torch.device("cuda", index)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Have torch compute with so many threads, in the whole process, while the block runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def allow_tf32(tf32: bool) -> None:
    """Set for the whole process whether torch may round the factors of products to TF32 on a GPU.

    The older names, ``allow_tf32``, leave convolutions as the app has set ``torch.backends.fp32_precision``.
    """
    import torch

    precision = "tf32" if tf32 else "ieee"
    for kind in (torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn).conv):
        kind.fp32_precision = precision


def last_line(error: Exception) -> str:
    """Return the last line of an error that says what went wrong; torch puts its own stack before it, advice behind."""
    lines = (line.strip() for line in str(error).splitlines())
    said = [line for line in lines if line and not line.startswith(_ADVICE)]
    return said[-1] if said else type(error).__name__
