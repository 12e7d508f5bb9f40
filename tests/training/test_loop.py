from __future__ import annotations

import dataclasses
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.architectures._recipe import Recipe
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, DataError, Stopped, TrainingError, UnknownNameError
from cnndeploy.training.state import Epoch, Plan, Precision, Step, state_path
from cnndeploy.training.train import _explained, deterministic, train


def test_the_same_seed_gives_bitwise_the_same_weights(tmp_path: Path) -> None:
    first, again = (
        Checkpoint.load(train("lenet", tmp_path / f"{n}.pt", epochs=1, images=1000, seed=7, threads=2).path)
        for n in range(2)
    )
    assert all(torch.equal(first.weights[key], again.weights[key]) for key in first.weights)


def test_steps_and_epochs_are_reported(tmp_path: Path) -> None:
    steps: list[Step] = []
    epochs: list[Epoch] = []
    train("lenet", tmp_path / "lenet.pt", epochs=2, images=600, on_step=steps.append, on_epoch=epochs.append)
    assert [(step.epoch, step.step, step.steps) for step in steps] == [
        (1, 1, 3), (1, 2, 3), (1, 3, 3), (2, 1, 3), (2, 2, 3), (2, 3, 3),
    ]  # fmt: skip
    assert [epoch.test_images for epoch in epochs] == [600, 600]
    training = Artifact.open(tmp_path / "lenet.pt").require_manifest().training
    assert training["test_accuracy"] == epochs[-1].test_accuracy


def test_no_epochs_gives_the_untrained_network(tmp_path: Path) -> None:
    train("lenet", tmp_path / "lenet.pt", recipe="original", epochs=0, seed=5)
    loaded, fresh = Checkpoint.load(tmp_path / "lenet.pt"), Checkpoint.untrained("lenet", seed=5)
    assert all(torch.equal(loaded.weights[key], fresh.weights[key]) for key in fresh.weights)
    assert "test_accuracy" not in loaded.manifest.training


def test_a_diverging_loss_stops(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step \d+ of epoch 1.*learning_rate=1e\+29"):
        train("vgg11_small", tmp_path / "vgg.pt", epochs=1, images=64, batch_size=8, learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    steps: list[Step] = []
    with pytest.raises(ArtifactError, match="does not exist"):
        train("lenet", tmp_path / "no" / "lenet.pt", epochs=1, images=300, on_step=steps.append)
    assert not steps


def test_more_images_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="60000"):
        train("lenet", tmp_path / "lenet.pt", images=60_001)


def test_bfloat16_is_computed_in_and_keeps_float32_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.training.train.has_bfloat16", lambda device: True)
    found = {}
    precisions: list[Precision] = ["float32", "bfloat16"]
    for precision in precisions:
        path = train("lenet", tmp_path / precision, epochs=1, images=512, precision=precision).path
        assert Artifact.open(path).require_manifest().training["precision"] == precision
        found[precision] = Checkpoint.load(path).weights["features.0.weight"]
        assert found[precision].dtype == torch.float32
    difference = float((found["bfloat16"] - found["float32"]).abs().max())
    assert 0 < difference < 0.02


def test_bfloat16_is_refused_where_the_hardware_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.training.train.has_bfloat16", lambda device: False)
    with pytest.raises(TrainingError, match="does not compute in bfloat16"):
        train("lenet", tmp_path / "lenet.pt", precision="bfloat16", images=100)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"recipe 'orignal'.*original"):
        train("lenet", tmp_path / "lenet.pt", recipe="orignal")


@pytest.mark.slow
def test_every_choice_of_a_recipe_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One choice changed at a time changes the weights."""
    plain = Recipe(epochs=2, batch_size=64, learning_rate=0.001)
    others: dict[str, Any] = {
        "epochs": 1, "batch_size": 32, "learning_rate": 0.002, "initialisation": "xavier", "schedule": "one-cycle",
        "weight_decay": 0.1, "label_smoothing": 0.1, "flip": True, "shift": 2, "crop": True,
    }  # fmt: skip
    assert others.keys() == {field.name for field in dataclasses.fields(Recipe)}
    design = ARCHITECTURES.get("lenet")
    seen = []
    for number, recipe in enumerate(
        [plain, *(replace(plain, **{key: value}) for key, value in others.items())]
    ):
        changed = replace(design, recipes={"tuned": recipe})
        monkeypatch.setattr("cnndeploy.architectures.lenet.ARCHITECTURE", changed)
        path = train("lenet", tmp_path / f"{number}.pt", images=256, threads=1).path
        seen.append(Checkpoint.load(path).weights["features.0.weight"].numpy().tobytes())
    assert len(set(seen)) == 1 + len(others)


def test_an_older_files_words_are_read(tmp_path: Path) -> None:
    path = train("lenet", tmp_path / "lenet.pt", epochs=1, images=300, threads=1).path
    checkpoint = Checkpoint.load(path)
    facts = dict(checkpoint.manifest.training)
    del facts["train_images"], facts["start"]
    facts["recipe"] = {key: value for key, value in facts["recipe"].items() if key != "crop"}
    older = {**facts, "limit": None, "images": 60_000, "precision": "bf16"}
    plan = Plan.recorded(older, path)
    assert (plan.images, plan.precision) == (None, "bfloat16")
    assert plan == replace(Plan.recorded(facts, path), images=None, precision="bfloat16")
    older = {**facts, "limit": 300, "images": 300}
    assert Plan.recorded(older, path) == Plan.recorded(facts, path)
    replace(checkpoint, manifest=replace(checkpoint.manifest, training=older)).save(path)
    again = train("lenet", tmp_path / "again.pt", recipe_of=path).path
    weights = Checkpoint.load(again).weights
    assert all(torch.equal(weights[name], value) for name, value in checkpoint.weights.items())


QUICK: dict[str, Any] = {"epochs": 1, "images": 300, "threads": 1}


def test_a_trained_checkpoint_is_replaced_only_if_that_is_asked(tmp_path: Path) -> None:
    path = train("lenet", tmp_path / "lenet.pt", **QUICK).path
    before = path.read_bytes()
    for arguments in (QUICK, QUICK | {"epochs": 0}):
        with pytest.raises(
            TrainingError,
            match=r"holds trained weights, with a test accuracy of 0\..*To replace .*overwrite=True",
        ):
            train("lenet", path, **arguments)
    assert path.read_bytes() == before
    with pytest.raises(TrainingError, match="choose one"):
        train("lenet", path, resume=True, overwrite=True, **QUICK)
    train("lenet", path, overwrite=True, seed=1, **QUICK)
    assert Artifact.open(path).require_manifest().training["seed"] == 1


def test_untrained_weights_are_replaced_and_files_of_others_are_not(tmp_path: Path) -> None:
    path = train("lenet", tmp_path / "lenet.pt", **QUICK | {"epochs": 0}).path
    train("lenet", path, **QUICK)
    (tmp_path / "empty.pt").touch()
    train("lenet", tmp_path / "empty.pt", **QUICK | {"epochs": 0})
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "theirs.pt")
    (tmp_path / "notes.txt").write_text("mine")
    for theirs in ("theirs.pt", "notes.txt"):
        with pytest.raises(TrainingError, match="exists, and it is not a checkpoint of cnndeploy"):
            train("lenet", tmp_path / theirs, **QUICK)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unfinished_training_is_begun_again_only_if_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    with pytest.raises(Stopped):
        train("lenet", path, should_stop=lambda: True, **QUICK)
    with pytest.raises(TrainingError, match=r"resume=True to go on with it, or with overwrite=True"):
        train("lenet", path, **QUICK)

    def crash(_: object) -> None:
        raise RuntimeError("the machine fails before anything is saved")

    with pytest.raises(RuntimeError):
        train("lenet", path, overwrite=True, on_step=crash, seed=1, **QUICK)
    assert not state_path(path).exists()  # else the old one would be gone on with
    train("lenet", path, overwrite=True, seed=1, **QUICK)
    assert Artifact.open(path).require_manifest().training["seed"] == 1


def test_a_training_that_is_asked_to_stop_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="at step 1 of epoch 1; train with resume=True") as stopped:
        train("lenet", tmp_path / "lenet.pt", epochs=1, images=300, should_stop=lambda: True)
    assert stopped.value.exit_code == 130
    with pytest.raises(TrainingError, match="resume=True"):
        train("lenet", tmp_path / "lenet.pt", epochs=1, images=300)


def test_on_a_gpu_training_takes_deterministic_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(torch.device("cpu")):
        assert torch.get_deterministic_debug_mode() == 0
    with deterministic(torch.device("cuda", 0)):
        assert torch.get_deterministic_debug_mode() == 1  # warns if there is none
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.get_deterministic_debug_mode() == 0
    memory: Any = torch.utils.deterministic
    assert memory.fill_uninitialized_memory


@pytest.mark.parametrize("library", ["CUBLAS", "CUDNN"])
def test_the_libraries_of_a_gpu_run_out_of_memory_too(library: str) -> None:
    with pytest.raises(TrainingError, match="batch_size=4"), _explained(8):
        raise RuntimeError(f"{library}_STATUS_ALLOC_FAILED when calling create")
