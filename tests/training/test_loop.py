from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, DataError, TrainingError
from cnndeploy.training.checkpoint import Checkpoint
from cnndeploy.training.loop import Epoch, Step, train


def test_the_same_seed_gives_bitwise_the_same_weights(tmp_path: Path) -> None:
    first, again = (
        Checkpoint.load(train("lenet", tmp_path / f"{n}.pt", epochs=1, limit=1000, seed=7, threads=2).path)
        for n in range(2)
    )
    assert all(torch.equal(first.weights[key], again.weights[key]) for key in first.weights)


def test_steps_and_epochs_are_reported(tmp_path: Path) -> None:
    steps: list[Step] = []
    epochs: list[Epoch] = []
    train("lenet", tmp_path / "lenet.pt", epochs=2, limit=600, on_step=steps.append, on_epoch=epochs.append)
    assert [(step.epoch, step.step, step.steps) for step in steps] == [
        (1, 1, 3), (1, 2, 3), (1, 3, 3), (2, 1, 3), (2, 2, 3), (2, 3, 3),
    ]  # fmt: skip
    assert [epoch.test_images for epoch in epochs] == [600, 600]
    training = Artifact.open(tmp_path / "lenet.pt").require_manifest().training
    assert training["test_accuracy"] == epochs[-1].test_accuracy


def test_no_epochs_gives_the_untrained_network(tmp_path: Path) -> None:
    train("lenet", tmp_path / "lenet.pt", epochs=0, seed=5)
    loaded, fresh = Checkpoint.load(tmp_path / "lenet.pt"), Checkpoint.untrained("lenet", seed=5)
    assert all(torch.equal(loaded.weights[key], fresh.weights[key]) for key in fresh.weights)
    assert "test_accuracy" not in loaded.manifest.training


def test_a_diverging_loss_stops(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step \d+ of epoch 1.*--lr"):
        train("vgg11_small", tmp_path / "vgg.pt", epochs=1, limit=64, batch_size=8, learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    steps: list[Step] = []
    with pytest.raises(ArtifactError, match="does not exist"):
        train("lenet", tmp_path / "no" / "lenet.pt", epochs=1, limit=300, on_step=steps.append)
    assert not steps


def test_more_images_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="60000"):
        train("lenet", tmp_path / "lenet.pt", limit=60_001)
