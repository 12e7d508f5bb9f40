"""The network that an exporter writes, simplified or not, with or without preprocessing, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.devices import last_line
from cnndeploy.errors import ExportError
from cnndeploy.exporters._export import ExportOptions, exported_manifest
from cnndeploy.files import replacing
from cnndeploy.preprocessing import RAW_SIDE, Preprocessing
from cnndeploy.simplification import Rewrite, fold_preprocessing, simplify
from cnndeploy.specs import Manifest
from cnndeploy.torch_preprocessing import TorchPreprocessing, can_prepare

WRAPPED = "network"  # the attribute of ImageNetwork that holds the checkpoint's modules


class ImageNetwork(nn.Module):
    """A network from raw images, uint8 (batch, height, width), to logits and probabilities, (batch, classes)."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = TorchPreprocessing(preprocessing)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and probabilities."""
        logits = self.network(self.preprocessing(image))
        return logits, torch.softmax(logits, dim=1)


def network_and_manifest(checkpoint: Checkpoint, options: ExportOptions) -> tuple[nn.Module, Manifest]:
    """Return the module to write, in eval mode on the CPU, and the manifest to write with it."""
    network, manifest = checkpoint.network(), exported_manifest(checkpoint)
    preprocessing = manifest.preprocessing
    rewrites: tuple[Rewrite, ...] = ()
    if options.input == "image" and not can_prepare(preprocessing):
        raise ExportError(
            "torch resizes no images as this network's are in training, so only an ONNX file can take them raw; export "
            "it to ONNX"
        )
    _check_that_nothing_is_random(network, example(manifest, 2))
    if options.simplify:
        network, rewrites = simplify(network)
    if options.input == "image":
        if options.simplify:
            network, preprocessing, folded = fold_preprocessing(network, preprocessing)
            rewrites += folded
        network, manifest = ImageNetwork(network, preprocessing).eval(), manifest.taking_images()
    return network, replace(manifest, rewrites=tuple(map(str, rewrites)))


def _check_that_nothing_is_random(network: nn.Module, images: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            first, second = (network(images) for _ in range(2))
    except Exception as error:  # a forward() may do anything
        raise ExportError(
            f"the network cannot be run on {tuple(images.shape)}: {last_line(error)}"
        ) from error
    if not torch.is_tensor(first):
        raise ExportError(f"the network returns {type(first).__name__}, not one tensor of logits")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ExportError(
            "the network returns other logits at each call: something random is active in eval mode, such as "
            "F.dropout(x) without training=self.training"
        )


def example(manifest: Manifest, batch: int, side: int = RAW_SIDE) -> torch.Tensor:
    """Return random input for a batch, the same each time; raw images are squares of ``side`` pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = manifest.input.with_batch(batch, side)
    if manifest.takes_images:
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return torch.rand(shape, generator=generator)


def write(path: Path, content: bytes, manifest: Manifest, faults: Callable[[Path], list[str]]) -> Artifact:
    """Write a file; give it its name only if, reopened, it has no ``faults`` and its manifest reads back."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        wrong = faults(temporary)
        written = Artifact.open(temporary)  # refuses weights in another file
        if written.manifest != manifest:
            wrong.append("its manifest does not read back")
        if wrong:
            raise ExportError(f"the exported {written.format} file is unusable: {'; '.join(wrong)}")
    return Artifact.open(path)
