"""Preprocessing in torch, for training and inside exported files."""

from __future__ import annotations

import torch
from torch import nn

from cnndeploy.errors import ArtifactError
from cnndeploy.preprocessing import Preprocessing


def can_prepare(preprocessing: Preprocessing) -> bool:
    """Return whether :class:`TorchPreprocessing` knows a preprocessing: grey images resized without antialias."""
    return preprocessing.channels == 1 and not preprocessing.antialias and preprocessing.resize is None


class TorchPreprocessing(nn.Module):
    """A :class:`~cnndeploy.preprocessing.Preprocessing` in operators that TorchScript and ONNX have too.

    ``source`` is the height and width of the images, if all are alike; images of the right size are not resized.
    """

    def __init__(self, preprocessing: Preprocessing, source: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if not can_prepare(preprocessing):
            raise ArtifactError("only grey images that are resized without antialias are prepared in torch")
        self.size = list(preprocessing.size)
        self.resizes = source != preprocessing.size
        (self.mean,), (self.std,), self.scale = preprocessing.means, preprocessing.stds, preprocessing.scale

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map raw images, uint8 (batch, height, width), to float32 (batch, 1, *size)."""
        prepared = image.unsqueeze(1).to(torch.float32)  # (batch, 1, height, width)
        if self.scale != 1.0:
            prepared = prepared * self.scale
        if self.resizes:
            # interpolate() itself would leave its checks of the arguments in a scripted graph
            prepared = torch._C._nn.upsample_bilinear2d(prepared, self.size, False, None)
        if self.mean != 0.0 or self.std != 1.0:
            prepared = (prepared - self.mean) / self.std
        return prepared
