"""What rewrites ask of convolutions and linear layers, and how they make new ones."""

from __future__ import annotations

import copy

import torch
from torch import nn


def exact(layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias in float64; a layer without bias has one of zeros."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return weight, bias


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Make a linear layer of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # which draws no random weights
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """Make a convolution of these weights, with strides, padding and groups as another's."""
    layer = copy.deepcopy(like)
    layer.in_channels, layer.out_channels = weight.shape[1] * like.groups, weight.shape[0]
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Return whether a convolution maps the channels of each position by itself."""
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and not pads(layer)


def pads(layer: nn.Conv2d) -> bool:
    """Return whether a convolution sees more than the image."""
    return layer.padding not in ("valid", (0, 0))
