"""The loop that applies every rewrite for as long as one applies."""

from __future__ import annotations

from torch import nn

from cnndeploy.simplification._trace import Rewrite, one_thread, trace
from cnndeploy.simplification.fold_batch_norm import fold_batch_norm
from cnndeploy.simplification.merge_convolutions import merge_convolutions
from cnndeploy.simplification.merge_linear import merge_linear
from cnndeploy.simplification.pool_before_activation import pool_before_activation

REWRITES = (fold_batch_norm, merge_convolutions, merge_linear, pool_before_activation)


def simplify(network: nn.Module) -> tuple[nn.Module, tuple[Rewrite, ...]]:
    """Apply every rewrite for as long as one applies.

    ``network`` must be in eval mode and have float32 weights; it is not changed. Return the simplified network and the
    rewrites; if no rewrite applies, or torch.fx cannot trace the network, return ``network`` itself and none.
    """
    traced = trace(network)
    rewrites: list[Rewrite] = []
    if traced is not None:
        with one_thread():
            while rewrite := next(filter(None, (apply(traced) for apply in REWRITES)), None):
                rewrites.append(rewrite)
    return (traced.built(), tuple(rewrites)) if traced is not None and rewrites else (network, ())
