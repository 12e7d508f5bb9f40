"""docs/YOUR-OWN-MODEL.md: its commands run, in their order, on a network in a file and a folder of JPEGs."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from test_docs import blocks, commands

import cnndeploy
import resnet
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.tuning import race, tune
from helpers import SMALL_RGB, Trained

PAGE = Path(__file__).parents[1] / "docs" / "YOUR-OWN-MODEL.md"
LABELS = ("boot", "lime", "night", "plum", "snow")
# What the page leaves out: a test has few images and little time. The page's network takes ten times as long.
MORE = {
    "bench": ["--seconds", "0.2", "--cold-start", "0"],
    "quantize": ["--budget", "60", "--calibration", "16"],
    "tune": ["--budget", "60", "--threads", "1"],
    "train": ["--epochs", "1", "--threads", "1", "--overwrite", "--preprocessing", "prep.json"],
}


@pytest.fixture
def desk(photos: Path, trained_resnet: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's text. What it begins with lies in the current folder, and nobody has named a source yet."""
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setattr(race, "MOST_ROUNDS", race.FIRST_ROUNDS)
    monkeypatch.setattr(tune, "usable_cpus", lambda: 1)
    monkeypatch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", ())
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for label, folder in zip(LABELS, sorted((photos / split).iterdir()), strict=True):
            shutil.copytree(folder, tmp_path / "photos" / split / label)
    for number in (1, 2):
        shutil.move(f"photos/val/boot/{number:02}.jpg", f"photos/val/boot/{number}.jpg")
    shutil.copy(resnet.__file__, "mymodel.py")
    torch.save(dict(Checkpoint.load(trained_resnet.checkpoint).weights), "best.pth")
    return PAGE.read_text()


def test_what_the_page_begins_with_is_right(desk: str) -> None:
    source = next(blocks(desk, "python"))
    namespace: dict[str, object] = {}
    exec(compile(source, "mymodel.py", "exec"), namespace)  # noqa: S102 - our own page
    network = namespace["build"](classes=5)  # type: ignore[operator]
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    preprocessing = cnndeploy.preprocessing_of(json.loads(next(blocks(desk, "json"))))
    from torchvision.models import ResNet18_Weights

    assert preprocessing == cnndeploy.preprocessing_of(ResNet18_Weights.IMAGENET1K_V1.transforms())


@pytest.mark.slow
@pytest.mark.usefixtures("without_compiler")  # tests of tune and of the runtimes compile
@pytest.mark.field
def test_the_commands_lead_from_a_network_in_a_file_to_an_app(desk: str, cli: Callable[..., Result]) -> None:
    Path("prep.json").write_text(
        json.dumps({**json.loads(next(blocks(desk, "json"))), "size": [32, 32], "resize": 36})
    )
    ran = []
    for command in commands(desk):
        name, *options = shlex.split(command, comments=True)[1:]
        if (
            "torchvision:resnet18" in options
        ):  # 45 MB of weights, which the tests of training start from in small
            continue
        result = cli(name, *options, *MORE.get(name, []))
        assert result.exit_code == 0, (command, result.output, result.exception)
        ran.append(name)
    assert ran[:6] == ["import", "evaluate", "export", "verify", "bench", "quantize"]
    assert set(ran) == {*ran[:6], "tune", "predict", "train"}
    for file in ("shoes.onnx", "shoes.int8.onnx", "shoes.deploy"):
        with cnndeploy.load(file, require_verified=True) as model:
            assert model.labels == LABELS
            pixels = cnndeploy.read_image("photos/val/boot/2.jpg", channels=3)
            assert [one.label for one in model.classify(pixels)] == ["boot"]
    with cnndeploy.load("shoes.onnx") as model, cnndeploy.load("shoes.deploy") as deployed:
        logits = model.logits(pixels)
        assert logits.shape == deployed.logits(pixels).shape == (1, 5)
        np.testing.assert_array_equal(model.manifest.prepared(pixels[None]), SMALL_RGB(pixels[None]))


def test_the_python_of_the_page_runs(desk: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = next(one for one in blocks(desk, "python") if "import_model" in one)
    exec(compile(source, "page", "exec"), {})  # noqa: S102 - our own page
    accuracy, doubts = capsys.readouterr().out.split(maxsplit=1)
    assert float(accuracy) > 0.2
    assert doubts.startswith("(")
    assert cnndeploy.Artifact.open("shoes.pt").require_manifest().labels == LABELS
