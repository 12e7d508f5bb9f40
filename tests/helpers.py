"""What tests import from each other."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnndeploy.exporters import export
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.training.train import train

Once = Callable[[str, Callable[[Path], object]], Path]


@dataclass(frozen=True)
class Trained:
    """A LeNet trained for a moment, and its exported files, those that take raw images too; read only."""

    checkpoint: Path
    onnx: Path
    torchscript: Path

    @property
    def executorch(self) -> Path:
        """Exported when it is first asked for, which takes long; test processes share it."""
        path = self.onnx.with_suffix(".pte")
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                export(self.checkpoint, "executorch", path)
        return path

    @property
    def onnx_image(self) -> Path:
        return self.onnx.with_name("image.onnx")

    @property
    def torchscript_image(self) -> Path:
        return self.torchscript.with_name("image.torchscript")

    def file_of(self, kind: str) -> Path:
        path: Path = getattr(self, kind)
        return path


EXECUTORCH = (
    pytest.mark.field,  # make test-field installs it
    pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed"),
)


def names_of(registry: Any) -> list[Any]:
    """Return the names of exporters or runtimes for parametrize."""
    return [pytest.param(name, marks=EXECUTORCH if name == "executorch" else ()) for name in registry.names()]


COLOURS = {
    "banana": (220, 200, 60),
    "lime": (60, 190, 60),
    "night": (20, 25, 60),
    "plum": (110, 40, 110),
    "snow": (235, 235, 240),
}


def write_photos(folder: Path) -> None:
    """Write 12 JPEGs a class to train on and 6 to test on, of all sizes: a colour, with a gradient and noise."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label, colour in COLOURS.items():
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                height, width = draw.integers(33, 80, 2)
                light = np.linspace(0.8, 1.2, width)[None, :, None]
                pixels = np.array(colour) * light + draw.normal(0, 12, (height, width, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / label / f"{number:02}.jpg", quality=85)


RESNET = f"{Path(__file__).with_name('resnet.py')}:build"
SMALL_RGB = Preprocessing(
    size=(32, 32),
    resize=36,
    antialias=True,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def train_resnet_for_a_moment(path: Path, photos: Path) -> None:
    """Train a stranger's network on photos until it tells their colours apart."""
    train(
        RESNET,
        path,
        data=photos,
        preprocessing=SMALL_RGB,
        epochs=12,
        batch_size=8,
        learning_rate=0.01,
        threads=1,
        seed=1,
    )


def train_for_a_moment(path: Path, seed: int = 0) -> None:
    """Train a LeNet until most of its answers are right and its logits depend on the image.

    On one thread: with such small batches two are slower, and much slower beside another process.
    """
    train(
        "lenet",
        path,
        recipe="original",
        epochs=2,
        images=8000,
        batch_size=32,
        learning_rate=0.003,
        threads=1,
        seed=seed,
    )


def by_work(layers: Any, **_: object) -> dict[str, dict[int, float]]:
    """Return for each layer and size the number of its weights, in place of milliseconds."""
    return {
        path: {size: sum(one.weight.numel() for one in modules) for size, (modules, _) in ways.items()}
        for path, ways in layers.items()
    }
