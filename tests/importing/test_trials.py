from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from cnndeploy.errors import ArtifactError
from cnndeploy.importing import trials
from cnndeploy.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(8, 8), channels=3, antialias=True)
IMAGE = trials.sample(PREPROCESSING)


class Function(nn.Module):
    """A network that is a function of the flattened images, (batch, 192)."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> Any:
        return self.function(torch.flatten(image, 1))


class Pair(NamedTuple):
    features: torch.Tensor
    logits: torch.Tensor


def test_the_sample_is_prepared_noise_of_three_images() -> None:
    assert IMAGE.shape == (3, 3, 8, 8)
    assert torch.equal(IMAGE, trials.sample(PREPROCESSING))
    assert float(IMAGE.std()) > 0.2


def test_a_classifier_passes() -> None:
    assert trials.check_outputs(Function(lambda x: x[:, :5] - 0.5).eval(), IMAGE, 5) == 5


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x[:, :4], r"tells 4 classes apart, and there are 5 labels"),
        (lambda x: torch.softmax(x[:, :5], dim=1), "returns probabilities"),
        (lambda x: x[:, :5] * torch.rand(1), "run again, the network's logits change"),
        (lambda x: x[:, :5] - x[:, :5].mean(dim=0), "depend on the others in its batch"),
        (lambda x: x[:, :5].double(), r"returns torch\.float64"),
        (lambda x: x[:, :5, None], r"returns \(3, 5, 1\)"),
        (lambda x: x[:1, :5], r"returns \(1, 5\)"),
        (lambda x: x[:, :5] * float("nan"), "NaN or infinite"),
        (lambda x: nn.functional.linear(x, torch.zeros(5, 7)), r"cannot be run on images \(3, 3, 8, 8\)"),
        (lambda x: [x[:, :5], x], "returns list, not logits"),
    ],
)
def test_what_cannot_be_deployed_as_a_classifier_is_refused(function: Any, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        trials.check_outputs(Function(function).eval(), IMAGE, 5)


def test_batch_normalisation_without_statistics_looks_across_the_batch() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 5)
    ).eval()
    with pytest.raises(ArtifactError, match="batch normalisation without running statistics"):
        trials.check_outputs(network, IMAGE, 5)


@pytest.mark.parametrize(
    ("function", "wanted", "chosen", "note"),
    [
        (lambda x: x[:, :5], None, None, ""),
        (lambda x: Pair(x, x[:, :5]), None, "logits", "features, logits; logits is taken"),
        (lambda x: {"features": x, "logits": x[:, :5]}, None, "logits", "features, logits; logits is taken"),
        (lambda x: (x[:, :5], x), None, "0", "0, 1; 0 is taken"),
        (lambda x: (x, x[:, :5]), "1", "1", ""),
        (lambda x: {"a": x, "b": x[:, :5]}, "b", "b", ""),
    ],
)
def test_the_logits_are_found_among_several_outputs(
    function: Any, wanted: str | None, chosen: str | None, note: str
) -> None:
    found, said = trials.output_of(Function(function), IMAGE, wanted)
    assert found == chosen
    assert note in said


@pytest.mark.parametrize(
    ("function", "wanted", "reason"),
    [
        (lambda x: x, "logits", "no output logits to choose"),
        (lambda x: (x, x), "2", "there is no output 2; there are 0, 1"),
        (lambda x: {"a": [x]}, "a", "the output a is list, not a tensor"),
        (lambda x: (), None, "there are none"),
    ],
)
def test_an_output_that_is_not_there_is_named(function: Any, wanted: str | None, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        trials.output_of(Function(function), IMAGE, wanted)


def test_a_factory_that_makes_another_network_is_found_out() -> None:
    own = Function(lambda x: x[:, :5]).train()
    trials.check_same(own, Function(lambda x: x[:, :5]).eval(), IMAGE, None)
    assert own.training
    with pytest.raises(ArtifactError, match="computes something else than its source builds"):
        trials.check_same(own, Function(lambda x: 2 * x[:, :5]).eval(), IMAGE, None)
