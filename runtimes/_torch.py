"""Torch: the code that the runtimes that need torch share, and a session around a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import TorchDevices, allow_tf32, last_line, open_device
from cnndeploy.run import Run
from cnndeploy.runtimes._session import Arrays, Session

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TorchRuntime(TorchDevices):
    """A runtime of torch: ``load`` puts an artifact's module on a device that works, ``session`` wraps it."""

    name: str
    formats: tuple[str, ...]
    load: Callable[[Artifact, torch.device], torch.nn.Module]
    session: type[TorchSession]
    package: ClassVar = "torch"
    options: ClassVar = {"precision": ("tf32",)}

    def open(self, artifact: Artifact, run: Run) -> Session:
        """Open the artifact on the device that ``run`` names."""
        device = open_device(run.device, self.name, run.thread_count, run.choices.precision == "tf32")
        return self.session(artifact, run, device, self.load(artifact, device))


class TorchSession(Session):
    """A module that maps one tensor to a tensor or a tuple of tensors, on one device."""

    _library = "torch"
    _words = staticmethod(last_line)

    def __init__(self, artifact: Artifact, run: Run, device: torch.device, module: torch.nn.Module) -> None:
        manifest = artifact.require_manifest()
        super().__init__(artifact, run, [manifest.input], manifest.outputs, str(device))
        self._module: torch.nn.Module | None = module
        self._torch_device = device

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        import torch

        module: Any = self._module
        (image,) = feeds.values()
        if self._torch_device.type == "cuda":  # torch has one setting, which another session may have changed
            allow_tf32(self.options.precision == "tf32")
        with torch.inference_mode():
            # torch refuses negative strides, and warns of arrays that are read-only
            tensor = torch.from_numpy(np.require(image, requirements=("C", "W")))
            result = module(tensor.to(self._torch_device))
            outputs = result if isinstance(result, tuple) else (result,)
            return {
                spec.name: output.cpu().numpy() for spec, output in zip(self.outputs, outputs, strict=True)
            }

    def synchronize(self) -> None:
        """Wait for the GPU; a CPU has nothing to wait for."""
        import torch

        if self._torch_device.type == "cuda":
            torch.cuda.synchronize(self._torch_device)

    def _release(self) -> None:
        self._module = None
