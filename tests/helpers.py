"""What tests import from each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trained:
    """A LeNet trained for a moment, and its exported files; read only."""

    checkpoint: Path
    onnx: Path
    torchscript: Path

    def file_of(self, model_format: str) -> Path:
        return self.checkpoint if model_format == "checkpoint" else getattr(self, model_format)
