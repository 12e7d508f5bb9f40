"""What an exporter writes: a checkpoint's network, simplified or as it is, perhaps behind its preprocessing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cnndeploy.checkpoint import Checkpoint
from cnndeploy.exporters._exporter import ExportOptions, exported_manifest
from cnndeploy.preprocessing import RAW_SIDE, Preprocessing
from cnndeploy.simplification import fold_preprocessing, simplify
from cnndeploy.specs import Manifest

WRAPPED = "network"
"""The attribute of :class:`ImageNetwork` under which the checkpoint's modules lie."""


class ImageNetwork(nn.Module):
    """From raw images, uint8 (batch, height, width), to logits and probabilities, both float32 (batch, classes).

    As :class:`~cnndeploy.specs.Preprocessing` defines it, in operators that both formats have.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.size = list(preprocessing.size)
        self.scale, self.mean, self.std = preprocessing.scale, preprocessing.mean, preprocessing.std

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and probabilities."""
        prepared = image.unsqueeze(1).to(torch.float32)  # (batch, 1, height, width)
        if self.scale != 1.0:
            prepared = prepared * self.scale
        # interpolate() itself would leave its checks of the arguments in a scripted graph
        prepared = torch._C._nn.upsample_bilinear2d(prepared, self.size, False, None)
        if self.mean != 0.0 or self.std != 1.0:
            prepared = (prepared - self.mean) / self.std
        logits = self.network(prepared)
        return logits, torch.softmax(logits, dim=1)


def network_and_manifest(checkpoint: Checkpoint, options: ExportOptions) -> tuple[nn.Module, Manifest]:
    """The module to write, in eval mode on the CPU, and the manifest to write with it."""
    network, manifest = checkpoint.network(), exported_manifest(checkpoint)
    rewrites: tuple[str, ...] = ()
    if options.simplify:
        network, rewrites = simplify(network)
    if options.input == "tensor":
        return network, replace(manifest, rewrites=rewrites)
    preprocessing = manifest.preprocessing
    if options.simplify:
        network, preprocessing, folded = fold_preprocessing(network, preprocessing)
        rewrites += folded
    return ImageNetwork(network, preprocessing).eval(), replace(manifest.taking_images(), rewrites=rewrites)


def outputs(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What a module gave, in the manifest's order."""
    return result if isinstance(result, tuple) else (result,)


def example(manifest: Manifest, batch: int, side: int = RAW_SIDE) -> torch.Tensor:
    """Random input for a batch, the same each time; raw images are square, with sides of so many pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = manifest.input.with_batch(batch, side)
    if manifest.takes_images:
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return torch.rand(shape, generator=generator)
