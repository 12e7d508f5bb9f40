"""Repair: a smaller network learns what the original says, and labels."""

from __future__ import annotations

import copy
import math
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cnndeploy.compression import repair
from cnndeploy.compression.material import Material
from cnndeploy.compression.repair import repaired
from cnndeploy.datasets import Images, fashion_mnist
from cnndeploy.errors import OutOfTime, Stopped
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.progress import Deadline, silent
from cnndeploy.specs import Manifest, TensorSpec

MANIFEST = Manifest(
    "lenet",
    TensorSpec("image", "float32", ("batch", 1, 28, 28)),
    TensorSpec("logits", "float32", ("batch", 10)),
    Preprocessing((28, 28)),
    tuple("abcdefghij"),
)
SETTINGS: dict[str, Any] = {"bfloat16": False}


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module, Material]:
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)
    ).eval()
    worse = copy.deepcopy(original)
    with torch.no_grad():
        worse.get_parameter("1.weight").mul_(torch.rand(16, 784))
    images: Images = fashion_mnist.load("train").first(256)
    material = Material(
        original, images, images.first(8), MANIFEST, 1, torch.contiguous_format, Deadline(), silent
    )
    return original, worse, material


@torch.no_grad()
def _logits(network: nn.Module, images: Images) -> NDArray[np.float32]:
    prepared = images.prepared(range(len(images)), MANIFEST.preprocessing)
    logits: NDArray[np.float32] = network(torch.from_numpy(prepared)).numpy()
    return logits


def _centred(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take from each image's logits what changes no probability."""
    centred: NDArray[np.float32] = logits - logits.mean(axis=1, keepdims=True)
    return centred


def test_it_comes_nearer_to_the_original_and_changes_neither(
    networks: tuple[nn.Module, nn.Module, Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.compression.repair.LEARNING_RATE", 1e-3)
    original, worse, material = networks
    with torch.no_grad():
        for network in (original, worse):
            network.get_parameter("4.weight").mul_(20)  # so that they are as sure as trained networks
    taught = replace(fashion_mnist.load("train").first(256), labels=material.lesson.argmax(axis=1))
    material = replace(material, taught=taught)
    before = copy.deepcopy(worse.state_dict())
    made, seen = repaired(worse, material, epochs=20, **SETTINGS)
    assert seen == 256
    errors = [
        np.abs(_centred(_logits(one, material.taught) - material.lesson)).mean() for one in (worse, made)
    ]
    assert errors[1] < 0.7 * errors[0]
    assert all(torch.equal(before[name], value) for name, value in worse.state_dict().items())
    assert not made.training
    assert not any(value.requires_grad for value in made.parameters())
    assert np.allclose(_logits(original, material.taught), material.lesson, atol=0.1)  # perhaps bfloat16's


def test_labels_say_what_the_original_does_not_know(
    networks: tuple[nn.Module, nn.Module, Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.compression.repair.LEARNING_RATE", 1e-2)
    original, worse, material = networks
    made, _ = repaired(worse, material, epochs=20, **SETTINGS)
    right = [
        np.mean(_logits(one, material.taught).argmax(1) == material.taught.labels) for one in (original, made)
    ]
    assert right[0] < 0.3
    assert right[1] > 0.6


def test_it_is_the_same_each_time(networks: tuple[nn.Module, nn.Module, Material]) -> None:
    _, worse, material = networks
    (first, _), (second, _) = (repaired(worse, material, epochs=1, **SETTINGS) for _ in range(2))
    assert np.array_equal(_logits(first, material.taught), _logits(second, material.taught))


def test_when_the_time_is_over_it_ends(networks: tuple[nn.Module, nn.Module, Material]) -> None:
    _, worse, material = networks
    _ = material.lesson  # what the original says is known
    with pytest.raises(OutOfTime):
        repaired(worse, replace(material, deadline=Deadline(ends=0.0)), epochs=8, **SETTINGS)
    with pytest.raises(Stopped):
        repaired(worse, replace(material, deadline=Deadline(should_stop=lambda: True)), epochs=1, **SETTINGS)


def test_a_network_whose_weight_is_computed_is_repaired(
    networks: tuple[nn.Module, nn.Module, Material],
) -> None:
    """Torch refuses to copy such a weight."""
    _, worse, material = networks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is a newer one, which makes no such weight
        nn.utils.weight_norm(worse.get_submodule("1"))
    better, _ = repaired(worse, material, epochs=1, **SETTINGS)
    name = "1.weight_v"
    assert not torch.equal(better.get_parameter(name), worse.get_parameter(name))


def test_layers_that_are_not_safe_in_channels_last_are_trained_as_they_are(
    networks: tuple[nn.Module, nn.Module, Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer channels a layer may become one that writes beyond its memory."""
    _, _, material = networks
    material = replace(material, layout=torch.channels_last)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 10, 1, stride=2), nn.AvgPool2d(13), nn.Flatten())
    seen = set[bool]()

    def look(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.add(inputs[0].is_contiguous(memory_format=torch.channels_last))

    network[1].register_forward_pre_hook(look)
    repaired(network, material, epochs=1, **SETTINGS)
    assert seen == {False}


@pytest.mark.parametrize(
    ("left_s", "total"), [(math.inf, 20), (5.1, 20), (4.9, 19), (1.0, 12), (0.1, 10), (-1.0, 10)]
)
def test_as_many_steps_as_the_time_suffices_for(left_s: float, total: int) -> None:
    """Ten of twenty are done, and nine of them took four and a half seconds."""
    assert repair._fitting(20, 10, 4.5, left_s) == total


def test_a_repair_leaves_time_for_judging(
    networks: tuple[nn.Module, nn.Module, Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes a second by the clock, and there are a hundred for eight hundred steps."""
    _, worse, material = networks
    _ = material.lesson
    seconds = 0.0

    def progress(_done: int, _total: int, _text: str) -> None:
        nonlocal seconds
        seconds += 1

    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    monkeypatch.setattr(repair, "_FEWEST", 0.1)
    material = replace(material, progress=progress, deadline=Deadline(ends=100.0))
    repaired(worse, material, epochs=200, **SETTINGS)
    assert 80 <= seconds <= 90


def test_a_repair_with_little_time_is_short(
    networks: tuple[nn.Module, nn.Module, Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, worse, material = networks
    told = list[tuple[int, int]]()
    material = replace(material, progress=lambda done, total, text: told.append((done, total)))
    _ = material.lesson
    told.clear()
    monkeypatch.setattr(repair, "_KNOWN", 1)
    monkeypatch.setattr(repair, "_fitting", lambda *_: 3)
    _, seen = repaired(worse, material, epochs=3, **SETTINGS)
    assert told == [(0, 12), (1, 12), (2, 3)]
    assert seen == 192
    with pytest.raises(OutOfTime):
        repaired(worse, material, epochs=8, **SETTINGS)


def test_few_images_at_once_learn_the_same(networks: tuple[nn.Module, nn.Module, Material]) -> None:
    _, worse, material = networks
    whole, _ = repaired(worse, material, epochs=1, **SETTINGS)
    large = replace(material, work=10**10)  # 13 images at once
    parts, _ = repaired(worse, large, epochs=1, **SETTINGS)
    logits = [_logits(one, material.taught) for one in (worse, whole, parts)]
    assert np.abs(logits[1] - logits[2]).max() < 0.01 * np.abs(logits[1] - logits[0]).max()
