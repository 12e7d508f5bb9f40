"""Devices and their names, the devices of torch, and how often this process was forked."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnndeploy.errors import DeviceUnavailableError, MissingDependencyError
from cnndeploy.machine import cuda_driver

if TYPE_CHECKING:
    import torch

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


def device_index(device: str, runtime: str, devices: Mapping[str, DeviceStatus]) -> int | None:
    """Return the number of the GPU that a device names, or None for the CPU; ``cuda`` is ``cuda:0``.

    Raise DeviceUnavailableError if the device is unknown or does not work here; the message lists those that do.
    """
    name = "cuda:0" if device == "cuda" else device
    status = devices.get(name, DeviceStatus(False, "no such device is known"))
    if name not in devices and re.fullmatch(r"cuda:\d+", name):
        status = devices.get("cuda", DeviceStatus(False, "this machine has no such GPU"))
    if not status.usable:
        usable = ", ".join(known for known, its in devices.items() if its.usable) or "none"
        raise DeviceUnavailableError(
            f"The device {device!r} is not available to {runtime}: {status.reason}. "
            f"Available: {usable}. Nothing was run on another device instead."
        )
    return int(name.partition(":")[2]) if name != "cpu" else None


def installed(package: str) -> DeviceStatus:
    """Return the status of the CPU for a package: it works if the package is installed."""
    missing = importlib.util.find_spec(package) is None
    return DeviceStatus(not missing, str(MissingDependencyError(package)) if missing else "")


def torch_devices() -> dict[str, DeviceStatus]:
    """Return the devices that torch knows here, and whether it can compute on them."""
    devices = {"cpu": installed("torch")}
    if not devices["cpu"].usable:
        return devices
    driver = cuda_driver()
    if not driver.gpus:  # torch itself need not be imported to know
        return devices | {"cuda": DeviceStatus(False, driver.reason)}
    import torch

    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} cannot use this GPU (its CUDA: {torch.version.cuda or 'none'})"
        return devices | {"cuda": DeviceStatus(False, reason)}
    return devices | {f"cuda:{index}": _probe(index) for index in range(torch.cuda.device_count())}


def _probe(index: int) -> DeviceStatus:
    """Try to compute on a GPU: torch also lists GPUs for which its build has no kernels."""
    import torch

    try:
        torch.ones(1, device=f"cuda:{index}").add(1).item()
    except RuntimeError as error:
        return DeviceStatus(False, f"torch {torch.__version__} cannot compute on it: {last_line(error)}")
    return DeviceStatus(True)


def open_device(device: str, runtime: str, threads: int, tf32: bool = False) -> torch.device:
    """Return a torch device once it is known to work.

    Set ``threads``, and on CUDA ``tf32``, for the whole process: torch has one of each.
    """
    import torch

    index = device_index(device, runtime, torch_devices())
    if threads > 1 and fork_count():
        raise DeviceUnavailableError(
            "torch hangs with more than one thread in a process that was forked from one in which it had threads. "
            "Open it with threads=1, or start processes by multiprocessing's 'spawn'."
        )
    torch.set_num_threads(threads)
    if index is None:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.device("cuda", index)


def last_line(error: Exception) -> str:
    """Return the last line of an error, which says what went wrong; torch puts its own stack before it."""
    return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__
