"""What tests import from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import cnndeploy
import resnet
from cnndeploy import Preprocessing
from cnndeploy.datasets import open_dataset
from cnndeploy.exporters import export
from cnndeploy.training.train import train

Once = Callable[[str, Callable[[Path], object]], Path]


@dataclass(frozen=True)
class Trained:
    """A LeNet trained for a moment, and its exported files, those that take raw images too; read only."""

    checkpoint: Path
    onnx: Path
    torchscript: Path

    @property
    def onnx_image(self) -> Path:
        return self.onnx.with_name("image.onnx")

    @property
    def torchscript_image(self) -> Path:
        return self.torchscript.with_name("image.torchscript")

    def file_of(self, kind: str) -> Path:
        path: Path = getattr(self, kind)
        return path


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


RAW_SOURCE = f"{Path(__file__).parent}/resnet.py:build"
RAW = Preprocessing(
    size=(32, 32), channels=3, resize=36, antialias=True, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
)


def write_raw_files(folder: Path, photos: Path) -> None:
    """Write own.pt, which tells the photos' colours, own.onnx, and own.native.onnx and own.portable.onnx."""
    torch.manual_seed(0)
    network, train_set = resnet.build(5, 4), open_dataset(photos).split("train", 3, list(COLOURS))
    images = torch.from_numpy(train_set.prepared(range(len(train_set)), RAW))
    labels = torch.from_numpy(np.asarray(train_set.labels, np.int64))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(25):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    path = folder / "own.pt"
    cnndeploy.import_model(
        network.eval(),
        path,
        source=RAW_SOURCE,
        arguments={"width": 4},
        labels=list(COLOURS),
        preprocessing=RAW,
        data=photos,
    )
    export(path, "onnx")
    export(path, "onnx", folder / "own.native.onnx", input="image")
    export(path, "onnx", folder / "own.portable.onnx", input="image", resize="portable")
