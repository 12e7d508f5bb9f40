"""Machine: what a process may use of it, and the facts that a figure needs beside it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import math
import os
import platform
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cnndeploy import nvml

_PACKAGES = "numpy torch torchvision onnx onnxscript onnxruntime onnxruntime-gpu openvino executorch"
# The CUDA libraries and the compiler that torch and ONNX Runtime call; which kernel computes what is up to them.
_PACKAGES += " nvidia-cublas nvidia-cudnn-cu12 nvidia-cudnn-cu13 triton"
_TICKS = "user nice system idle iowait irq softirq steal"
_CGROUPS = PurePosixPath("/sys/fs/cgroup")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _NEVER = -1, -4, 2**31 - 1  # malloc.h of the GNU C library
# What cuInit and cuDeviceGetCount return most often, in words. Source: CUDA Driver API, cuda.h, CUresult.
_CUDA_ERRORS = {
    3: "CUDA was started before this process was forked; start processes by multiprocessing's 'spawn'",
    100: "no GPU is visible; look at CUDA_VISIBLE_DEVICES",
    101: "CUDA_VISIBLE_DEVICES names a GPU that there is not",
    802: "the GPUs are not ready; on machines with NVSwitch the fabric manager must run",
    803: "the NVIDIA driver and the libraries that came with it are of different versions; restart the machine",
    804: "the CUDA compatibility libraries do not support this GPU",
}


def usable_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: by its affinity and its cgroups' quota, not the machine's size.

    ``root`` is where /proc and /sys are.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = itertools.chain.from_iterable(map(_cpu_quota, _cgroup_folders(root)))
    return max(1, math.floor(min([affinity, *quotas])))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may still take; None if the machine does not say.

    That is what the kernel has, and what is left to the process's cgroups of version 2. ``root`` is where /proc and
    /sys are. Source: proc(5), MemAvailable; the kernel's cgroup-v2.rst, memory.max.
    """
    value = _proc_entry(root / "proc/meminfo", "MemAvailable")
    left = [] if value is None else [1024 * int(value.split()[0])]
    return min(itertools.chain(left, *map(_memory_left, _cgroup_folders(root))), default=None)


def _memory_left(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        limit = int((folder / "memory.max").read_text())  # or "max"
        cached = int(_proc_entry(folder / "memory.stat", "inactive_file", " ") or 0)
        yield max(0, limit - int((folder / "memory.current").read_text()) + cached)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of those around them; each limits all within it."""
    paths = _own_cgroups(root)
    for mount in _cgroup_mounts(root):
        own = paths.get(mount.version, PurePosixPath("/"))
        inner = own.relative_to(mount.shown) if own.is_relative_to(mount.shown) else PurePosixPath()
        for path in (inner, *inner.parents):
            yield root / mount.point.relative_to("/") / path


def _cpu_quota(folder: Path) -> Iterator[float]:
    """Yield a cgroup's quota in CPUs, if it has one.

    Source: cgroups(7); the kernel's cgroup-v2.rst, cpu.max, and sched-bwc.rst, cpu.cfs_quota_us.
    """
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (folder / "cpu.max").read_text().split()
        if limit != "max":
            yield int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        limit = (folder / "cpu.cfs_quota_us").read_text()
        if int(limit) > 0:  # -1 is none
            yield int(limit) / int((folder / "cpu.cfs_period_us").read_text())


def _own_cgroups(root: Path) -> dict[int, PurePosixPath]:
    """Return this process's cgroup in version 2, and in the hierarchy of version 1 that has the controller cpu."""
    paths = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            # a cgroup outside of the container's own namespace begins with /..
            parts = [part for part in path.split("/") if part not in ("", ".", "..")]
            if number == "0" or "cpu" in controllers.split(","):
                paths[2 if number == "0" else 1] = PurePosixPath("/", *parts)
    return paths


class _CgroupMount(NamedTuple):
    """A place where cgroups are mounted; ``shown`` is the cgroup that is at ``point``, often a container's own."""

    version: int
    point: PurePosixPath
    shown: PurePosixPath = PurePosixPath("/")


def _cgroup_mounts(root: Path) -> set[_CgroupMount]:
    """Return the usual places, and those that the kernel lists."""
    usual = {1: ("cpu", "cpu,cpuacct"), 2: ("", "unified")}
    mounts = {_CgroupMount(key, _CGROUPS / name) for key, names in usual.items() for name in names}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            place, _, kind = line.partition(" - ")
            system, _, options = kind.split(" ", 2)
            if system == "cgroup2" or (system == "cgroup" and "cpu" in options.split(",")):
                shown, point = (PurePosixPath(name.replace("\\040", " ")) for name in place.split(" ")[3:5])
                mounts.add(_CgroupMount(2 if system == "cgroup2" else 1, point, shown))
    return mounts


def busy_cpus(seconds: float) -> float | None:
    """Measure for some ``seconds`` how many CPUs the whole machine keeps busy; None if it does not say.

    Source: proc(5), /proc/stat.
    """
    before = cpu_ticks()
    time.sleep(seconds)
    if before is None or (after := cpu_ticks()) is None:
        return None
    passed = {name: after[name] - before[name] for name in after}
    idle = passed["idle"] + passed["iowait"]
    return (os.cpu_count() or 1) * (1 - idle / max(1, sum(passed.values())))


def cpu_ticks() -> dict[str, int] | None:
    """Return what the CPUs of the whole machine have done since its start, in ticks; None if it does not say."""
    with contextlib.suppress(OSError, ValueError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        return dict(zip(_TICKS.split(), map(int, fields), strict=True))
    return None


@contextlib.contextmanager
def patient_threads() -> Iterator[None]:
    """Limit how long torch's OpenMP threads spin when they wait, unless the user has set it; import torch within.

    By default they spin for milliseconds, even if the thread that they wait for has lost its core to another process.
    On a busy machine a training epoch then takes many times as long. Measured with LeNet on two cores, in
    microseconds an image on a quiet machine: asleep at once 53, after 1,000 turns 44, after 10,000 turns 42, by
    default 36. Beside programs that compute with threads, in seconds for 6,000 images: 1.5 to 1.7, 1.4 to 2.2, 2.0 to
    3.7. Processes that are started later are not affected.

    Source: libgomp's manual, GOMP_SPINCOUNT; it is read once, when the library is loaded.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide from the user what the block prints, warns of, or logs below the level of an error."""
    import logging  # not for an app that only loads a model

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process has held since :func:`reset_peak_memory`; None if it is unknown.

    Source: proc(5), /proc/self/status, VmHWM.
    """
    value = _proc_entry("/proc/self/status", "VmHWM")
    return int(value.split()[0]) * 1024 if value else None


def _proc_entry(file: str | Path, name: str, separator: str = ":") -> str | None:
    """Return the first entry for ``name`` in a file of /proc; None if there is none, or no such file."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(name):
                return line.partition(separator)[2].strip()
    return None


def reset_peak_memory() -> None:
    """Measure the peak from now on. Source: proc(5), /proc/self/clear_refs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def end_with_parent() -> None:
    """Have the kernel end this process when the process that started it ends, in whatever way.

    On systems without prctl nothing changes. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep_freed_memory() -> None:
    """Keep the memory that this process frees, so that the next training step can use it again.

    By default the C library returns large blocks to the kernel at once, which must then clear and map every page
    again: this took a third of LeNet's epoch on two cores.

    On systems without mallopt nothing changes. Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """The names of the GPUs that the NVIDIA driver shows; if there are none, ``reason`` says why.

    ``bus_ids`` say where they are on the PCI bus. ``process`` is the one that asked. The driver does not work in
    processes that are forked from it.
    """

    gpus: tuple[str, ...]
    version: str | None = None
    reason: str = ""
    process: int = field(default_factory=os.getpid)
    bus_ids: tuple[str, ...] = ()

    def bus_id(self, device: str) -> str | None:
        """Return where a device, ``cuda:N``, is on the PCI bus; None for the CPU, and if it is unknown."""
        known = {f"cuda:{index}": bus_id for index, bus_id in enumerate(self.bus_ids)}
        return known.get(device) or None


@cache
def cuda_driver() -> CudaDriver:
    """Ask the NVIDIA driver itself, so that neither torch nor onnxruntime has to be imported.

    Source: CUDA Driver API, cuInit, cuDriverGetVersion, cuDeviceGetCount, cuDeviceGetName, cuDeviceGetPCIBusId.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return CudaDriver((), reason="no NVIDIA driver on this machine")
    count, version = ctypes.c_int(), ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        reason = f"the NVIDIA driver does not start (CUDA error {status})"
        return CudaDriver((), reason=_CUDA_ERRORS.get(status, reason))
    driver.cuDriverGetVersion(ctypes.byref(version))
    text = ctypes.create_string_buffer(256)
    gpus, bus_ids = [], []
    for index in range(count.value):
        driver.cuDeviceGetName(text, len(text), index)
        gpus.append(text.value.decode())
        unknown = driver.cuDeviceGetPCIBusId(text, len(text), index)
        bus_ids.append("" if unknown else text.value.decode())
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    reason = "" if gpus else "the NVIDIA driver shows no GPU"
    return CudaDriver(tuple(gpus), cuda, reason, bus_ids=tuple(bus_ids))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures and files depend on, without importing them."""
    from importlib import metadata  # not for an app that only loads a model

    found = {"python": platform.python_version(), "cnndeploy": metadata.version("cnndeploy")}
    for package in _PACKAGES.split():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def environment() -> dict[str, Any]:
    """Return what a figure depends on: processor, CPUs, memory in bytes, GPUs, system, versions."""
    driver = cuda_driver()
    return {
        "cpu": cpu_model(),
        "usable_cpus": usable_cpus(),
        "memory_bytes": _memory_bytes(),
        "gpus": list(driver.gpus),
        "cuda_driver": driver.version,  # of CUDA, as in 13.0
        "nvidia_driver": nvml.driver_version() if driver.gpus else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
    }


def cpu_model() -> str:
    """Return the processor's name, as the kernel tells it."""
    return _proc_entry("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


@cache
def int8_may_saturate() -> bool:
    """Return whether sums of 8-bit products may not fit: x86 processors without VNNI add two of them up in 16 bits.

    Return False if the processor does not say what it has. Source: Intel's manual, VPMADDUBSW and VPDPBUSD.
    """
    flags = set((_proc_entry("/proc/cpuinfo", "flags") or "").split())
    return bool(flags) and flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def _memory_bytes() -> int | None:
    with contextlib.suppress(AttributeError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
