"""What tests import from each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
