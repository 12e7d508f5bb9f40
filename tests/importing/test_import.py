from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import cnndeploy
import resnet
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError
from cnndeploy.importing.families import known_of

REPOSITORY = Path(__file__).parents[2]
SOURCE = f"{REPOSITORY}/tests/resnet.py:build"
LABELS = ["black", "blue", "green", "red", "white"]
COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "white": (255,) * 3,
}
PREPROCESSING = {"size": [32, 32], "channels": 3, "resize": 36, "antialias": True, "mean": 0.5, "std": 0.25}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of one-coloured images, a class each."""
    random = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (tmp_path / "colours" / "test" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.clip(np.array(colour) + random.integers(-40, 40, (40, 50 + number, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(
                tmp_path / "colours" / "test" / label / f"{number}.png"
            )
    return tmp_path / "colours"


class Nearest(torch.nn.Module):
    """Knows colours by heart: minus the squared distance of the mean colour to each."""

    def __init__(self, order: tuple[str, ...] = tuple(LABELS), bgr: bool = False) -> None:
        super().__init__()
        colours = torch.tensor([COLOURS[label] for label in order]) / 255  # (5, 3)
        self.colours = torch.nn.Parameter(colours.flip(1) if bgr else colours)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        means = image.mean(dim=(2, 3)) * 0.25 + 0.5  # (batch, 3), from 0 to 1
        return -((means[:, None] - self.colours) ** 2).sum(dim=2)


@pytest.fixture
def nearest(tmp_path: Path) -> str:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('nearest', {str(__file__)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "build = module.Nearest\n"
    )
    (tmp_path / "nearest.py").write_text(code)
    return "nearest.py:build"


def test_a_network_of_ones_own_is_imported_with_everything_recorded(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = resnet.build(5, 4)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in own.state_dict().items()}}, "best.pth"
    )
    Path("prep.json").write_text(json.dumps(PREPROCESSING))
    Path("names.txt").write_text("\n".join(LABELS))
    arguments = ["--model-arg", "width=4", "--weights", "best.pth", "--preprocessing", "prep.json"]
    result = cli("import", SOURCE, *arguments, "--labels", "names.txt", "--output", "own.pt")
    assert result.exit_code == 0, result.output
    for text in ("took 'module.' off", "it is deterministic in eval mode", "free batch axis", "Wrote own.pt"):
        assert text in result.output
    manifest = cnndeploy.Artifact.open("own.pt").require_manifest()
    assert manifest.architecture == "resnet.py:build"
    assert dict(manifest.source.arguments) == {"width": 4, "classes": 5}
    assert manifest.labels == tuple(LABELS)
    assert manifest.preprocessing.resize == 36
    assert manifest.training["imported"]["weights"] == "best.pth"
    os.environ["CNNDEPLOY_SOURCES"] = "[]"  # as in the next command, in another process
    network = Checkpoint.load("own.pt").network()
    own.eval()
    assert torch.equal(network(torch.ones(2, 3, 32, 32)), own(torch.ones(2, 3, 32, 32)))
    again = cli("import", SOURCE, *arguments, "--labels", "names.txt", "--output", "own.pt")
    assert again.exit_code == 1
    assert "own.pt exists. Import with --overwrite to replace it" in again.output


def test_a_network_in_hand_is_imported_with_the_function_that_makes_it() -> None:
    own = resnet.build(5, 4)
    made = cnndeploy.import_model(
        own, "own.pt", source=SOURCE, arguments={"width": 4}, labels=LABELS, preprocessing=PREPROCESSING
    )
    assert "computes what the network that was passed computes" in made.shown
    assert made.parameters == sum(value.numel() for value in own.parameters())
    with pytest.raises(ArtifactError, match="say what builds such a network"):
        cnndeploy.import_model(own, "other.pt", labels=LABELS, preprocessing=PREPROCESSING)
    assert not Path("other.pt").exists()


def test_the_accuracy_is_measured_and_right_networks_raise_no_doubt(nearest: str, colours: Path) -> None:
    made = cnndeploy.import_model(
        Nearest(), "own.pt", source=nearest, preprocessing=PREPROCESSING, data="colours"
    )
    assert made.evaluation is not None
    assert (made.evaluation.accuracy, made.evaluation.images, made.doubts) == (1.0, 40, ())
    manifest = made.artifact.require_manifest()
    assert (manifest.labels, manifest.data) == (tuple(LABELS), "colours")
    assert (manifest.training["test_accuracy"], manifest.training["test_images"]) == (1.0, 40)
    assert cnndeploy.evaluate("own.pt").accuracy == 1.0


@pytest.mark.parametrize(
    ("network", "doubt"),
    [
        (Nearest(order=("white", "black", "blue", "green", "red")), "labels seem to be in another order"),
        (Nearest(bgr=True), "trained on BGR"),
    ],
)
def test_another_order_of_labels_or_colours_is_named(
    network: Nearest, doubt: str, nearest: str, colours: Path
) -> None:
    made = cnndeploy.import_model(
        network, "own.pt", source=nearest, preprocessing=PREPROCESSING, data=colours, labels=LABELS
    )
    assert any(doubt in one for one in made.doubts), made.doubts


def test_ones_own_transform_is_compared_with_the_preprocessing(
    nearest: str, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import transforms

    steps = [
        transforms.Resize(36),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.25),
    ]
    made = cnndeploy.import_model(
        Nearest(), "own.pt", source=nearest, preprocessing=transforms.Compose(steps), data=colours
    )
    assert any("agree bit for bit" in one for one in made.shown)
    evaluated: list[object] = []
    monkeypatch.setattr("cnndeploy.importing.network.evaluate", lambda *_, **__: evaluated.append(1))
    steps.insert(2, transforms.Lambda(lambda image: 1 / 0))
    with pytest.raises(ArtifactError, match=r"Lambda cannot be kept|your transform fails"):
        cnndeploy.import_model(
            Nearest(), "two.pt", source=nearest, preprocessing=transforms.Compose(steps), data=colours
        )

    class Other(type(transforms.Compose(steps[:2]))):  # type: ignore[misc]
        def __call__(self, image: Image.Image) -> torch.Tensor:
            return 2 * torch.as_tensor(super().__call__(image))

    other = Other([*steps[:2], *steps[3:]])
    with pytest.raises(ArtifactError, match="differ by up to"):
        cnndeploy.import_model(Nearest(), "two.pt", source=nearest, preprocessing=other, data=colours)
    assert not evaluated, "found out before what takes long"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"preprocessing": None}, "how images are prepared for .* is not known"),
        ({"labels": None}, "the labels of .* are not known"),
        ({"labels": ["a", "b"], "arguments": {"classes": 5}}, "5 classes apart, and there are 2 labels"),
        ({"weights": None}, r"needs weights.*weights='best\.pth'"),
        ({"output_name": "logits"}, "no output logits"),
    ],
)
def test_nothing_is_written_if_something_is_missing(arguments: dict[str, Any], reason: str) -> None:
    torch.save(resnet.build().state_dict(), "w.pth")
    given = {"weights": "w.pth", "preprocessing": PREPROCESSING, "labels": LABELS} | arguments
    with pytest.raises(ArtifactError, match=reason):
        cnndeploy.import_model(SOURCE, "own.pt", **given)
    assert not Path("own.pt").exists()


def test_what_torchvision_knows_comes_with_the_name_of_the_weights() -> None:
    known = known_of("torchvision:resnet18@IMAGENET1K_V1")
    assert known.name == "torchvision:resnet18"
    assert known.preprocessing is not None
    assert (known.preprocessing.size, known.preprocessing.resize) == ((224, 224), 256)
    assert known.labels is not None
    assert (len(known.labels), known.labels[0]) == (1000, "tench")
    assert known_of("torchvision:googlenet@DEFAULT").arguments == {"transform_input": True}
    assert known_of("torchvision:vit_b_16@IMAGENET1K_SWAG_E2E_V1").arguments == {"image_size": 384}
    with pytest.raises(cnndeploy.CnndeployError, match="Unknown weights 'V3'"):
        known_of("torchvision:resnet18@V3")


def test_what_timm_knows_comes_with_the_name_or_the_folder(tmp_path: Path) -> None:
    known = known_of("timm:mobilenetv3_small_100")
    assert known.preprocessing is not None
    assert known.preprocessing.interpolation == "bicubic"
    assert known.labels is not None
    assert known.labels[0] == "tench, Tinca tinca"
    config = {
        "architecture": "resnet18",
        "num_classes": 3,
        "label_names": ["n1", "n2", "n3"],
        "label_descriptions": {"n1": "boot", "n2": "sandal", "n3": "pump"},
        "model_args": {"in_chans": 3},
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="holds no weights"):
        known_of(f"timm:{tmp_path}")
    (tmp_path / "model.safetensors").touch()
    known = known_of(f"timm:{tmp_path}")
    assert (known.name, known.labels, known.arguments) == (
        "timm:resnet18",
        ("boot", "sandal", "pump"),
        {"in_chans": 3},
    )
    assert known.weights == tmp_path / "model.safetensors"
