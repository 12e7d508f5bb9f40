"""Compiled: torch.compile of a checkpoint's network. The first run of each batch size compiles for that size alone.

With CUDA graphs the compiled network is recorded as an eager one is, in one thread and for eight shapes. torch.compile
has CUDA graphs of its own, which have neither limit.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from contextvars import ContextVar
from typing import TYPE_CHECKING

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus
from cnndeploy.runtimes._session import Activation, Arrays
from cnndeploy.runtimes._torch import TorchRuntime
from cnndeploy.runtimes.eager import EagerSession, network_of

if TYPE_CHECKING:
    import torch

# For GPUs, whose kernels Triton launches by code in C, and for the CPU: language, variable and names of compilers.
# Source: triton/runtime/build.py; torch/_inductor/cpp_builder.py.
_COMPILERS = ("C", "CC", ("gcc", "clang")), ("C++", "CXX", ("g++", "clang++", "c++"))
_BATCH_SIZES = 64
_are_allowed: ContextVar[bool] = ContextVar("batch_sizes_are_allowed", default=False)


class CompiledSession(EagerSession):
    """A network that torch.compile runs."""

    def activations(self, feeds: Arrays) -> list[Activation]:  # noqa: ARG002 - as every session's
        """Return nothing, because fused code has no inner outputs."""
        return []

    def _prepare(self) -> None:
        super()._prepare()
        if not _are_allowed.get():
            _allow_batch_sizes()


class CompiledRuntime(TorchRuntime):
    """torch's devices, if there is the compiler that torch.compile needs for them."""

    def status(self, device: str) -> DeviceStatus:
        """Return whether torch can compute on one device, and compile for it."""
        status = super().status(device)
        language, variable, compilers = _COMPILERS[device == "cpu"]
        if status.usable and not any(map(shutil.which, (os.environ.get(variable, ""), *compilers))):
            reason = (
                f"torch.compile needs a {language} compiler, such as {compilers[0]}; install one, or set {variable} to "
                "its name"
            )
            return DeviceStatus(False, reason)
        return status


def _load(artifact: Artifact, device: torch.device) -> torch.nn.Module:
    """Load the network and mark it to be compiled as a whole; it never falls back to eager."""
    network = network_of(artifact, device)
    # it warns of a CUDA toolkit without a GPU, which does not matter on a CPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # float32 is asked for on purpose; older versions of torch warn of it at the first run
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    # in this process, so that no compiler process outlives it
    network.compile(fullgraph=True, dynamic=False, options={"compile_threads": 1})
    return network


def _allow_batch_sizes() -> None:
    """Let torch compile for more batch sizes than eight; the limit is one of each thread, or context, that calls it.

    Source: torch/utils/_config_module.py, whose overrides are context variables.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(_BATCH_SIZES, torch._dynamo.config.recompile_limit)
    _are_allowed.set(True)


RUNTIME = CompiledRuntime("compiled", ("checkpoint",), _load, CompiledSession, graphs=True)
