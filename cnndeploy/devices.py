"""Devices by their names, and whether this process was forked, which threads of a runtime do not survive."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cnndeploy.errors import DeviceUnavailableError

_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - a fact of the process
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def fork_count() -> int:
    """Count the forks from the process that imported this module to the one that runs it."""
    return _forks


def was_forked() -> bool:
    """Return whether this process was forked off after this module was imported."""
    return _forks > 0


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Whether a device works on this machine, and if not, why."""

    usable: bool
    reason: str = ""


def device_index(device: str, runtime: str, devices: Mapping[str, DeviceStatus]) -> int | None:
    """The GPU that a device names, or None for the CPU, once it is known to work; ``cuda`` is ``cuda:0``.

    Raises:
        DeviceUnavailableError: Unknown, or it does not work here; the message lists those that do.
    """
    name = "cuda:0" if device == "cuda" else device
    status = devices.get(name, DeviceStatus(False, "no such device is known"))
    if name not in devices and re.fullmatch(r"cuda:\d+", name):
        status = devices.get("cuda", DeviceStatus(False, "this machine has no such GPU"))
    if not status.usable:
        usable = ", ".join(each for each, its in devices.items() if its.usable) or "none"
        raise DeviceUnavailableError(
            f"The device {device!r} is not available to {runtime}: {status.reason}. "
            f"Available: {usable}. Nothing was run on another device instead."
        )
    return int(name.partition(":")[2]) if name != "cpu" else None
