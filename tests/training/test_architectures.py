from __future__ import annotations

import pytest
import torch
from torch import nn

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.checkpoint import initialised, manifest_of

PARAMETERS = {
    "lenet": 44_426,
    "alexnet": 46_764_746,
    "vgg11": 128_806_154,
    "nin": 1_992_166,
    "googlenet": 5_977_530,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES.get(name).build()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_vgg11_small_is_vgg11_with_everything_divided_by_16() -> None:
    with torch.device("meta"):
        small, large = (ARCHITECTURES.get(name).build() for name in ("vgg11_small", "vgg11"))
    for ours, theirs in zip(small.modules(), large.modules(), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
            assert ours.out_channels * 16 == theirs.out_channels
            assert ours.kernel_size == theirs.kernel_size
    assert [m.out_features for m in small.modules() if isinstance(m, nn.Linear)] == [256, 256, 10]


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_every_architecture_maps_its_input_to_ten_logits(name: str) -> None:
    architecture = ARCHITECTURES.get(name)
    with torch.device("meta"):
        logits = architecture.build()(torch.zeros(2, 1, *architecture.preprocessing.size))
    assert logits.shape == (2, 10)
    assert architecture.paper
    assert sorted(architecture.recipes) == ["original", "tuned"]
    assert all(recipe.epochs > 0 for recipe in architecture.recipes.values())


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_own_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (initialised(manifest_of("lenet"), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
    assert torch.equal(before, torch.random.get_rng_state())
