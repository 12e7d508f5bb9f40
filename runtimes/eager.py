"""Eager PyTorch: runs a checkpoint as Python calls it, layer by layer. The reference for every other."""

from __future__ import annotations

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, DeviceUnavailableError
from cnndeploy.runtimes import DeviceStatus
from cnndeploy.runtimes._torch import TorchSession, open_device, torch_devices


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

        import torch

        from cnndeploy.training.checkpoint import Checkpoint

        checkpoint = Checkpoint.load(artifact.path)
        if checkpoint.sha256 != artifact.sha256:
            raise ArtifactError(f"{artifact.path} has changed since it was opened; open it anew")
        try:
            network = checkpoint.network().to(torch_device)
        except torch.OutOfMemoryError as error:
            raise DeviceUnavailableError(
                f"{artifact.path} does not fit into the memory of {device}"
            ) from error
        return EagerSession(artifact, network, torch_device, threads)


RUNTIME = EagerRuntime()
