"""Fewer channels: which go together, which go first, and what the network computes without them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cnndeploy.architectures._widths import Width, resize_layers, widths_beside
from cnndeploy.compression.channels import Channels
from cnndeploy.compression.groups import groups_of
from cnndeploy.errors import CompressionError, MissingDependencyError
from cnndeploy.progress import Deadline, silent
from helpers import by_work

IMAGES = (24, 3, 9, 9)


class _Adding(nn.Module):
    """What two convolutions compute is added, so their channels go together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, padding=1)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.second(self.norm(self.first(x)).relu())).relu()
        result: torch.Tensor = self.last(x.mean((2, 3)))
        return result


class _Joining(nn.Module):
    """What two convolutions compute is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 16, 3, padding=1)
        self.after = nn.Conv2d(28, 8, 3)
        self.last = nn.Linear(8 * 49, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        result: torch.Tensor = self.last(self.after(x).relu().flatten(1))
        return result


class _Counting(nn.Module):
    """A forward() that relies on a number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Linear(16 * 49, 12)
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu().reshape(len(x), 16 * 49)
        result: torch.Tensor = self.last(self.second(x).relu())
        return result


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 4, 7),
        nn.Flatten(),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "adding": _Adding,
    "joining": _Joining,
    "depthwise": _depthwise,
}
GROUPS = {
    "adding": {("first",): {"second"}, ("second", "stem"): {"first", "last"}},
    "joining": {("left",): {"after"}, ("right",): {"after"}, ("after",): {"last"}},
    "depthwise": {("0",): {"5"}},
}


def _network(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 2)
    return network.eval()


def _images() -> torch.Tensor:
    return torch.randn(*IMAGES, generator=torch.Generator().manual_seed(1))


def _channels(network: nn.Module, monkeypatch: pytest.MonkeyPatch, images: torch.Tensor) -> Channels:
    monkeypatch.setattr("cnndeploy.compression.channels.milliseconds", by_work)
    settings: dict[str, Any] = {"threads": 1, "int8": False, "deadline": Deadline(), "progress": silent}
    return Channels(network, images[:1], images.split(10), **settings)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_are_added_or_go_through_a_layer_go_together(name: str) -> None:
    network = _network(NETWORKS[name])
    found = {tuple(sorted(group.writers)): set(group.readers) for group in groups_of(network, _images()[:1])}
    assert found == GROUPS[name]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_what_a_size_loses_is_tried_exactly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = _network(NETWORKS[name]), _images()
    channels, expected = _channels(network, monkeypatch, images), network(images)
    for root, times in channels.times.items():
        for size in sorted(times.keys() - {0}, reverse=True):
            with channels.tried(root, size):
                tried = network(images)
            smaller = channels.smaller({root: size})
            assert torch.allclose(smaller(images), tried, atol=1e-5)
            assert times[size] < times[0]
        assert not torch.allclose(tried, expected, atol=1e-4)  # the last has fewest
    assert torch.equal(network(images), expected)  # nothing stays behind
    least = {root: min(times.keys() - {0}) for root, times in channels.times.items()}
    smallest = channels.smaller(least)
    assert smallest(images).shape == expected.shape
    for root, size in least.items():
        assert len(smallest.get_parameter(f"{root}.weight")) == size


@torch.no_grad()
def test_channels_that_never_fire_are_lost_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = _network(_Joining), _images()
    network.get_parameter("right.bias")[[2, 3, 11]] = -1e3
    channels, expected = _channels(network, monkeypatch, images), network(images)
    assert 13 in channels.times["right"]
    assert torch.allclose(channels.smaller({"right": 13})(images), expected, atol=1e-6)
    assert not torch.allclose(channels.smaller({"right": 12})(images), expected, atol=1e-4)


@torch.no_grad()
def test_the_mean_of_a_channel_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that always says the same is lost exactly if nothing is padded; it goes first."""
    network, images = _network(_Joining), _images()
    network.get_parameter("left.weight")[5] = 0.0
    network.get_parameter("left.bias")[5] = 7.0
    channels, expected = _channels(network, monkeypatch, images), network(images)
    assert channels._order["left"][-1] == 5
    assert torch.allclose(channels.smaller({"left": 11})(images), expected, atol=1e-5)


@torch.no_grad()
def test_what_moves_the_readers_most_goes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = _network(_Joining), _images()
    network.get_parameter("after.weight")[:, 3] *= 100
    network.get_parameter("left.weight")[7] *= 1e-3
    order = _channels(network, monkeypatch, images)._order["left"].tolist()
    assert order[0] == 3
    assert order[-1] == 7


def test_a_network_that_would_take_an_image_without_a_batch_is_followed_too() -> None:
    """Torch-Pruning would give it each image of a tensor by itself, and could not follow that."""
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    groups = groups_of(nn.Sequential(*layers).eval(), torch.rand(1, 1, 8, 8))
    assert [(group.root, group.count) for group in groups] == [("0", 8)]


def test_a_network_that_counts_its_channels_keeps_them() -> None:
    network = _network(_Counting)
    before = {name: id(module) for name, module in network.named_modules()}
    assert [group.root for group in groups_of(network, _images()[:1])] == ["second"]
    assert {name: id(module) for name, module in network.named_modules()} == before


class _Mixing(nn.Module):
    """Channels change places between the layer that writes them and the one that reads them."""

    def __init__(self, mixing: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.LazyConv2d(12, 3)
        self.last, self.mixing = nn.Linear(12, 4), mixing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.mixing(x, self.first(x).relu())).relu()
        result: torch.Tensor = self.last(x.mean((2, 3)))
        return result


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x, y: torch.cat([x, y], 1),
        lambda _, y: y.flip(1),
        lambda _, y: y.softmax(1),
        lambda _, y: y - y.mean(1, keepdim=True),
        lambda _, y: functional.glu(y, 1),
        lambda _, y: y[:, :8] + y[:, 8:],
        lambda _, y: operator.add(*y.chunk(2, 1)),
        lambda _, y: torch.cat(y.chunk(2, 1)[::-1], 1),
    ],
)
@torch.no_grad()
def test_channels_that_are_mixed_stay_or_are_lost_exactly(
    mixing: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch-Pruning follows neither of these; what it finds counts only if the network computes the same."""
    torch.manual_seed(0)
    network, images = _Mixing(mixing), _images()
    network(images)  # the second layer sees how many channels it reads
    channels = _channels(network.eval(), monkeypatch, images)
    assert "second" in channels.times
    for root, times in channels.times.items():
        size = min(times.keys() - {0})
        with channels.tried(root, size):
            tried = network(images)
        assert torch.allclose(channels.smaller({root: size})(images), tried, atol=1e-4)


def test_a_network_without_inner_channels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompressionError, match="no layer can lose channels"):
        _channels(nn.Sequential(nn.Flatten(), nn.Linear(243, 4)), monkeypatch, _images())


def test_without_torch_pruning_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cnndeploy\[compress\]'"):
        groups_of(_network(_Adding), _images()[:1])


@torch.no_grad()
def test_widths_build_the_network_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = _network(_Adding), _images()
    channels = _channels(network, monkeypatch, images)
    added = next(root for root, group in channels._groups.items() if "stem" in group.writers)
    smaller = channels.smaller({added: 8, "first": 6})
    widths = widths_beside(smaller, network)
    assert widths == {"stem": (3, 8), "first": (8, 6), "norm": (6, 6), "second": (6, 8), "last": (8, 4)}
    again = _Adding().eval()
    resize_layers(again, widths)
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(images), smaller(images))
    assert widths_beside(network, network) == {}


@pytest.mark.parametrize(
    ("widths", "complaint"),
    [
        ({"nowhere": (1, 1)}, "no layer 'nowhere'"),
        ({"": (1, 1)}, "the network itself"),
        ({"2": (1, 1)}, "is no layer that can have fewer"),
        ({"0": (3, 0)}, "0 has 3 and 16 channels; it cannot have 3 and 0"),
        ({"0": (3, 10**9)}, "cannot have 3 and 1000000000"),
        ({"1": (3, 4)}, "1 has 16 and 16 channels; it cannot have 3 and 4"),
        ({"3": (8, 4)}, "3 has 16 and 16 channels; it cannot have 8 and 4"),
    ],
)
def test_widths_that_a_network_cannot_have_are_refused(widths: dict[str, Width], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resize_layers(_depthwise(), widths)
