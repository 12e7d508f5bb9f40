"""How well exported files prepare images: grey levels off from Pillow's, by form, filter and runtime.

Images are noise of random sizes, on which rounding shows most. They are resized to a shorter side of 256 and cropped
to 224 x 224, as most networks for photos have it. Prints the table of docs/PREPROCESSING.md.

    python benchmarks/preprocessing.py --sizes 40
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cnndeploy import Artifact, Preprocessing, Run
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.exporters import EXPORTERS, ExportOptions
from cnndeploy.preprocessing import Interpolation
from cnndeploy.runtimes import open_session
from cnndeploy.specs import Manifest, Resizing, TensorSpec
from cnndeploy.variants import in_levels

FILTERS: tuple[Interpolation, ...] = ("bilinear", "bicubic")
FORMS: tuple[Resizing, ...] = ("native", "portable")
# Half of the sizes are drawn from all, half are such that a tie is frequent: small ratios to 256.
_TIES = (96, 128, 160, 192, 224, 240, 320, 384, 400, 448, 480, 512, 576, 640, 768, 1024)


class _Means(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (batch, 3, height, width)
        return image.mean((2, 3))


@dataclass(frozen=True)
class _InHand(Checkpoint):
    def network(self) -> nn.Module:
        return _Means().eval()


def _file(interpolation: Interpolation, form: Resizing, folder: Path) -> Artifact:
    own = Preprocessing((224, 224), channels=3, resize=256, interpolation=interpolation, antialias=True)
    given = TensorSpec("image", "float32", ("batch", *own.shape))
    logits = TensorSpec("logits", "float32", ("batch", 3))
    manifest = Manifest("means", given, logits, own, ("red", "green", "blue"))
    path, options = folder / f"{interpolation}.{form}.onnx", ExportOptions(input="image", resize=form)
    return EXPORTERS.get("onnx").export(_InHand({}, manifest, "0" * 64), path, options)


def _sizes(count: int, seed: int) -> Iterator[tuple[int, int]]:
    draw = np.random.default_rng(seed)
    for number in range(count):
        height, width = draw.choice(_TIES, 2) if number % 2 else draw.integers(120, 1400, 2)
        yield int(height), int(width)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| form | filter | runtime | most levels off | values off, mean | values off, worst image |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            for interpolation in FILTERS:
                artifact = _file(interpolation, form, Path(folder))
                for runtime in ("onnxruntime", "openvino"):
                    levels, shares = _measured(artifact, runtime, arguments.sizes, arguments.seed)
                    figures = f"{levels} | {np.mean(shares):.3%} | {max(shares):.2%}"
                    print(f"| {form} | {interpolation} | {runtime} | {figures} |", flush=True)


def _measured(artifact: Artifact, runtime: str, count: int, seed: int) -> tuple[int, list[float]]:
    """Return the most levels that a value is off, and the share of values that are, of each image."""
    own, draw = artifact.require_manifest().preprocessing, np.random.default_rng(seed)
    levels, shares = 0, []
    with open_session(artifact, Run(runtime)) as session:
        for height, width in _sizes(count, seed):
            images = draw.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
            difference = in_levels(own, session.run({"image": images})["prepared"] - own(images))
            moved = np.rint(np.abs(difference))
            levels = max(levels, int(moved.max()))
            shares.append(float((moved > 0).mean()))
    return levels, shares


if __name__ == "__main__":
    main()
