"""Eager PyTorch: runs a checkpoint as Python calls it, layer by layer. The reference for every other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnndeploy.artifact import Artifact
from cnndeploy.runtimes import DeviceStatus
from cnndeploy.runtimes._torch import TorchSession, open_device, torch_devices

if TYPE_CHECKING:
    import torch


class EagerSession(TorchSession):
    """A checkpoint's network in eval mode."""

    def placement(self) -> dict[str, str]:
        """Parameter name to device."""
        module = self._module
        return {} if module is None else {name: str(p.device) for name, p in module.named_parameters()}


class EagerRuntime:
    """Opens checkpoints."""

    formats = ("checkpoint",)

    def devices(self) -> dict[str, DeviceStatus]:
        """As torch sees them."""
        return torch_devices()

    def open(self, artifact: Artifact, *, device: str, threads: int) -> EagerSession:
        """Build the network, load its weights, move it to ``device``."""
        torch_device = open_device(device, "eager", threads)

        from cnndeploy.training.checkpoint import Checkpoint

        network: torch.nn.Module = Checkpoint.load(artifact.path).network().to(torch_device)
        return EagerSession(artifact, network, torch_device, threads)


RUNTIME = EagerRuntime()
