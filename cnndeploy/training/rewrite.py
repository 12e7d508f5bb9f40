"""A network that computes the same with less work, for training; weights and their names stay."""

from __future__ import annotations

import itertools

from torch import nn

from cnndeploy.simplification.pool_before_activation import may_swap


def pool_first(network: nn.Module) -> None:
    """Move each activation behind the max pooling that follows it at once, in place, if the two may be swapped.

    There is a quarter as much to compute if windows are 2 x 2. A gradient goes back through the same value; if several
    values of a window are the largest, or a sigmoid rounds them to the same, it may go through another of these.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for first, second in itertools.pairwise(range(len(module))):
                if may_swap(module[first], module[second]):
                    module[first], module[second] = module[second], module[first]
