"""Max pooling moves before an activation that never falls."""

from __future__ import annotations

import itertools

from torch import fx, nn

from cnndeploy.simplification._trace import Call, Rewrite, Traced

_NEVER_FALL = (nn.Sigmoid, nn.Tanh, nn.ReLU)


def may_swap(activation: nn.Module, pool: nn.Module) -> bool:
    """Return whether an activation may move behind the pooling that takes its output, where it has less to do.

    Proof: a sigmoid, tanh or ReLU never falls, so the largest of the results is the result of the largest value. That
    holds bit for bit if the computed activation never falls either. Every window holds at least one value, and padding,
    minus infinity, is never the largest. Pooling that both pads and dilates is refused, because a window may then hold
    padding alone. An activation that works in place is refused, because it changes what others take.
    """
    if type(activation) not in _NEVER_FALL or type(pool) is not nn.MaxPool2d or pool.return_indices:
        return False
    padding, dilation, stride = (_pair(sides) for sides in (pool.padding, pool.dilation, pool.stride))
    exact = padding == (0, 0) or dilation == (1, 1)
    return exact and stride != (1, 1) and not getattr(activation, "inplace", False)


def pool_before_activation(traced: Traced) -> Rewrite | None:
    """Move an activation behind the max pooling that takes its output.

    Requires: two modules that :func:`may_swap`, and only the pooling takes the activation's output. A ReLU right behind
    a convolution stays, because runtimes compute it within the convolution.
    Ensures: the activation is computed once for each window, and the output is the same bit for bit if the computed
    activation never falls. The activation gets the pooling's name, because it computes what that did; the pooling gets
    a new one.
    """
    for first, last in traced.pairs(_NEVER_FALL, (nn.MaxPool2d,)):
        if not may_swap(first.module, last.module) or _is_fused(traced, first):
            continue
        rewrite = Rewrite("pool_before_activation", (first.path, last.path))
        pooling = f"{last.path}_pool"
        while pooling in traced.modules:
            pooling += "_"
        traced.modules[pooling], traced.modules[last.path] = last.module, first.module
        first.node.target, last.node.target = pooling, last.path
        return rewrite
    return None


def pool_first(network: nn.Module) -> None:
    """Move activations, in place, behind the max pooling that directly follows, if the two may swap; for training.

    With windows of 2 x 2 there is a quarter as much to compute. A gradient goes back through the same value. If several
    values of a window are the largest, or a sigmoid rounds them to the same value, it may go through another of these.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for first, second in itertools.pairwise(range(len(module))):
                if may_swap(module[first], module[second]):
                    module[first], module[second] = module[second], module[first]


def _is_fused(traced: Traced, activation: Call[nn.Module]) -> bool:
    """Return whether runtimes compute an activation within the convolution before it."""
    before = activation.node.args[0]
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return False
    return type(activation.module) is nn.ReLU and isinstance(traced.modules[str(before.target)], nn.Conv2d)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
