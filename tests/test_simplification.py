"""Every rewrite computes what the untouched network computes, and leaves alone what it would change."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from cnndeploy.preprocessing import Preprocessing
from cnndeploy.simplification import fold_preprocessing, simplify
from cnndeploy.simplification.merge_linear import fewest_multiplications

SEEDS = range(8)


def _ready(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with random weights, biases and running statistics."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=draw) * 0.3)
            if name.endswith("running_var"):
                value.copy_(value.abs() + 0.1)
    return network.eval().requires_grad_(False)


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _check(network: nn.Module, image: torch.Tensor, *applied: str) -> nn.Module:
    """Simplify, and hold the result against the network in float64, which rounds away nothing that is seen here."""
    before = copy.deepcopy(network.state_dict())
    simplified, rewrites = simplify(network)
    assert tuple(map(str, rewrites)) == applied
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    if not applied:
        assert simplified is network
        return network
    exact = copy.deepcopy(network).double()(image.double())
    own = float((network(image) - exact).abs().max())
    error = float((simplified(image) - exact).abs().max())
    assert error <= 8 * max(own, 2**-23 * float(exact.abs().max()))
    assert {value.dtype for value in simplified.state_dict().values()} <= {torch.float32}
    again, more = simplify(simplified)
    assert (again, more) == (simplified, ())
    return simplified


class _Does(nn.Module):
    """Some modules, and a function of these and the image."""

    def __init__(self, function: Callable[..., torch.Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.function(self, image)


def _choose(seed: int, *values: int) -> int:
    """One of some values, by a seed."""
    return values[int(torch.randint(len(values), (1,), generator=torch.Generator().manual_seed(seed)))]


# Linear layers.


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_layers_become_one(seed: int) -> None:
    sizes = [_choose(100 * seed + at, 4, 9, 20) + 30 * (at in (1, 2)) for at in range(4)]
    bias = seed % 2 == 0
    network = nn.Sequential(
        nn.Linear(sizes[0], sizes[1], bias),
        nn.Dropout(),
        nn.Linear(sizes[1], sizes[2]),
        nn.Identity(),
        nn.Linear(sizes[2], sizes[3]),
    )
    found = _check(_ready(network, seed), _images(5, sizes[0]), "merge_linear(0, 2, 4)")
    assert [name for name, module in found.named_modules() if isinstance(module, nn.Linear)] == ["4"]


def test_the_product_is_rounded_once() -> None:
    network = _ready(nn.Sequential(nn.Linear(9, 30), nn.Linear(30, 40), nn.Linear(40, 5)))
    simplified, _ = simplify(network)
    first, second, third = (each.weight.detach().double() for each in network)  # type: ignore[attr-defined]
    assert torch.equal(simplified.get_parameter("2.weight"), (third @ second @ first).float())


def test_the_cheapest_cuts_are_found() -> None:
    assert fewest_multiplications([25088, 4096, 4096, 10]) == (0, 3)
    assert fewest_multiplications([100, 10, 100]) == (0, 1, 2)  # 10,000 where two take 2,000
    assert fewest_multiplications([100, 10, 100, 10]) == (0, 3)
    for sizes in itertools.product((2, 3, 7, 20), repeat=5):
        cuts = [(0, *inner, 4) for count in range(4) for inner in itertools.combinations(range(1, 4), count)]
        costs = {each: sum(sizes[a] * sizes[b] for a, b in itertools.pairwise(each)) for each in cuts}
        assert costs[fewest_multiplications(sizes)] == min(costs.values())


def test_a_bottleneck_stays() -> None:
    _check(_ready(nn.Sequential(nn.Linear(20, 3), nn.Linear(3, 20))), _images(2, 20))


# Convolutions.


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pointwise_convolution_joins_the_one_before(seed: int) -> None:
    first = nn.Conv2d(
        3,
        8,
        _choose(seed, 1, 2, 3),
        stride=_choose(seed + 50, 1, 2),
        padding=_choose(seed + 60, 0, 2),
        dilation=_choose(seed + 70, 1, 2),
        bias=seed % 2 == 0,
        padding_mode="reflect" if seed % 3 == 0 else "zeros",
    )
    network = nn.Sequential(first, nn.Conv2d(8, 5, 1))
    _check(_ready(network, seed), _images(2, 3, 11, 12), "merge_convolutions(0, 1)")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pointwise_convolution_joins_the_one_behind(seed: int) -> None:
    padding = _choose(seed + 60, 0, 2)
    second = nn.Conv2d(
        8, 5, 3, stride=_choose(seed, 1, 2), padding=padding, dilation=_choose(seed + 70, 1, 2)
    )
    network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=padding == 0), nn.Dropout2d(), second)
    _check(_ready(network, seed), _images(2, 3, 11, 12), "merge_convolutions(0, 2)")


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding=1)),  # a bias, and zeros at the border
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding="same")),
        nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular")),
        nn.Sequential(nn.Conv2d(3, 8, 1, stride=2, bias=False), nn.Conv2d(8, 5, 3)),
        nn.Sequential(nn.Conv2d(3, 8, 1, padding=1, bias=False), nn.Conv2d(8, 5, 3)),
        nn.Sequential(nn.Conv2d(9, 2, 1, bias=False), nn.Conv2d(2, 8, 3)),  # a bottleneck
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1, stride=2)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1, padding=1)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, groups=2)),
        nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 64, 1)),  # more multiplications as one
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)),
    ],
    ids=lambda network: " ".join(map(str, network)),
)
def test_convolutions_that_are_not_one_stay(network: nn.Module) -> None:
    channels: int = network[0].in_channels  # type: ignore[index]
    _check(_ready(network), _images(2, channels, 9, 9))


# Batch normalisation.


@pytest.mark.parametrize("seed", SEEDS)
def test_batch_normalisation_is_folded(seed: int) -> None:
    groups = _choose(seed, 1, 2)
    convolution = nn.Conv2d(4, 6, 3, groups=groups, padding=1, bias=seed % 2 == 0, padding_mode="reflect")
    network = nn.Sequential(
        convolution,
        nn.BatchNorm2d(6, affine=seed % 3 > 0, eps=1e-2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 49, 5),
        nn.BatchNorm1d(5),
    )
    _check(_ready(network, seed), _images(3, 4, 7, 7), "fold_batch_norm(0, 1)", "fold_batch_norm(4, 5)")


def test_batch_normalisation_and_pointwise_convolution_are_folded_in_turn() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5))
    applied = ("fold_batch_norm(0, 1)", "fold_batch_norm(2, 3)", "merge_convolutions(1, 3)")
    _check(_ready(network), _images(2, 3, 8, 8), *applied)


@pytest.mark.parametrize(
    "flat",
    [
        lambda image: image.flatten(1),
        lambda image: image.view(image.size(0), -1),
        lambda image: image.reshape(image.shape[0], -1),
    ],
)
def test_batch_normalisation_behind_a_flattening_method_is_folded(
    flat: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    network = _Does(
        lambda own, image: own.norm(own.linear(flat(image))), linear=nn.Linear(12, 5), norm=nn.BatchNorm1d(5)
    )
    _check(_ready(network), _images(4, 3, 2, 2), "fold_batch_norm(linear, norm)")


@pytest.mark.parametrize(
    "layers",
    [
        (nn.ConvTranspose2d(4, 8, 3), nn.BatchNorm2d(8)),
        (nn.Conv2d(4, 8, 3), nn.SyncBatchNorm(8)),
        (nn.Conv2d(4, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        (nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8)),
    ],
    ids=lambda layers: " ".join(map(str, layers)),
)
def test_other_normalisations_and_layers_stay(layers: tuple[nn.Module, ...]) -> None:
    _check(_ready(nn.Sequential(*layers)), _images(2, 4, 7, 7))


def test_a_value_that_is_changed_in_place_later_is_taken_before() -> None:
    """The folded layer stands where the convolution stood, not where normalisation did."""

    def function(own: Any, image: torch.Tensor) -> torch.Tensor:
        image = image * 1
        between = own.convolution(image)
        image.relu_()
        return torch.flatten(own.norm(between) + image, 1)

    network = _Does(function, convolution=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3))
    _check(_ready(network), _images(2, 3, 6, 6), "fold_batch_norm(convolution, norm)")


def test_tensors_of_the_network_itself_are_kept() -> None:
    network = _Does(
        lambda own, image: own.norm(own.convolution(image - own.mean)) * own.scale,
        convolution=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
        scale=nn.Parameter(torch.ones(4, 1, 1)),
    )
    network.register_buffer("mean", torch.ones(3, 1, 1))
    simplified = _check(_ready(network), _images(2, 3, 6, 6), "fold_batch_norm(convolution, norm)")
    assert simplified.get_buffer("mean") is not network.get_buffer("mean")


@pytest.mark.parametrize(
    "function",
    [
        lambda own, image: own.norm(own.convolution(image)) * own.norm.weight.sum(),
        lambda own, image: own.norm(own.convolution(image)) * torch.full((1,), 3.0),  # made while tracing
        lambda own, image: own.norm(input=own.convolution(image)),
    ],
)
def test_what_is_used_otherwise_too_stays(function: Callable[..., torch.Tensor]) -> None:
    network = _ready(_Does(function, convolution=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))
    before = set(vars(network))
    _check(network, _images(2, 3, 6, 6))
    assert set(vars(network)) == before


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "computed",
    [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm],
    ids=["weight norm", "spectral norm", "parametrization"],
)
def test_weights_that_are_computed_from_others_stay(computed: Callable[[nn.Module], nn.Module]) -> None:
    network = nn.Sequential(
        computed(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )
    torch.nn.init.uniform_(network[1].running_var, 0.5, 2)  # type: ignore[arg-type]
    image = _images(2, 3, 7, 7)
    simplified, applied = simplify(network.eval())
    assert tuple(map(str, applied)) == ("fold_batch_norm(2, 3)",)
    expected = network(image).detach()
    assert torch.allclose(simplified(image), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _training(module: nn.Module) -> nn.Module:
    module.train()
    return module


def test_batch_normalisation_by_the_batch_stays() -> None:
    image = _images(4, 3, 8, 8)
    by_batch = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    _check(_ready(by_batch), image)
    training = _ready(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    _training(training[1])  # type: ignore[index]
    _check(training, image)


def test_normalisation_of_another_axis_than_the_features_stays() -> None:
    """Behind (batch, 5, 7) a linear layer gives (batch, 5, 5), of which the second axis is normalised."""
    _check(_ready(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))), _images(3, 5, 7))


# Pooling.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_pooling_goes_before_an_activation(seed: int, activation: type[nn.Module]) -> None:
    pool = nn.MaxPool2d(3, stride=2, padding=_choose(seed, 0, 1), ceil_mode=seed % 2 == 0)
    network = _ready(nn.Sequential(nn.Conv2d(2, 4, 3), activation(), pool), seed)
    image = _images(2, 2, 10, 13, seed=seed)
    found = _check(network, image, "pool_before_activation(1, 2)")
    kinds = {name: type(module) for name, module in found.named_modules() if name}
    assert kinds == {"0": nn.Conv2d, "2_pool": nn.MaxPool2d, "2": activation}
    assert torch.allclose(found(image), network(image), rtol=0, atol=2**-23)


def test_pooling_goes_before_relu_where_that_is_not_behind_a_convolution() -> None:
    image = _images(2, 3, 8, 8)
    network = _ready(nn.Sequential(nn.AvgPool2d(2, 1), nn.ReLU(), nn.MaxPool2d(2)))
    found = _check(network, image, "pool_before_activation(1, 2)")
    assert torch.equal(found(image), network(image))
    _check(_ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))), image)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Hardswish(), nn.MaxPool2d(2)),  # which falls before it rises
        nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(3, stride=1)),  # which leaves as much to compute
        nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2, padding=1, dilation=3)),
        nn.Sequential(nn.AvgPool2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    ],
    ids=lambda network: " ".join(map(str, network)),
)
def test_pooling_stays_behind(network: nn.Module) -> None:
    _check(_ready(network), _images(2, 3, 12, 12))


# What any rewrite must heed.


class _Twice(nn.Module):
    """Takes the value between two modules once more, or calls the first twice."""

    def __init__(self, first: nn.Module, second: nn.Module, calls: bool) -> None:
        super().__init__()
        self.first, self.second, self.calls = first, second, calls

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        between = self.first(image)
        other = self.first(image + 1) if self.calls else between
        return torch.flatten(self.second(between), 1).sum(1) + torch.flatten(other, 1).sum(1)


PAIRS: list[tuple[Callable[[], tuple[nn.Module, nn.Module]], tuple[int, ...]]] = [
    (lambda: (nn.Linear(6, 30), nn.Linear(30, 4)), (2, 6)),
    (lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)), (2, 3, 7, 7)),
    (lambda: (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (2, 3, 7, 7)),
    (lambda: (nn.Sigmoid(), nn.MaxPool2d(2)), (2, 3, 8, 8)),
]


@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=["linear", "convolutions", "norm", "pool"])
def test_what_is_used_twice_stays(
    pair: tuple[Callable[[], tuple[nn.Module, nn.Module]], tuple[int, ...]], calls: bool
) -> None:
    make, shape = pair
    _check(_ready(_Twice(*make(), calls)), _images(*shape))
    once = nn.Sequential(*make())
    assert simplify(_ready(once))[1]  # so that it is the second use that is heeded


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Dropout(), nn.Tanh()])
def test_what_is_between_is_heeded(between: nn.Module) -> None:
    network = _ready(nn.Sequential(nn.Linear(6, 30), between, nn.Linear(30, 4)))
    between.train()  # a dropout that is active
    assert simplify(network) == (network, ())


def test_hooks_and_subclasses_are_heeded() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return 2 * super().forward(input)

    _check(_ready(nn.Sequential(Doubled(6, 30), nn.Linear(30, 4))), _images(2, 6))
    hooked = _ready(nn.Sequential(nn.Linear(6, 30), nn.Linear(30, 4)))
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)  # type: ignore[index]
    _check(hooked, _images(2, 6))


class _Branching(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        value: torch.Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return value if value.sum() > 0 else -value


def test_what_cannot_be_traced_or_is_not_ready_is_left_alone() -> None:
    pair = (nn.Linear(6, 30), nn.Linear(30, 4))
    assert simplify(_ready(nn.Sequential(*pair)))[1]
    for network in (
        _ready(_Branching(*pair)),
        nn.Sequential(*copy.deepcopy(pair)).train(),
        nn.Sequential(*copy.deepcopy(pair)).eval().double(),
    ):
        assert simplify(network) == (network, ())


def test_it_is_deterministic_whatever_the_threads() -> None:
    network = _ready(nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 200), nn.Linear(200, 10)))
    threads, found = torch.get_num_threads(), []
    state = torch.get_rng_state()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(simplify(network)[0].get_parameter("2.weight"))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


# Preprocessing.


@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.286, 0.353)])
def test_preprocessing_is_folded(padding: int | str, mean: float, std: float) -> None:
    network = _ready(nn.Sequential(nn.Conv2d(1, 4, 3, padding=padding), nn.Tanh(), nn.MaxPool2d(2)))
    preprocessing = Preprocessing(size=(8, 8), mean=mean, std=std)
    raw = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    folded, remaining, applied = fold_preprocessing(network, preprocessing)
    assert tuple(map(str, applied)) == ("fold_preprocessing(0)",)
    shifts = mean != 0 and padding in (2, "same")
    expected = (mean * 255 if shifts else 0.0, 1.0, 1.0)
    assert (remaining.mean, remaining.std, remaining.scale) == pytest.approx(expected)
    given = folded(raw - remaining.means[0])
    assert torch.allclose(given, network((raw / 255 - mean) / std), rtol=0, atol=1e-6)


class _ShownTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        shown: torch.Tensor = self.first(image) + image
        return shown


@pytest.mark.parametrize(
    "network",
    [
        _ShownTwice(),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 4, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
    ],
)
def test_preprocessing_stays_where_the_input_goes_elsewhere(network: nn.Module) -> None:
    preprocessing = Preprocessing(size=(8, 8))
    assert fold_preprocessing(network.eval(), preprocessing) == (network, preprocessing, ())


def test_what_is_built_shares_nothing_with_the_network() -> None:
    network = _ready(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.MaxPool2d(2)))
    simplified, _ = simplify(network)
    assert isinstance(simplified, fx.GraphModule)
    with torch.no_grad():
        simplified.get_parameter("0.weight").fill_(math.pi)
    assert not (network.get_parameter("0.weight") == math.pi).any()
