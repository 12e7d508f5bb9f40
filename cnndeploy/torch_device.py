"""torch's devices: which work here, and how one is opened for a runtime or for training."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from cnndeploy.devices import DeviceStatus, device_index, was_forked
from cnndeploy.errors import DeviceUnavailableError, MissingDependencyError
from cnndeploy.machine import cuda_driver

if TYPE_CHECKING:
    import torch


def torch_devices() -> dict[str, DeviceStatus]:
    """The devices that torch can compute on here."""
    if importlib.util.find_spec("torch") is None:
        return {"cpu": DeviceStatus(False, str(MissingDependencyError("torch")))}
    devices = {"cpu": DeviceStatus(True)}
    driver = cuda_driver()
    if not driver.gpus:  # torch itself need not be imported to know
        return devices | {"cuda": DeviceStatus(False, driver.reason)}
    import torch

    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} cannot use this GPU (its CUDA: {torch.version.cuda or 'none'})"
        return devices | {"cuda": DeviceStatus(False, reason)}
    return devices | {f"cuda:{index}": _probe(index) for index in range(torch.cuda.device_count())}


def _probe(index: int) -> DeviceStatus:
    """Try to compute on a GPU: torch lists one even if its build has no kernels for it."""
    import torch

    try:
        torch.ones(1, device=f"cuda:{index}").add(1).item()
    except RuntimeError as error:
        return DeviceStatus(False, f"torch {torch.__version__} cannot compute on it: {last_line(error)}")
    return DeviceStatus(True)


def open_device(device: str, runtime: str, threads: int, tf32: bool = False) -> torch.device:
    """The torch device, once it is known to work.

    ``threads``, and on CUDA ``tf32``, is set for the whole process: torch has one of each.
    """
    import torch

    index = device_index(device, runtime, torch_devices())
    if threads > 1 and was_forked():
        raise DeviceUnavailableError(
            "torch hangs with more than one thread in a process that was forked off one in which it had threads. "
            "Open it with threads=1, or start processes by multiprocessing's 'spawn'."
        )
    torch.set_num_threads(threads)
    if index is None:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.device("cuda", index)


def last_line(error: Exception) -> str:
    """Return what went wrong, before which torch puts its own stack."""
    return str(error).strip().rpartition("\n")[2].strip() or type(error).__name__
