"""Repair: a smaller network learns what the original says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cnndeploy.compression.repair import Lesson, repaired
from cnndeploy.datasets import Images, fashion_mnist
from cnndeploy.errors import Stopped
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
SETTINGS = {"layout": torch.contiguous_format, "bfloat16": False, "progress": silent}


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module, Lesson]:
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10)
    ).eval()
    worse = copy.deepcopy(original)
    with torch.no_grad():
        worse.get_parameter("1.weight").mul_(torch.rand(16, 784))
    images: Images = fashion_mnist.load("train").first(256)
    lesson = Lesson(images, _logits(original, images), MANIFEST)
    return original, worse, lesson


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
    networks: tuple[nn.Module, nn.Module, Lesson], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.compression.repair.LEARNING_RATE", 1e-3)
    original, worse, lesson = networks
    before = copy.deepcopy(worse.state_dict())
    made = repaired(worse, lesson, epochs=20, deadline=Deadline(), **SETTINGS)  # type: ignore[arg-type]
    errors = [np.abs(_centred(_logits(one, lesson.images) - lesson.logits)).mean() for one in (worse, made)]
    assert errors[1] < 0.5 * errors[0]
    assert all(torch.equal(before[name], value) for name, value in worse.state_dict().items())
    assert not made.training
    assert not any(value.requires_grad for value in made.parameters())
    assert np.array_equal(_logits(original, lesson.images), lesson.logits)


def test_it_is_the_same_each_time(networks: tuple[nn.Module, nn.Module, Lesson]) -> None:
    _, worse, lesson = networks
    first, second = (
        repaired(worse, lesson, epochs=1, deadline=Deadline(), **SETTINGS)  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert np.array_equal(_logits(first, lesson.images), _logits(second, lesson.images))


def test_when_the_time_is_over_what_was_learned_is_returned(
    networks: tuple[nn.Module, nn.Module, Lesson],
) -> None:
    _, worse, lesson = networks
    made = repaired(worse, lesson, epochs=8, deadline=Deadline(ends=0.0), **SETTINGS)  # type: ignore[arg-type]
    assert np.array_equal(_logits(made, lesson.images), _logits(worse, lesson.images))
    with pytest.raises(Stopped):
        repaired(worse, lesson, epochs=1, deadline=Deadline(should_stop=lambda: True), **SETTINGS)  # type: ignore[arg-type]
