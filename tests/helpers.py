"""What tests import from each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
