"""Runtimes: open an artifact on a device and run it. One file each; imported as ``cnndeploy.runtimes``.

A runtime runs only on the device that it was asked for, and never times itself.
"""

from __future__ import annotations

if __name__ != "cnndeploy.runtimes":
    raise ImportError(f"import this package as cnndeploy.runtimes, not as {__name__}")

from cnndeploy.devices import DeviceStatus, device_index
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes._open import open_session
from cnndeploy.runtimes._session import RUNTIMES, Activation, Arrays, DeviceArray, Runtime, Session

__all__ = [
    "RUNTIMES",
    "Activation",
    "Arrays",
    "DeviceArray",
    "DeviceStatus",
    "Run",
    "Runtime",
    "RuntimeOptions",
    "Session",
    "device_index",
    "open_session",
]
