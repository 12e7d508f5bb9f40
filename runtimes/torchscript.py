"""TorchScript: runs an exported archive with torch, without the Python code of its network.

A TorchScript archive is a program: open only what you trust. torch.jit is deprecated as a whole and
unsupported from Python 3.14; prefer ONNX for new deployments.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.runtimes import DeviceStatus
from cnndeploy.runtimes._torch import TorchSession, last_line, open_device, torch_devices

if TYPE_CHECKING:
    import torch


class TorchScriptSession(TorchSession):
    """An archive; one that we wrote is frozen, so that its weights are constants of the graph."""

    def placement(self) -> dict[str, str]:
        """Name of each constant tensor, parameter and buffer to its device."""
        import torch

        module: Any = self._module
        if module is None:
            return {}
        graph = module.inlined_graph  # its nodes live as long as it is held
        constants = (node.output() for node in graph.findAllNodes("prim::Constant"))
        tensors = (value for value in constants if value.type().isSubtypeOf(torch.TensorType.get()))
        placed = {value.debugName(): str(value.node().t("value").device) for value in tensors}
        return placed | {name: str(value.device) for name, value in module.state_dict().items()}


class TorchScriptRuntime:
    """Opens TorchScript archives."""

    formats = ("torchscript",)

    def devices(self) -> dict[str, DeviceStatus]:
        """As torch sees them."""
        return torch_devices()

    def open(self, artifact: Artifact, *, device: str, threads: int) -> TorchScriptSession:
        """Load the archive straight onto ``device``."""
        torch_device = open_device(device, "torchscript", threads)
        import torch

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
                warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
                module: torch.nn.Module = torch.jit.load(str(artifact.path), map_location=torch_device)
        except RuntimeError as error:
            raise ArtifactError(
                f"torch cannot open {artifact.path}; it is damaged, or from a newer torch ({last_line(error)})"
            ) from error
        return TorchScriptSession(artifact, module, torch_device, threads)


RUNTIME = TorchScriptRuntime()
