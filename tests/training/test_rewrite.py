from __future__ import annotations

import pytest
import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.checkpoint import initialised
from cnndeploy.training.rewrite import pool_first

MOVED = {"lenet": 2, "alexnet": 3, "vgg11_small": 5, "nin": 0, "googlenet": 0}


@pytest.mark.parametrize("name", sorted(MOVED))
def test_pooling_first_gives_the_same_logits_and_gradients(name: str) -> None:
    height, width = ARCHITECTURES.get(name).preprocessing.size
    images = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    plain, moved = (initialised(name, 0).eval() for _ in range(2))
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
