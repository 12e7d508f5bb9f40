from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, CheckpointError, ExportError
from cnndeploy.exporters import export
from helpers import Trained


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self.path),)


def test_a_checkpoint_survives_the_disk(tmp_path: Path) -> None:
    checkpoint = Checkpoint.untrained("lenet", seed=3)
    artifact = checkpoint.save(tmp_path / "lenet.pt")
    loaded = Checkpoint.load(artifact.path)
    assert loaded.manifest == checkpoint.manifest == artifact.manifest
    assert loaded.sha256 == artifact.sha256
    assert all(torch.equal(loaded.weights[key], value) for key, value in checkpoint.weights.items())


def test_it_opens_with_weights_only(trained: Trained) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    assert set(content) == {"weights", "manifest"}


def test_the_manifest_says_how_it_was_trained(trained: Trained) -> None:
    training = Artifact.open(trained.checkpoint).require_manifest().training
    assert training["recipe"]["epochs"] == 2
    assert training["recipe"]["learning_rate"] == 0.003
    assert training["test_accuracy"] == training["epochs"][-1]["test_accuracy"] > 0.5
    assert len(training["dataset_sha256"]) == 4


@pytest.mark.parametrize("key", ["weights", "manifest", "more"])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(key: str, trained: Trained, tmp_path: Path) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    torch.save({**content, key: Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    for use in (Artifact.open, Checkpoint.load):
        with pytest.raises(CheckpointError, match=r"refused: it asks to run (os|posix)\.mkdir"):
            use(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_bare_pickle_bomb_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ArtifactError):
        Artifact.open(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("length", [1, 100, 1000, 10_000, 100_000, -1])
def test_a_truncated_checkpoint_is_refused(length: int, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "short.pt").write_bytes(trained.checkpoint.read_bytes()[:length])
    with pytest.raises((ArtifactError, CheckpointError), match="damaged"):
        Checkpoint.load(tmp_path / "short.pt")


@pytest.mark.parametrize("model_format", ["checkpoint", "torchscript"])
def test_one_flipped_bit_of_a_weight_is_refused(model_format: str, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    content = bytearray(trained.file_of(model_format).read_bytes())
    content[len(content) // 2] ^= 1  # half of a LeNet file is one large weight
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="checksum"):
        Artifact.open(path)


def test_weights_that_are_not_finite_are_not_exported(trained: Trained, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(trained.checkpoint)
    weights = {name: value * float("inf") for name, value in checkpoint.weights.items()}
    path = Checkpoint(weights, checkpoint.manifest).save(tmp_path / "inf.pt").path
    with pytest.raises(ExportError, match="NaN or infinite"):
        export(path, "onnx")


def test_other_weights_than_the_architectures_are_refused(tmp_path: Path) -> None:
    mixed = Checkpoint(Checkpoint.untrained("vgg11_small").weights, Checkpoint.untrained("lenet").manifest)
    mixed.save(tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match="are not those of lenet"):
        Checkpoint.load(tmp_path / "mixed.pt").network()


def test_what_torch_saved_but_not_we_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="not a cnndeploy checkpoint"):
        Checkpoint.load(tmp_path / "foreign.pt")


def _network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda network: network.state_dict(),
        lambda network: dict(network.state_dict()),
        lambda network: dict(network.named_parameters()),
        lambda network: {"epoch": 3, "model": network.state_dict()},
    ],
    ids=["state_dict", "dict", "parameters", "nested"],
)
def test_a_plain_state_dict_is_not_called_dangerous(make: Any, tmp_path: Path) -> None:
    torch.save(make(_network()), tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"is a plain state_dict.*neither the architecture") as error:
        Artifact.open(tmp_path / "resnet.pt")
    assert "cnndeploy import" in str(error.value)
    assert "refused" not in str(error.value)


def test_a_pickled_module_is_refused_with_the_line_that_saves_its_weights(tmp_path: Path) -> None:
    torch.save(_network(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"refused: it asks to run torch\.nn.*Sequential") as error:
        Artifact.open(tmp_path / "whole.pt")
    assert "torch.save(model.state_dict(), 'weights.pt')" in str(error.value)


@pytest.mark.parametrize("kind", ["state_dict", "ours"])
def test_a_bomb_among_weights_is_refused(kind: str, trained: Trained, tmp_path: Path) -> None:
    weights = dict(_network().state_dict())
    content = weights if kind == "state_dict" else torch.load(trained.checkpoint, weights_only=True)
    torch.save({**content, "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match=r"refused: it asks to run (os|posix)\.mkdir"):
        Artifact.open(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_ours_may_not_set_attributes(trained: Trained, tmp_path: Path) -> None:
    content = torch.load(trained.checkpoint, weights_only=True)
    torch.save({**content, "weights": _network().state_dict()}, tmp_path / "build.pt")
    with pytest.raises(CheckpointError, match="refused: it asks to run BUILD"):
        Artifact.open(tmp_path / "build.pt")


def test_an_exported_file_is_no_checkpoint(trained: Trained) -> None:
    with pytest.raises(CheckpointError, match="is an ONNX file, not a checkpoint"):
        Checkpoint.load(trained.onnx)
