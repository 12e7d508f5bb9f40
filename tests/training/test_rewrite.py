from __future__ import annotations

import pytest
import torch
from torch import nn

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.checkpoint import initialised, manifest_of
from cnndeploy.simplification import simplify
from cnndeploy.simplification.pool_before_activation import pool_first

MOVED = {"lenet": 2, "alexnet": 3, "vgg11_small": 5, "nin": 0, "googlenet": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MOVED))
def test_pooling_first_gives_the_same_logits_and_gradients(name: str) -> None:
    height, width = ARCHITECTURES.get(name).preprocessing.size
    images = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    plain, moved = (initialised(manifest_of(name), 0).eval() for _ in range(2))
    pool_first(moved)
    kinds = [[type(module) for module in network.modules()] for network in (plain, moved)]
    assert sum(a != b for a, b in zip(*kinds, strict=True)) == 2 * MOVED[name]
    assert torch.equal(plain(images), moved(images))
    for network in (plain, moved):
        network(images).logsumexp(dim=1).sum().backward()
    expected = dict(plain.named_parameters())
    for key, parameter in moved.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-4, atol=1e-6)


def test_training_and_export_move_the_same_activations() -> None:
    """But ReLU behind a convolution, which runtimes compute within that."""
    swapped = nn.Sequential(nn.AvgPool2d(1), nn.Tanh(), nn.MaxPool2d(2)).eval()
    kept = [
        nn.Sequential(nn.Hardswish(), nn.MaxPool2d(2)),  # which falls before it rises
        nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(3, stride=1)),
        nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2, padding=1, dilation=3)),
        nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    ]
    for network in (swapped, *kept):
        rewrites = simplify(network.eval())[1]
        before = list(network)
        pool_first(network)
        assert (list(network) != before) is bool(rewrites) is (network is swapped)
