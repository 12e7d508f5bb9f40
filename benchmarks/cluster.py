"""Classify many image files by Ray and by one process: how much faster is Ray, and how long does it take to start?

Each way is the command as a user runs it, from start to end, on the same files; the ways take turns.
The rows are compared too: they must be the same, bit for bit. Figures for docs/DEPLOYING.md. It needs Ray, which
make test-field installs, as does: .venv/bin/pip install -c constraints.txt '.[ray]'

    .venv/bin/python benchmarks/cluster.py lenet.onnx googlenet.onnx --images 20000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from PIL import Image

from cnndeploy.datasets import fashion_mnist

Rows = list[tuple[str, str, float]]


def write_images(folder: Path, count: int) -> None:
    """Write PNG files of Fashion-MNIST's training images, in ten folders."""
    images = fashion_mnist.load("train").images
    for number in range(count):
        inner = folder / str(number % 10)
        inner.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(images[number % len(images)])).save(inner / f"{number:06}.png")


def timed(*arguments: object) -> float:
    """Run a command of cnndeploy, and return the seconds that it took."""
    start = time.perf_counter()
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "cnndeploy", "predict", *map(str, arguments)], check=True, capture_output=True
    )
    return time.perf_counter() - start


def by_one(model: Path, images: Path, output: Path, *options: object) -> tuple[float, Rows]:
    """Classify in one process."""
    seconds = timed(model, images, "--json", "--output", output, *options)
    told: dict[str, Any] = json.loads(output.read_text())
    tops = [(one["image"], one["classes"][0]) for one in told["predictions"]]
    return seconds, [(image, top["label"], top["probability"]) for image, top in tops]


def by_ray(model: Path, images: Path, output: Path, workers: int) -> tuple[float, Rows]:
    """Classify by Ray."""
    seconds = timed(model, images, "--engine", "ray", "--workers", workers, "--output", output)
    rows = pyarrow.parquet.read_table(output).to_pylist()
    return seconds, [(row["image"], row["label"], row["probability"]) for row in rows]


def compare(model: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """Print the table's rows of a model."""
    images, few = folder / "images", folder / "images" / "0" / "000000.png"
    ways: dict[str, Callable[[Path], tuple[float, Rows]]] = {
        "one process, all threads": lambda path: by_one(model, images, path),
        "one process, one thread": lambda path: by_one(model, images, path, "--threads", 1),
        f"Ray, {arguments.workers} workers": lambda path: by_ray(model, images, path, arguments.workers),
        "Ray, one image": lambda path: by_ray(model, few, path, arguments.workers),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    rows: list[Rows] = []
    for turn in range(arguments.rounds):
        for number, (way, run) in enumerate(ways.items()):
            took, came = run(folder / f"{model.stem}-{turn}-{number}")
            seconds[way].append(took)
            rows += [came] if len(came) > 1 else []
    assert all(came == rows[0] and len(came) == arguments.images for came in rows)  # noqa: S101
    for way, all_took in seconds.items():
        listed = ", ".join(f"{one:.1f}" for one in all_took)
        print(f"| {model.stem} | {way} | {statistics.median(all_took):.1f} s | {listed} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare Ray's workers with one process.")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=20_000, help="how many (default: 20000)")
    parser.add_argument("--workers", type=int, default=2, help="of Ray (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all ways (default: 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_images(folder / "images", arguments.images)
        print(f"| network | {arguments.images:,} images by | median | each |\n| --- | --- | ---: | --- |")
        for model in arguments.models:
            compare(model, folder, arguments)


if __name__ == "__main__":
    main()
