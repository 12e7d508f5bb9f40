"""Scaling and normalisation go into a network's first convolution."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from cnndeploy.preprocessing import Preprocessing
from cnndeploy.simplification._trace import Rewrite, convolution, copied, exact, one_thread, pads, trace


def fold_preprocessing(
    network: nn.Module, preprocessing: Preprocessing
) -> tuple[nn.Module, Preprocessing, tuple[Rewrite, ...]]:
    """Fold scaling and normalisation into a network's first convolution.

    Requires: one input, which goes into one convolution and nowhere else; any padding is with zeros.
    Ensures: the remaining preprocessing and the network compute the same, exact in real numbers.

    Proof: with scale s, mean m and standard deviation d, and r the resized raw image, prepared is (s r - m) / d =
    (s / d) (r - m / s), because resizing is linear and its weights sum to 1. A convolution with weights W s / d maps
    r - m / s as W maps prepared, and its padding, zero, is zero in both. If it pads nothing, every weight meets a
    pixel, and m / s goes into its bias too: W ((s / d) r - m / d) + b = (W s / d) r + b - (sum of W) m / d.

    Return the network, the remaining preprocessing, and the rewrite; if it does not apply, return network and
    preprocessing unchanged, and no rewrite.
    """
    traced = trace(network)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"] if traced is not None else []
    users = [user for node in inputs for user in node.users]
    call = traced.call(users[0], nn.Conv2d) if traced is not None and len(inputs) == len(users) == 1 else None
    if call is None or call.module.padding_mode != "zeros" or preprocessing.scale == 0:
        return network, preprocessing, ()
    (mean,), (std,), scale = preprocessing.means, preprocessing.stds, preprocessing.scale
    shift = mean / scale
    with one_thread():
        weight, bias = exact(call.module)
        if not pads(call.module):
            bias, shift = bias - weight.sum((1, 2, 3)) * (mean / std), 0.0
        folded = convolution(call.module, weight * (scale / std), bias).float()
    network = copied(network)
    network.set_submodule(call.path, folded)
    remaining = replace(preprocessing, scale=1.0, mean=shift, std=1.0)
    return network, remaining, (Rewrite("fold_preprocessing", (call.path,)),)
