"""Simplification: a network that computes the same function with less work, by rewrites exact in real numbers.

A rewrite is one file here. It makes one change to a traced network, or none; its docstring says what the graph must
be like (Requires), what it is like afterwards (Ensures), and why that computes the same (Proof). New weights are
computed in float64 by one thread, so that they depend on no number of threads, and rounded once, at the end. A layer
that takes over the work of several has the name of the last of them, whose output it computes.
"""

from __future__ import annotations

from torch import nn

from cnndeploy.simplification._trace import Rewrite as Rewrite, one_thread, trace
from cnndeploy.simplification.fold_batch_norm import fold_batch_norm
from cnndeploy.simplification.fold_preprocessing import fold_preprocessing as fold_preprocessing
from cnndeploy.simplification.merge_convolutions import merge_convolutions
from cnndeploy.simplification.merge_linear import merge_linear
from cnndeploy.simplification.pool_before_activation import pool_before_activation

REWRITES = (fold_batch_norm, merge_convolutions, merge_linear, pool_before_activation)


def simplify(network: nn.Module) -> tuple[nn.Module, tuple[Rewrite, ...]]:
    """Apply every rewrite for as long as one applies.

    ``network``, in eval mode and with float32 weights, is not changed.

    Returns:
        The simplified network, and what was done; ``network`` itself and nothing if no rewrite applies, or if
        torch.fx cannot trace it.
    """
    traced = trace(network)
    rewrites: list[Rewrite] = []
    if traced is not None:
        with one_thread():
            while rewrite := next(filter(None, (apply(traced) for apply in REWRITES)), None):
                rewrites.append(rewrite)
    return (traced.built(), tuple(rewrites)) if traced is not None and rewrites else (network, ())
