"""NVML, NVIDIA's management library: what goes on at a GPU, asked without starting CUDA.

NVML numbers GPUs independently of CUDA_VISIBLE_DEVICES, so a GPU is named here by its PCI bus id. A function returns
None, or an empty set, if NVML does not tell: the library or a permission is missing, or the GPU is divided into MIG
instances.

Source: NVML API Reference Guide, Device Queries, NvmlClocksEventReasons and nvmlProcessInfo_t.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

_MOST_PROCESSES = 256
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE, as on Windows
# HwSlowdown, 0x08, is left out: it may also be set while the GPU changes its clock because it has nothing to do.
_SLOWED = {"heat": 0x20 | 0x40, "its power limit": 0x04 | 0x80}


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, such as ``580.95.05``."""
    version = ctypes.create_string_buffer(80)
    return version.value.decode() if _call("nvmlSystemGetDriverVersion", version, len(version)) else None


def memory_bytes(bus_id: str, pid: int) -> int | None:
    """Return how much of a GPU's memory a process holds; None too if the process is not listed, as in containers."""
    count, processes = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    if not _ask("nvmlDeviceGetComputeRunningProcesses_v3", bus_id, ctypes.byref(count), processes):
        return None
    listed = {process.pid: process.memory for process in processes[: count.value]}
    return None if listed.get(pid) == _UNKNOWN else listed.get(pid)


def utilization(bus_id: str) -> float | None:
    """Return the share of the time in which a GPU computed, over NVML's last sample of at most a second."""
    shares = _Utilization()
    asked = _ask("nvmlDeviceGetUtilizationRates", bus_id, ctypes.byref(shares))
    return shares.gpu / 100 if asked else None


def slowed_by(bus_id: str) -> set[str]:
    """Return what lowers a GPU's clock now, ``heat``, ``its power limit`` or both; nothing if it does not tell."""
    reasons = ctypes.c_ulonglong()
    new, old = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
    told = any(_ask(name, bus_id, ctypes.byref(reasons)) for name in (new, old))
    return {cause for cause, bits in _SLOWED.items() if told and reasons.value & bits}


def _ask(name: str, bus_id: str, *results: object) -> bool:
    """Ask about one GPU, and return whether it answers.

    One that is divided by MIG is not asked: it would answer for all its parts together.
    """
    device, mode, later = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    if not _call("nvmlDeviceGetHandleByPciBusId_v2", bus_id.encode(), ctypes.byref(device)):
        return False
    _call("nvmlDeviceGetMigMode", device, ctypes.byref(mode), ctypes.byref(later))
    return not mode.value and _call(name, device, *results)


def _call(name: str, *arguments: object) -> bool:
    """Call a function of the library; return whether there is such a function and it succeeds."""
    function = getattr(_library(), name, None)
    return function is not None and function(*arguments) == 0


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
        return None if library.nvmlInit_v2() else library
    except (OSError, AttributeError):
        return None
