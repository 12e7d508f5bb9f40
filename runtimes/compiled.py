"""torch.compile of a checkpoint's network. It compiles at the first run of each batch size, for that size alone."""

from __future__ import annotations

import logging
import os
import shutil

from cnndeploy.artifact import Artifact
from cnndeploy.runtimes import Activation, Arrays, DeviceStatus, RuntimeOptions
from cnndeploy.runtimes.eager import EagerSession, network_of
from cnndeploy.torch_device import open_device, torch_devices

_COMPILERS = ("g++", "clang++", "c++")
_BATCH_SIZES = 64


class CompiledSession(EagerSession):
    """A network that torch.compile has taken over."""

    def activations(self, feeds: Arrays) -> list[Activation]:
        """None: what is fused has no inner outputs."""
        del feeds
        return []


class CompiledRuntime:
    """Opens checkpoints; on a CPU torch.compile needs a C++ compiler."""

    formats = ("checkpoint",)
    package = "torch"
    options: frozenset[str] = frozenset()

    def devices(self) -> dict[str, DeviceStatus]:
        """As torch sees them; the CPU only where there is a compiler."""
        devices = torch_devices()
        if devices["cpu"].usable and not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
            reason = "torch.compile needs a C++ compiler, as g++; install one, or name it in CXX"
            devices["cpu"] = DeviceStatus(False, reason)
        return devices

    def open(
        self, artifact: Artifact, *, device: str, threads: int, tf32: bool, options: RuntimeOptions
    ) -> CompiledSession:
        """Load the network and mark it to be compiled whole: what cannot be is an error, not a fall back to eager."""
        del options  # it has none
        torch_device = open_device(device, "compiled", threads, tf32)
        import torch._dynamo

        network = network_of(artifact, torch_device)
        # by default eight batch sizes are too many
        torch._dynamo.config.recompile_limit = max(_BATCH_SIZES, torch._dynamo.config.recompile_limit)
        # it warns of a CUDA toolkit without a GPU, which is nothing to a CPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        # in this process, so that no compiler process outlives it
        network.compile(fullgraph=True, dynamic=False, options={"compile_threads": 1})
        return CompiledSession(artifact, network, torch_device, threads, tf32)


RUNTIME = CompiledRuntime()
