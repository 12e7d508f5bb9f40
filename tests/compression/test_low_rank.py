"""Layers of low rank: what two layers in the place of one compute."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cnndeploy.architectures._low_rank import Layer, full_rank, split_layers
from cnndeploy.compression.components import components_of, projected, split_weights
from cnndeploy.compression.low_rank import ranks_to_try, replaceable

LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(3, 8, 3, padding=1), (3, 9, 9)),
    "without a bias": (nn.Conv2d(4, 6, 3, bias=False), (4, 8, 8)),
    "strided, dilated": (nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1)), (2, 11, 9)),
    "reflecting": (nn.Conv2d(2, 5, 3, padding=1, padding_mode="reflect"), (2, 7, 7)),
    "same": (nn.Conv2d(2, 5, 3, padding="same"), (2, 7, 7)),
    "pointwise": (nn.Conv2d(7, 9, 1), (7, 4, 4)),
    "linear": (nn.Linear(12, 7), (12,)),
    "linear of more outputs": (nn.Linear(5, 9, bias=False), (5,)),
    "linear of tokens": (nn.Linear(6, 4), (10, 6)),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[Layer, torch.Tensor]:
    layer, shape = LAYERS[request.param]
    torch.manual_seed(0)
    return copy.deepcopy(layer).eval(), torch.randn(16, *shape) + 0.5


def _components(network: nn.Module, path: str, images: torch.Tensor) -> Any:
    layers = replaceable(network, images[:2])
    return components_of(network, layers, images.split(5))[path]


@torch.no_grad()
def test_full_rank_is_the_layer_itself(case: tuple[Layer, torch.Tensor]) -> None:
    layer, images = case
    network = nn.Sequential(layer)
    pair = split_weights(layer, _components(network, "0", images), full_rank(layer))
    assert torch.allclose(pair(images), layer(images), atol=1e-5)


@torch.no_grad()
def test_what_a_rank_loses_is_predicted_by_a_projection(case: tuple[Layer, torch.Tensor]) -> None:
    layer, images = case
    network = nn.Sequential(layer)
    components = _components(network, "0", images)
    errors = []
    for rank in range(1, full_rank(layer) + 1):
        pair = split_weights(layer, components, rank)
        with projected(layer, components, rank):
            assert torch.allclose(network(images), pair(images), atol=1e-5)
        errors.append(float((pair(images) - layer(images)).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1]
    with projected(layer, components, 1):
        pass
    assert not layer._forward_hooks  # nothing stays behind


@torch.no_grad()
def test_the_directions_are_the_best_there_are() -> None:
    layer = nn.Linear(20, 10)
    images = torch.randn(200, 20) @ torch.diag(torch.linspace(3, 0.01, 20))
    pair = split_weights(layer, _components(nn.Sequential(layer), "0", images), 3)
    outputs = layer(images)
    best = torch.linalg.svdvals(outputs - outputs.mean(0))[3:].square().sum() / outputs.numel()
    assert float((pair(images) - outputs).square().mean()) == pytest.approx(float(best), rel=1e-3)


@torch.no_grad()
def test_the_channels_between_two_layers_vary_alike() -> None:
    """In int8 they share one scale. The components themselves vary as their share of the outputs does."""
    layer = nn.Linear(40, 40)
    images = torch.randn(400, 40) @ torch.diag(torch.logspace(1, -2, 40))
    components = _components(nn.Sequential(layer), "0", images)
    first, _ = split_weights(layer, components, 16)
    spread = first(images).std(0)
    of_components = (layer(images) @ components.directions[:, :16].float()).std(0)
    uneven, even = (float(one.max() / one.min()) for one in (of_components, spread))
    assert uneven > 10
    assert even < 3


@torch.no_grad()
def test_all_places_of_an_image_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sixteenth place of 256 would be the first column alone, in which nothing varies here."""
    monkeypatch.setattr("cnndeploy.compression.components._VALUES", 64)
    layer, images = nn.Conv2d(2, 4, 1), torch.randn(64, 2, 16, 16)
    images[..., 0] = 0.0
    pair = split_weights(layer, _components(nn.Sequential(layer), "0", images), 2)
    assert torch.allclose(pair(images), layer(images), atol=1e-4)


@torch.no_grad()
def test_of_few_images_there_are_few_directions() -> None:
    torch.manual_seed(0)
    layer, images = nn.Linear(30, 50), torch.randn(12, 30)
    components = _components(nn.Sequential(layer), "0", images)
    assert components.directions.shape == (50, 12)
    right_angles = components.directions.T @ components.directions
    assert torch.allclose(right_angles, torch.eye(12, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(split_weights(layer, components, 12)(images), layer(images), atol=1e-4)


@torch.no_grad()
def test_behind_a_batch_normalisation_the_normalised_output_counts() -> None:
    torch.manual_seed(0)
    layer, normalisation = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    network = nn.Sequential(layer, normalisation).eval()
    normalisation.running_var = torch.tensor([1.0, 1, 1, 100, 100, 100])
    normalisation.weight.copy_(torch.tensor([1.0, 1, 1, 1000, 1000, 1000]))
    images = torch.randn(32, 3, 8, 8)
    components = _components(network, "0", images)
    alone = _components(nn.Sequential(layer), "0", images)
    expected, errors = network(images), []
    for known in (components, alone):
        network[0] = split_weights(layer, known, 3)
        errors.append(float((network(images) - expected).square().mean()))
    assert errors[0] < errors[1] / 10
    network[0] = split_weights(layer, components, 6)
    assert torch.allclose(network(images), expected, atol=1e-3)


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.tied.weight
        self.unused = nn.Linear(4, 4)
        self.read = nn.Linear(4, 4)
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda _module, _inputs, output: output + 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.good(x)))
        x = self.other(self.tied(self.grouped(x))).mean((2, 3))
        x = self.read(x) + self.read.weight[0]
        result: torch.Tensor = self.last(self.hooked(x))
        return result


def test_only_layers_that_are_called_once_and_share_nothing_are_replaced() -> None:
    network = _Odd().eval()
    before = {name: id(module) for name, module in network.named_modules()}
    assert set(replaceable(network, torch.randn(1, 4, 6, 6))) == {"good", "last"}
    assert {name: id(module) for name, module in network.named_modules()} == before
    assert (
        replaceable(nn.Linear(3, 3), torch.randn(1, 3)) == {}
    )  # a network that is a layer has no place for two


@pytest.mark.parametrize(
    ("layer", "least"), [(nn.Conv2d(256, 256, 3), 1), (nn.Linear(6400, 4096), 1), (nn.Linear(2, 2), 1)]
)
def test_ranks_fall_and_save_multiplications(layer: Layer, least: int) -> None:
    ranks, outputs, inputs = ranks_to_try(layer, 10_000), len(layer.weight), layer.weight[0].numel()
    assert ranks == sorted(set(ranks), reverse=True)
    assert all(rank * (outputs + inputs) < outputs * inputs for rank in ranks)
    assert not ranks or ranks[-1] == least
    assert len(ranks) < 30
    assert all(rank <= 20 for rank in ranks_to_try(layer, 20))


@pytest.mark.parametrize(
    ("ranks", "complaint"),
    [
        ({"nowhere": 1}, "no layer 'nowhere'"),
        ({"0": 0}, "the rank of 0 is 1 to 4, not 0"),
        ({"0": 5}, "the rank of 0 is 1 to 4, not 5"),
        ({"1": 1}, "is no layer"),
        ({"": 1}, "the network itself"),
        ({"0" + 60 * ".0": 1}, "no layer so deep"),
    ],
)
def test_ranks_that_a_network_cannot_have_are_refused(ranks: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        split_layers(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), ranks)
