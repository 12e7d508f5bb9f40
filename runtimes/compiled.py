"""Compiled: torch.compile of a checkpoint's network. The first run of each batch size compiles for that size alone."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, torch_devices
from cnndeploy.runtimes._session import Activation, Arrays
from cnndeploy.runtimes._torch import TorchRuntime
from cnndeploy.runtimes.eager import EagerSession, network_of

if TYPE_CHECKING:
    import torch

_COMPILERS = ("g++", "clang++", "c++")
_BATCH_SIZES = 64


class CompiledSession(EagerSession):
    """A network that torch.compile runs."""

    def activations(self, feeds: Arrays) -> list[Activation]:  # noqa: ARG002 - as every session's
        """Return nothing, because fused code has no inner outputs."""
        return []


def _devices() -> dict[str, DeviceStatus]:
    """Return torch's devices; the CPU only if there is a compiler."""
    devices = torch_devices()
    if devices["cpu"].usable and not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
        reason = "torch.compile needs a C++ compiler, such as g++; install one, or set CXX to its name"
        devices["cpu"] = DeviceStatus(False, reason)
    return devices


def _load(artifact: Artifact, device: torch.device) -> torch.nn.Module:
    """Load the network and mark it to be compiled as a whole; it never falls back to eager."""
    import torch._dynamo

    network = network_of(artifact, device)
    # by default eight batch sizes are too many
    torch._dynamo.config.recompile_limit = max(_BATCH_SIZES, torch._dynamo.config.recompile_limit)
    # it warns of a CUDA toolkit without a GPU, which does not matter on a CPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # in this process, so that no compiler process outlives it
    network.compile(fullgraph=True, dynamic=False, options={"compile_threads": 1})
    return network


RUNTIME = TorchRuntime("compiled", ("checkpoint",), _load, CompiledSession, _devices)
