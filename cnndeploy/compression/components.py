"""Layers of low rank, from the principal components of what a layer computes.

A layer y = W x + b is replaced by y' = U (U' W x) + c, if U has the directions in which y varies most over training
images, and c keeps its mean. Nothing is trained. If a batch normalisation follows and scales y by s, s y is
approximated. Source: Zhang, Zou, He, Sun: Accelerating very deep convolutional networks for classification and
detection, 2015, section 3.1; the mean squared error of y' is the variance left out.

In int8 the channels between the two layers share one scale, but the first components vary many times as much as the
last. So U is multiplied by a random orthogonal matrix, which leaves the product as it is, and after which all these
channels vary about equally. Source: Chee, Cai, Kuleshov, De Sa: QuIP, 2023, section 4; there for weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cnndeploy.architectures._low_rank import Layer, split
from cnndeploy.compression.layers import hooked
from cnndeploy.errors import CompressionError
from cnndeploy.simplification import trace

# Of an image's outputs that the components are taken from, in each layer; one place at least.
_VALUES = 2**12


@dataclass(frozen=True, slots=True)
class Components:
    """What is known of a layer's outputs: their ``mean`` (channels,), and the directions in which they vary.

    ``directions`` (channels, n) has the one with most variance first, in outputs times ``scale`` (channels,).
    ``shape`` is that of the layer's input, without the batch.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    scale: torch.Tensor
    shape: tuple[int, ...]

    def projection(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (channels, channels) and c (channels,): of outputs y a rank leaves A y + c."""
        kept = self.directions[:, :rank]
        across = (kept / self.scale[:, None]) @ (kept * self.scale[:, None]).T
        return across, self.mean - across @ self.mean


def components_of(
    network: nn.Module, layers: Mapping[str, Layer], batches: Iterable[torch.Tensor]
) -> dict[str, Components]:
    """Run batches of images through a network, and return the components of each layer's outputs."""
    outputs: dict[str, list[torch.Tensor]] = {path: [] for path in layers}
    shapes: dict[str, tuple[int, ...]] = {}
    chance = torch.Generator().manual_seed(0)

    def keep(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            rows = _rows(layer, output)
            few = len(output) * max(1, _VALUES // rows.shape[1])
            # by chance, for each so many-th would be the same places of all images
            outputs[path].append(rows[torch.randperm(len(rows), generator=chance)[:few]])
            shapes[path] = tuple(inputs[0].shape[1:])

        return hook

    with hooked(layers, keep), torch.inference_mode():
        for batch in batches:
            network(batch)
    scales, components = _scales(network, layers), {}
    for path, layer in layers.items():
        scale = scales.get(path, torch.ones(len(layer.weight))).double()
        rows = torch.cat(outputs.pop(path)).double()
        if not rows.isfinite().all():
            raise CompressionError(
                f"{path} computes NaN or infinite values of training images; check the weights"
            )
        mean = rows.mean(0)
        components[path] = Components(mean, _directions((rows - mean) * scale), scale, shapes[path])
    return components


def _directions(rows: torch.Tensor) -> torch.Tensor:
    """Return the directions (channels, n) in which rows (count, channels) vary, the one with most variance first.

    There is one for each channel; of fewer rows than channels there are as many as rows, for there is no variance in
    others.
    """
    count, channels = rows.shape
    if count >= channels:
        across: torch.Tensor = torch.linalg.eigh(rows.T @ rows)[1]
        return across.flip(1)
    squares, across = torch.linalg.eigh(rows @ rows.T)
    directions = rows.T @ (across / squares.clamp(min=1e-12 * float(squares[-1]) or 1.0).sqrt())
    # those of next to no variance are no longer at right angles
    orthogonal: torch.Tensor = torch.linalg.qr(directions.flip(1))[0]
    return orthogonal


def _rows(layer: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Return the outputs of a layer (positions, channels), of all images and places."""
    if isinstance(layer, nn.Conv2d):
        output = output.movedim(1, -1)
    return output.reshape(-1, output.shape[-1])


def _scales(network: nn.Module, layers: Mapping[str, Layer]) -> dict[str, torch.Tensor]:
    """Return by how much a batch normalisation scales each channel of the convolutions right before one."""
    traced = trace(network)
    scales = {}
    for before, after in traced.pairs((nn.Conv2d,), (nn.BatchNorm2d,)) if traced is not None else ():
        normalisation = after.module
        if before.path in layers and normalisation.running_var is not None:
            weight = normalisation.weight if normalisation.affine else torch.ones(())
            scale = (weight / (normalisation.running_var + normalisation.eps).sqrt()).detach().abs()
            scales[before.path] = scale.clamp(min=float(scale.max()) * 1e-3 or 1.0)
    return scales


def split_weights(layer: Layer, components: Components, rank: int) -> nn.Sequential:
    """Return the two layers of a rank that come nearest to a layer; of full rank they are it, to rounding.

    The channels between the two layers vary about equally.
    """
    weight = layer.weight.detach().double().flatten(1)  # (channels, inputs)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    turned, scale = components.directions[:, :rank] @ _orthogonal(rank), components.scale[:, None]
    down, up = (turned * scale).T @ weight, turned / scale
    across, offset = components.projection(rank)
    first, second = pair = split(layer, rank)
    assert isinstance(first, nn.Conv2d | nn.Linear) and isinstance(second, nn.Conv2d | nn.Linear)  # noqa: S101, PT018
    assert second.bias is not None  # noqa: S101 - split() makes one
    with torch.no_grad():
        first.weight.copy_(down.reshape(first.weight.shape))
        second.weight.copy_(up.reshape(second.weight.shape))
        second.bias.copy_(across @ bias + offset)
    return pair.eval()


def _orthogonal(size: int) -> torch.Tensor:
    """Return an orthogonal matrix, drawn at random but always the same one."""
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    orthogonal: torch.Tensor = torch.linalg.qr(drawn)[0]
    return orthogonal


@contextlib.contextmanager
def projected(layer: Layer, components: Components, rank: int) -> Iterator[None]:
    """Have a layer compute what two layers of this rank would, for as long as the block lasts."""
    across, offset = (value.float() for value in components.projection(rank))

    def hook(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Conv2d):
            return torch.nn.functional.conv2d(output, across[:, :, None, None], offset)
        return torch.nn.functional.linear(output, across, offset)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
