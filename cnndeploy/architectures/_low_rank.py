"""Layers of low rank: two layers in a row in the place of one, with fewer channels between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import nn

Layer = nn.Conv2d | nn.Linear
_DEEPEST = 50  # modules within modules


def can_be_split(module: nn.Module) -> TypeGuard[Layer]:
    """Return whether two layers can take a module's place: a convolution without groups, or a linear layer."""
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def full_rank(layer: Layer) -> int:
    """Return the rank at which two layers lose nothing: inputs times taps, or outputs if these are fewer."""
    return min(len(layer.weight), layer.weight[0].numel())


def split(layer: Layer, rank: int) -> nn.Sequential:
    """Return two layers with fresh weights: the layer's own with ``rank`` outputs, then 1 x 1 to all of them."""
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
        )
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    settings: dict[str, Any] = {name: getattr(layer, name) for name in names}
    first = nn.Conv2d(layer.in_channels, rank, bias=False, **settings)
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, kernel_size=1))


def split_layers(network: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put two layers with fresh weights in the place of each layer that ``ranks`` names by its path.

    Raise ValueError if there is no such layer, or it has no such rank.
    """
    for path, rank in ranks.items():
        if path.count(".") > _DEEPEST:
            raise ValueError(f"the network has no layer so deep: {path:.40}...")
        layer = layer_at(network, path)
        if not path or not can_be_split(layer):
            raise ValueError(f"{path or 'the network itself'} is no layer that two can take the place of")
        if not 0 < rank <= full_rank(layer):
            raise ValueError(f"the rank of {path} is 1 to {full_rank(layer)}, not {rank}")
        network.set_submodule(path, split(layer, rank))


def layer_at(network: nn.Module, path: str) -> nn.Module:
    """Return the layer with a path; raise ValueError if there is none."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the network has no layer {path!r}") from None
