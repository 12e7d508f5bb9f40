"""Refit: changed layers come back to what they computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cnndeploy.compression.refit import Changed, refitted
from cnndeploy.progress import silent


class _Tensors:
    """Images that are tensors already."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def first(self, count: int) -> _Tensors:
        return _Tensors(self.tensor[:count])


class _Material:
    """A Material with no more than a refit needs."""

    work, progress = 1, staticmethod(silent)

    def __init__(self, *shape: int) -> None:
        self.known = _Tensors(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))

    def tensors(self, images: _Tensors, text: str) -> Iterator[torch.Tensor]:
        del text
        yield from images.tensor.split(32)


LAYERS: dict[str, nn.Module] = {
    "convolution": nn.Conv2d(3, 8, 3, padding=1),
    "without a bias": nn.Conv2d(3, 6, 3, bias=False),
    "strided, dilated": nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1)),
    "reflecting": nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    "same": nn.Conv2d(3, 5, 3, padding="same", dilation=2),
    "linear": nn.Linear(8, 7),
    "linear without a bias": nn.Linear(8, 7, bias=False),
}


def _spoiled(network: nn.Module) -> nn.Module:
    """Return a copy with other weights."""
    torch.manual_seed(5)
    spoiled = copy.deepcopy(network)
    for value in spoiled.parameters():
        value.data += 0.3 * torch.randn(value.shape)
    return spoiled


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_layer_that_can_compute_the_same_does_so_again(name: str) -> None:
    network = nn.Sequential(copy.deepcopy(LAYERS[name]))
    shape = (8,) if "linear" in name else (3, 10, 9)
    spoiled, material = _spoiled(network), _Material(256, *shape)
    before = {key: value.clone() for key, value in spoiled.state_dict().items()}
    made = refitted(spoiled, network, [Changed("0", "0")], material)  # type: ignore[arg-type]
    fresh = _Material(64, *shape).known.tensor.flip(0) * 1.1
    errors = [float((one(fresh) - network(fresh)).square().mean()) for one in (spoiled, made)]
    assert errors[1] < 1e-4 * errors[0]
    assert all(torch.equal(before[key], value) for key, value in spoiled.state_dict().items())


@torch.no_grad()
def test_a_layer_makes_up_for_those_before_it() -> None:
    """The second layer reads what a spoiled first one computes, and the third what the second does then."""
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    spoiled = copy.deepcopy(network)
    spoiled[0] = _spoiled(network[0])
    material: Any = _Material(1024, 8)
    images, errors = material.known.tensor, list[float]()
    for changed in ([], ["2"], ["4", "2"]):
        made = refitted(spoiled, network, [Changed(path, path) for path in changed], material)
        errors.append(float((made(images) - network(images)).square().mean()))
        assert torch.equal(made.get_parameter("0.weight"), spoiled.get_parameter("0.weight"))
    assert errors[0] > errors[1] > errors[2]


@torch.no_grad()
def test_outputs_that_are_gone_are_not_wanted() -> None:
    network = nn.Sequential(nn.Linear(8, 6))
    left = torch.tensor([True, False, True, True, False, True])
    smaller = nn.Sequential(nn.Linear(8, 4))
    material: Any = _Material(256, 8)
    made = refitted(smaller, network, [Changed("0", "0", left)], material)
    images = material.known.tensor
    assert torch.allclose(made(images), network(images)[:, left], atol=1e-2)


@torch.no_grad()
def test_what_cannot_come_nearer_stays() -> None:
    network = nn.Sequential(nn.Linear(8, 7))
    material: Any = _Material(256, 8)
    same = refitted(network, network, [Changed("0", "0")], material)
    assert torch.allclose(same.get_parameter("0.weight"), network.get_parameter("0.weight"), atol=1e-6)
    spoiled = _spoiled(network)
    few: Any = _Material(20, 8)  # rows
    made = refitted(spoiled, network, [Changed("0", "0")], few)
    assert torch.equal(made.get_parameter("0.weight"), spoiled.get_parameter("0.weight"))


@torch.no_grad()
def test_what_follows_in_place_is_not_learned() -> None:
    """An activation in place changes what a hook has seen."""
    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Linear(12, 4))
    material: Any = _Material(512, 8)
    made = refitted(_spoiled(network), network, [Changed("0", "0")], material)
    weights = made.get_parameter("0.weight"), network.get_parameter("0.weight")
    assert torch.allclose(*weights, atol=1e-2)
