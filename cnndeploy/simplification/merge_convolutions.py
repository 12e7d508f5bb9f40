"""A convolution and one of 1 x 1 become one."""

from __future__ import annotations

import torch
from torch import nn

from cnndeploy.simplification._trace import Rewrite, Traced, convolution, exact, pads


def merge_convolutions(traced: Traced) -> Rewrite | None:
    """Make one convolution of two, one of which is 1 x 1, if that takes fewer multiplications.

    Requires: two convolutions without groups, and only the second takes the output of the first. If the 1 x 1 is the
    first and the second pads, it pads with zeros and the first has no bias.
    Ensures: one convolution, exact in real numbers, with the kernel, stride and padding of the one that is not 1 x 1.

    Proof, 1 x 1 last: it maps the channels of each position, y = B (A * x + a) + b = (B A) * x + (B a + b), for any
    stride and padding of A; the positions are the same, so multiplications are counted per position.
    Proof, 1 x 1 first: B * (A x + a) + b = (B A) * x + (sum of B) a + b, if every weight of B meets a value of
    A x + a. Padding puts zeros there instead, which is the same only if a is zero. If fewer channels come in than lie
    between, the one convolution takes fewer multiplications, whatever the positions.
    """
    for first, last in traced.pairs((nn.Conv2d,), (nn.Conv2d,)):
        if (merged := _merged(first.module, last.module)) is not None:
            return traced.merge("merge_convolutions", (first, last), merged)
    return None


def _merged(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d | None:
    if first.groups != 1 or second.groups != 1:
        return None
    channels, between, out = first.in_channels, first.out_channels, second.out_channels
    (first_weight, first_bias), (weight, bias) = exact(first), exact(second)
    taps = first.kernel_size[0] * first.kernel_size[1]
    pointwise = [layer.kernel_size == layer.stride == (1, 1) and not pads(layer) for layer in (first, second)]
    if pointwise[1] and out * channels * taps < between * channels * taps + out * between:
        across = weight[:, :, 0, 0]  # (out, between)
        product = torch.einsum("om,mikl->oikl", across, first_weight)
        return convolution(first, product, bias + across @ first_bias)
    keeps_borders = not pads(second) or (second.padding_mode == "zeros" and not first_bias.any())
    if pointwise[0] and keeps_borders and channels <= between:
        product = torch.einsum("omkl,mi->oikl", weight, first_weight[:, :, 0, 0])
        return convolution(second, product, bias + weight.sum((2, 3)) @ first_bias)
    return None
