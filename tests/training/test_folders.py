"""Networks and images of somebody else are trained like ours."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from cnndeploy.architectures._recipe import Recipe, usual
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets import open_dataset
from cnndeploy.errors import (
    ArtifactError,
    CheckpointError,
    DataError,
    Stopped,
    TrainingError,
    UnknownNameError,
)
from cnndeploy.evaluation import evaluate
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.training import decoded
from cnndeploy.training.batches import Batches, HeldOut, generator
from cnndeploy.training.distributed import Processes
from cnndeploy.training.state import state_path
from cnndeploy.training.train import train
from helpers import RESNET, SMALL_RGB as SMALL

QUICK: dict[str, Any] = {"preprocessing": SMALL, "epochs": 2, "batch_size": 8, "threads": 1, "seed": 1}


@pytest.fixture(scope="module")
def shoes(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the ResNet, trained until it tells the colours apart."""
    path = tmp_path_factory.mktemp("shoes") / "shoes.pt"
    return train(RESNET, path, data=photos, **QUICK | {"epochs": 12, "learning_rate": 0.01}).path


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RESNET, tmp_path_factory.mktemp("unbroken") / "r.pt", data=photos, **QUICK).path


def test_a_network_of_a_file_learns_a_folder_of_photos(shoes: Path, photos: Path) -> None:
    manifest = Artifact.open(shoes).require_manifest()
    assert manifest.labels == ("banana", "lime", "night", "plum", "snow")
    assert (manifest.architecture, dict(manifest.source.arguments)) == ("resnet.py:build", {"classes": 5})
    assert (manifest.preprocessing, manifest.data) == (SMALL, str(photos))
    assert manifest.training["test_accuracy"] > 0.8
    evaluation = evaluate(shoes)  # with no parameter, on what was recorded
    assert evaluation.accuracy == manifest.training["test_accuracy"]
    assert [list(row) for row in evaluation.confusion] == manifest.training["confusion"]
    assert "background" not in manifest.training  # of grey images only


@pytest.mark.parametrize(
    "preprocessing",
    [
        SMALL,
        Preprocessing(size=(24, 32), channels=3, resize=(40, 40), antialias=True, interpolation="bicubic"),
        Preprocessing(size=(32, 32), channels=3, std=0.3),
        Preprocessing(
            size=(40, 40), channels=3, resize=30, antialias=True, scale=1.0, mean=100, std=(50, 60, 70)
        ),
    ],
)
def test_what_the_loop_tests_on_is_what_is_deployed(preprocessing: Preprocessing, photos: Path) -> None:
    dataset = open_dataset(photos)
    images = dataset.split("test", 3, dataset.classes)
    decoder = decoded.Decoder(preprocessing, usual()["tuned"], lambda *_: None, lambda: False)
    held = HeldOut(decoder.to_test(images), preprocessing, torch.device("cpu"))
    assert np.array_equal(held.batch(slice(0, 30)).numpy(), preprocessing(list(images.read(range(30)))))
    assert held.labels.tolist() == images.labels.tolist()  # type: ignore[union-attr]


def test_images_to_train_on_are_cut_out_of_what_deployment_would_see(photos: Path) -> None:
    dataset = open_dataset(photos)
    images = dataset.split("train", 3, dataset.classes)
    plain = Recipe(1, 32, 0.1)
    cut = replace(plain, flip=True, crop=True)

    def first(recipe: Recipe) -> tuple[decoded.Decoded, torch.Tensor, torch.Tensor]:
        decoder = decoded.Decoder(SMALL, recipe, lambda *_: None, lambda: False)
        held = decoder.to_train(images)
        values, labels, _ = next(Batches(held, SMALL, recipe, 3, torch.device("cpu"), Processes()).epoch(1))
        return held, values, labels

    held, values, labels = first(plain)
    order = torch.randperm(60, generator=generator("order", 3, 1))[:32].tolist()
    assert np.array_equal(values.numpy(), SMALL(list(images.read(order))))  # without variation the very same
    assert labels.tolist() == held.labels[order].tolist()
    held, values, _ = first(cut)
    assert held.images.shape == (60, 37, 37, 3)
    whole = replace(SMALL, size=(37, 37), resize=None)(held.images[order[0]][None])[0]
    windows = {
        (row, column, flip)
        for row in range(6)
        for column in range(6)
        for flip in (1, -1)
        if np.array_equal(whole[:, row : row + 32, column : column + 32], values[0].numpy()[..., ::flip])
    }
    assert len(windows) == 1
    assert len({value.numpy().tobytes() for value in values}) == 32


def test_the_same_seed_and_what_was_resumed_have_the_same_bytes(
    unbroken: Path, photos: Path, tmp_path: Path
) -> None:
    again = train(RESNET, tmp_path / "again.pt", data=photos, **QUICK).path
    assert again.read_bytes() == unbroken.read_bytes()
    other = train(RESNET, tmp_path / "other.pt", data=photos, **QUICK | {"seed": 2}).path
    assert other.read_bytes() != unbroken.read_bytes()
    steps: list[object] = []
    path = tmp_path / "resumed.pt"
    with pytest.raises(Stopped, match="step 2 of epoch 2"):
        train(RESNET, path, data=photos, on_step=steps.append, should_stop=lambda: len(steps) == 10, **QUICK)
    train(RESNET, path, resume=True)  # network, data and preprocessing are those that it was begun with
    assert path.read_bytes() == unbroken.read_bytes()
    train(RESNET, path, resume=True)  # it is complete
    assert path.read_bytes() == unbroken.read_bytes()


def test_a_folder_that_moved_is_the_same_data(unbroken: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "moved")
    path = tmp_path / "r.pt"
    stop, on_step = _after_a_step()
    with pytest.raises(Stopped):
        train(RESNET, path, data=photos, should_stop=stop, on_step=on_step, **QUICK)
    train(RESNET, path, data=tmp_path / "moved", resume=True)
    ours, theirs = Checkpoint.load(path).weights, Checkpoint.load(unbroken).weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _repainted(photo: Path) -> bytes:
    """Return a picture of another colour, filled up to the same number of bytes."""
    buffer, size = io.BytesIO(), photo.stat().st_size
    Image.new("RGB", (20, 20), (250, 0, 250)).save(buffer, "JPEG")
    assert len(buffer.getvalue()) <= size
    return buffer.getvalue().ljust(size, b"\0")


def _after_a_step() -> tuple[Callable[[], bool], Callable[[object], None]]:
    done: list[object] = []
    return lambda: bool(done), done.append


def test_what_differs_is_not_gone_on_with(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.pt"
    stop, on_step = _after_a_step()
    with pytest.raises(Stopped):
        train(RESNET, path, data=photos, should_stop=stop, on_step=on_step, **QUICK)
    before = state_path(path).read_bytes()
    larger = tmp_path / "larger"
    shutil.copytree(photos, larger)
    shutil.copy(larger / "train/lime/00.jpg", larger / "train/lime/99.jpg")
    weights = tmp_path / "start.pth"
    torch.save(Checkpoint.untrained("lenet").weights, weights)
    for changed, message in [
        ({"arguments": {"width": 4}}, r"arguments {'classes': 5}, not {'width': 4, 'classes': 5}"),
        ({"preprocessing": Preprocessing(size=(32, 32), channels=3)}, "preprocessing"),
        ({"data": larger}, "dataset_sha256"),
        ({"weights": weights}, "start None, not [0-9a-f]{64}"),
    ]:
        with pytest.raises(TrainingError, match=f"was begun otherwise: {message}"):
            train(RESNET, path, resume=True, **changed)  # type: ignore[arg-type]
    repainted = tmp_path / "repainted"  # with other pixels, in files of the same names and sizes
    shutil.copytree(photos, repainted)
    Path(repainted / "train/lime/00.jpg").write_bytes(_repainted(photos / "train/lime/00.jpg"))
    with pytest.raises(TrainingError, match="was begun on other images: some have changed since"):
        train(RESNET, path, resume=True, data=repainted)
    own = tmp_path / "resnet.py"
    own.write_text(Path(RESNET.rpartition(":")[0]).read_text() + "# changed\n")
    with pytest.raises(TrainingError, match="the file of the source, by its SHA-256"):
        train(f"{own}:build", path, resume=True)
    assert state_path(path).read_bytes() == before


def test_a_damaged_image_is_named_and_left_out(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "train/plum/03.jpg").write_bytes(b"no image")
    (folder / "val/snow/01.jpg").write_bytes((folder / "val/snow/01.jpg").read_bytes()[:300])
    with pytest.warns(
        UserWarning, match=r"1 image cannot be used and is left out: .*(plum/03|snow/01)\.jpg"
    ) as said:
        path = train(RESNET, tmp_path / "r.pt", data=folder, **QUICK | {"epochs": 1}).path
    assert len(said) == 2
    training = Artifact.open(path).require_manifest().training
    assert (training["train_images"], training["test_images"]) == (59, 29)
    with pytest.warns(UserWarning, match="snow/01"):
        assert evaluate(path).accuracy == training["test_accuracy"]


def test_too_few_classes_and_wrong_data(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.pt"
    (tmp_path / "one/lime").mkdir(parents=True)
    shutil.copytree(photos / "train/lime", tmp_path / "one/lime", dirs_exist_ok=True)
    shutil.copytree(photos / "train", tmp_path / "more/train")
    shutil.copytree(photos / "val", tmp_path / "more/val")
    shutil.copytree(photos / "val/lime", tmp_path / "more/val/unknown")
    for data, message in [
        (tmp_path / "one", "has 1 classes; a network is trained on 2 to 100,000"),
        (photos / "train/lime", "has 0 classes"),
        (tmp_path / "more", "has classes that are none of the model's labels.*: unknown"),
        (tmp_path / "nowhere", "no such folder"),
    ]:
        with pytest.raises(DataError, match=message):
            train(RESNET, output, data=data, **QUICK)
    assert not output.exists()


def test_an_output_that_cannot_be_written_is_found_before_images_are_decoded(
    photos: Path, tmp_path: Path
) -> None:
    read: list[object] = []
    with pytest.raises(ArtifactError, match="does not exist"):
        train(RESNET, tmp_path / "no/r.pt", data=photos, progress=lambda *done: read.append(done), **QUICK)
    assert not read


def test_images_are_decoded_once_with_progress_and_can_be_stopped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[tuple[int, int, str]] = []
    with pytest.raises(Stopped, match="while images were decoded"):
        train(
            RESNET,
            tmp_path / "r.pt",
            data=photos,
            progress=lambda *done: seen.append(done),
            should_stop=lambda: len(seen) == 65,
            **QUICK,
        )
    assert seen[0] == (1, 60, "Decoding images to train on")
    assert seen[-1] == (5, 30, "Decoding images to test on")
    assert list(tmp_path.iterdir()) == []  # the temporary file among them
    full = SimpleNamespace(free=9)
    monkeypatch.setattr("cnndeploy.training.decoded.shutil.disk_usage", lambda _: full)
    with pytest.raises(TrainingError, match=r"0.0 GB are free.*TMPDIR"):
        train(RESNET, tmp_path / "r.pt", data=photos, **QUICK)


def test_a_disk_that_is_full_at_the_last_byte_is_told_with_advice() -> None:
    class Full:
        def write(self, content: bytes) -> None: ...

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingError, match=r"No space left on device.*TMPDIR"):
        decoded._append(Full(), np.zeros(3, np.uint8))


def test_weights_with_another_head_are_started_from(shoes: Path, photos: Path, tmp_path: Path) -> None:
    three = tmp_path / "three"
    for label in ("lime", "plum", "snow"):
        shutil.copytree(photos / "train" / label, three / label)
    start = tmp_path / "start.pth"
    torch.save({"state_dict": dict(Checkpoint.load(shoes).weights)}, start)
    notes: list[str] = []
    path = train(
        RESNET, tmp_path / "r.pt", data=three, weights=start, on_note=notes.append, **QUICK | {"epochs": 0}
    ).path
    assert any("left out classifier.bias, classifier.weight" in note for note in notes)
    assert any("a fifth of the images of each class is held out" in note for note in notes)
    ours, theirs = Checkpoint.load(path).weights, Checkpoint.load(shoes).weights
    assert ours["classifier.weight"].shape == (3, 16)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("classifier"))
    trained = train(RESNET, tmp_path / "t.pt", data=three, weights=start, **QUICK).path
    with pytest.raises(TrainingError, match="pass the same file as weights"):
        train(RESNET, tmp_path / "again.pt", recipe_of=trained)
    again = train(RESNET, tmp_path / "again.pt", recipe_of=trained, weights=start).path
    assert again.read_bytes() == trained.read_bytes()
    torch.save(dict(Checkpoint.untrained("lenet").weights), start)
    with pytest.raises(ArtifactError, match="missing"):
        train(RESNET, tmp_path / "no.pt", data=three, weights=start, **QUICK)
    torch.save(dict(Checkpoint.load(shoes).weights), start)
    with pytest.raises(ArtifactError, match="the weights are those of another one"):
        train(RESNET, tmp_path / "no.pt", data=three, weights=start, arguments={"width": 4}, **QUICK)


def test_a_checkpoint_is_trained_again_only_with_code_that_was_named(
    shoes: Path, unbroken: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = train(None, tmp_path / "again.pt", recipe_of=unbroken).path
    assert again.read_bytes() == unbroken.read_bytes()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of somebody else"))
    monkeypatch.delenv("CNNDEPLOY_SOURCES")
    with pytest.raises(CheckpointError, match="a file must not run code by itself"):
        train(None, tmp_path / "third.pt", recipe_of=unbroken)
    with pytest.raises(TrainingError, match="name the network"):
        train(None, tmp_path / "third.pt", data=photos)


_FACTORIES = """
import torch
from torch import nn

def fails(classes):
    raise KeyError("width")

def two_numbers(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

def probabilities(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes), nn.Softmax(1))

class Viewing(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 4, 3, 8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(64, classes)
    def forward(self, x):
        x = self.parts[1](self.parts[0](x))  # one by one, and the last not at all
        return self.head(x.view(len(x), -1))

class Auxiliary(Viewing):
    def forward(self, x):
        logits = super().forward(x)
        return {"auxiliary": -logits, "logits": logits} if self.training else logits

class Several(Viewing):
    def forward(self, x):
        return super().forward(x), x

class Renamed(Viewing):
    def forward(self, x):
        logits = super().forward(x)
        return {"a": logits, "b": x} if self.training else {"logits": logits, "features": x}

def frozen(classes):
    network = Viewing(classes)
    return network.requires_grad_(False)
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    (tmp_path / "factories.py").write_text(_FACTORIES)
    return tmp_path / "factories.py"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("fails", r"factories.py:fails fails in .*factories.py, line 6: KeyError: 'width'"),
        ("two_numbers", "tells 2 classes apart, and there are 5 labels"),
        ("probabilities", "returns probabilities"),
        ("Renamed", "in training mode the network returns dict: there is no output logits; there are a, b"),
        ("frozen", "has no weights to train"),
        ("nothing", "defines no function nothing"),
    ],
)
def test_a_network_that_cannot_be_trained_says_why(
    factory: str, message: str, factories: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        train(f"{factories}:{factory}", tmp_path / "r.pt", data=photos, **QUICK)
    assert not (tmp_path / "r.pt").exists()


@pytest.mark.parametrize("factory", ["Viewing", "Auxiliary"])
def test_networks_that_view_and_that_have_more_outputs_in_training(
    factory: str, factories: Path, photos: Path, tmp_path: Path
) -> None:
    path = train(f"{factories}:{factory}", tmp_path / "r.pt", data=photos, **QUICK).path
    assert Artifact.open(path).require_manifest().source.output is None
    assert evaluate(path).accuracy == Artifact.open(path).require_manifest().training["test_accuracy"]


def test_the_logits_among_several_outputs(factories: Path, photos: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    path = train(
        f"{factories}:Several", tmp_path / "r.pt", data=photos, on_note=notes.append, **QUICK | {"epochs": 1}
    ).path
    assert "the network returns 0, 1; 0 is taken for the logits" in notes
    assert Artifact.open(path).require_manifest().source.output == "0"
    assert evaluate(path).accuracy == Artifact.open(path).require_manifest().training["test_accuracy"]


def test_a_small_last_batch_is_joined(photos: Path, tmp_path: Path) -> None:
    steps: list[Any] = []
    train(RESNET, tmp_path / "r.pt", data=photos, on_step=steps.append, **QUICK | {"images": 17, "epochs": 1})
    assert [step.step for step in steps] == [1, 2]  # 8 and 9, for one image has no variance
    with pytest.raises(TrainingError, match="Batch normalisation needs two images or more"):
        train(
            "torchvision:resnet18",
            tmp_path / "b.pt",
            data=photos,
            **QUICK | {"images": 3, "epochs": 1, "batch_size": 1},
        )


@pytest.mark.parametrize(
    ("network", "options"), [(RESNET, {"layout_optimization": False}), ("torchvision:resnet18", None)]
)
def test_the_compiler_keeps_the_layout_in_which_a_network_is_safe(
    network: str,
    options: dict[str, Any] | None,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In channels last oneDNN ends the process in the backward pass of tests/resnet.py."""
    asked: list[Any] = []

    def compile_nothing(module: torch.nn.Module, *, options: Any = None) -> torch.nn.Module:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile_nothing)
    few = QUICK | {"epochs": 1, "images": 8}
    train(network, tmp_path / "r.pt", data=photos, compiled=True, **few)
    assert asked == [options]


def test_our_networks_take_folders_in_grey(photos: Path, tmp_path: Path) -> None:
    path = train("lenet", tmp_path / "lenet.pt", data=photos, epochs=1, threads=1).path
    manifest = Artifact.open(path).require_manifest()
    assert (len(manifest.labels), manifest.preprocessing.channels) == (5, 1)
    assert manifest.training["background"] in ("dark", "light")
    assert evaluate(path).accuracy == manifest.training["test_accuracy"]


def test_networks_of_others_take_fashion_mnist(tmp_path: Path) -> None:
    path = train(RESNET, tmp_path / "r.pt", data="fashion-mnist", **QUICK | {"epochs": 1, "images": 64}).path
    manifest = Artifact.open(path).require_manifest()
    assert (len(manifest.labels), manifest.data) == (10, "fashion-mnist")
    top5 = manifest.training["epochs"][0]["test_top5_accuracy"]
    assert (manifest.training["test_accuracy"], top5) == (
        evaluate(path, images=64).accuracy,
        evaluate(path, images=64).top5_accuracy,
    )
    with pytest.raises(UnknownNameError, match=r"recipe 'original'.*tuned"):
        train(RESNET, tmp_path / "o.pt", recipe="original", **QUICK)


def test_the_confusion_of_many_classes_is_not_kept(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(101):
        folder = tmp_path / "data" / f"{number:03}"
        folder.mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / name)
    tiny = Preprocessing(size=(8, 8), channels=3, antialias=True)
    path = train(
        RESNET, tmp_path / "r.pt", data=tmp_path / "data", preprocessing=tiny, epochs=1, threads=1
    ).path
    training = Artifact.open(path).require_manifest().training
    assert training["confusion"] == []
    evaluation = evaluate(path)
    assert (training["test_accuracy"], training["epochs"][0]["test_top5_accuracy"]) == (
        evaluation.accuracy,
        evaluation.top5_accuracy,
    )


def test_on_the_command_line(
    photos: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(RESNET.rpartition(":")[0], tmp_path / "mymodel.py")
    prepared = {"size": [16, 16], "channels": 3, "antialias": True}
    (tmp_path / "prep.json").write_text(json.dumps(prepared))
    result = cli(
        *("train", "mymodel.py:build", "--model-arg", "width=4", "--preprocessing", "prep.json"),
        *("--data", photos, "--epochs", 1, "--threads", 1),
    )
    assert result.exit_code == 0, result.output
    assert "Wrote mymodel.pt" in result.output
    manifest = Artifact.open("mymodel.pt").require_manifest()
    assert (dict(manifest.source.arguments), manifest.preprocessing.size) == (
        {"width": 4, "classes": 5},
        (16, 16),
    )
    monkeypatch.delenv("CNNDEPLOY_SOURCES")
    result = cli("evaluate", "mymodel.pt")  # the source was remembered, and the data recorded
    assert result.exit_code == 0, result.output
    result = cli("train", "lenett", "--output", "x.pt")
    assert result.exit_code == 2
    assert "Did you mean 'lenet'" in result.output
    result = cli("train", "mymodel.py:build", "--model-arg", "width", "--output", "x.pt")
    assert (result.exit_code, "is not name=value" in result.output) == (2, True)
