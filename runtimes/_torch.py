"""What the runtimes that need torch share: a session around a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.runtimes import Arrays, Session
from cnndeploy.torch_device import last_line

if TYPE_CHECKING:
    import torch


class TorchSession(Session):
    """A module that maps one tensor to one, or to a tuple, on one device."""

    def __init__(
        self,
        artifact: Artifact,
        module: torch.nn.Module,
        device: torch.device,
        threads: int,
        tf32: bool = False,
    ) -> None:
        manifest = artifact.require_manifest()
        super().__init__(
            artifact,
            inputs=(manifest.input,),
            outputs=manifest.outputs,
            device=str(device),
            placed_on=str(device),
            threads=threads,
            tf32=tf32,
        )
        self._module: torch.nn.Module | None = module
        self._torch_device = device

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        import torch

        module = self._module
        if module is None:
            raise self._closed_error()
        (image,) = feeds.values()
        try:
            with torch.inference_mode():
                # torch takes neither negative strides nor, without a warning, what may not be written to
                tensor = torch.from_numpy(np.require(image, requirements=("C", "W")))
                result = module(tensor.to(self._torch_device))
                outputs = result if isinstance(result, tuple) else (result,)
                return {
                    spec.name: output.cpu().numpy()
                    for spec, output in zip(self.outputs, outputs, strict=True)
                }
        except Exception as error:  # an archive is a program, and may do and give anything
            raise ArtifactError(
                f"torch could not run {self.artifact.path} on a batch of shape {image.shape}: {last_line(error)}"
            ) from error

    def synchronize(self) -> None:
        """Wait for the GPU; a CPU has nothing to wait for."""
        import torch

        if self._torch_device.type == "cuda":
            torch.cuda.synchronize(self._torch_device)

    def _release(self) -> None:
        self._module = None
