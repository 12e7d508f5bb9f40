"""Linear layers in a row become one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from cnndeploy.simplification._trace import Rewrite, Traced, exact, linear


def merge_linear(traced: Traced) -> Rewrite | None:
    """Make one linear layer of several, if that takes fewer multiplications.

    Requires: a chain of linear layers; only the next layer takes the output of each.
    Ensures: the stretch that saves most is one layer, exact in real numbers. A longer chain is cut so that the fewest
    multiplications are left for an image: the sum, over the layers, of inputs times outputs.
    Proof: B (A x + a) + b = (B A) x + (B a + b).
    """
    chains = {last.node: [first, last] for first, last in traced.pairs((nn.Linear,), (nn.Linear,))}
    # in the graph's order, so that a chain is whole before it goes on
    for node, chain in list(chains.items()):
        if (start := chains.pop(chain[0].node, None)) is not None:
            chains[node] = [*start, *chain[1:]]
    for chain in chains.values():
        sizes = [chain[0].module.in_features, *(call.module.out_features for call in chain)]
        for begin, end in itertools.pairwise(fewest_multiplications(sizes)):
            if end - begin > 1:
                merged = chain[begin:end]
                return traced.merge("merge_linear", merged, _product([call.module for call in merged]))
    return None


def fewest_multiplications(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return where to cut a chain of layers of these sizes, so that one layer for each piece multiplies least.

    >>> from cnndeploy.simplification.merge_linear import fewest_multiplications
    >>> fewest_multiplications([25088, 4096, 4096, 10])
    (0, 3)
    """
    best: list[tuple[int, tuple[int, ...]]] = [(0, (0,))]  # to each size: multiplications, cuts
    for end in range(1, len(sizes)):
        ways = [
            (best[start][0] + sizes[start] * sizes[end], (*best[start][1], end))
            for start in reversed(range(end))  # min() takes the first of equals, which merges least
        ]
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def _product(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Multiply from the last layer to the first, because a network's output is small."""
    weight, bias = exact(layers[-1])
    for layer in reversed(layers[:-1]):
        own_weight, own_bias = exact(layer)
        weight, bias = weight @ own_weight, bias + weight @ own_bias
    return linear(weight, bias)
