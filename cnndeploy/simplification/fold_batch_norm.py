"""Batch normalisation goes into the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from cnndeploy.simplification._trace import Call, Rewrite, Traced, convolution, exact, linear

_KEEP_AXES = (nn.Linear, nn.Dropout, nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.BatchNorm1d)


def fold_batch_norm(traced: Traced) -> Rewrite | None:
    """Fold batch normalisation into the convolution or linear layer before it.

    Requires: normalisation by running statistics, and nothing else takes the layer's output. After a linear layer, the
    value is known to be (batch, features), because normalisation is by the second axis.
    Ensures: the layer computes both, exact in real numbers.
    Proof: g (W x + c - m) / s + b = (g / s) W x + (g / s) (c - m) + b with s = sqrt(variance + eps), for each output
    channel.
    """
    for first, last in traced.pairs((nn.Conv2d, nn.Linear), (nn.BatchNorm2d, nn.BatchNorm1d)):
        if (folded := _folded(traced, first, last.module)) is not None:
            return traced.merge("fold_batch_norm", (first, last), folded)
    return None


def _folded(traced: Traced, call: Call[Any], norm: Any) -> nn.Module | None:
    layer = call.module
    if isinstance(layer, nn.Conv2d):
        fits = isinstance(norm, nn.BatchNorm2d)
    else:
        fits = isinstance(norm, nn.BatchNorm1d) and _is_flat(traced, call.node.args[0])
    if not fits or norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -scale * norm.running_mean.double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight, bias = exact(layer)
    weight, bias = weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + shift
    return convolution(layer, weight, bias) if isinstance(layer, nn.Conv2d) else linear(weight, bias)


def _is_flat(traced: Traced, value: object) -> bool:
    """Return whether a value is known to be (batch, features)."""
    while isinstance(value, fx.Node):
        if value.target in (torch.flatten, "flatten"):
            return value.args[1:] == (1,) and not value.kwargs
        if value.op == "call_method" and value.target in ("reshape", "view"):
            return len(value.args) == 3 and not value.kwargs  # the value and two lengths
        if value.op != "call_module":
            return False
        module = traced.modules[str(value.target)]
        if type(module) is nn.Flatten:
            return (module.start_dim, module.end_dim) == (1, -1)
        if type(module) not in _KEEP_AXES or not value.args:
            return False
        value = value.args[0]
    return False
