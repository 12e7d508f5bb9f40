"""The cost of classifying a JPEG file with cnndeploy instead of Pillow, numpy and ONNX Runtime by hand.

Both go from the path of a photo of 500 x 375 pixels to a label, with the same file and one thread, in turns within one
process, in random order. The ratio is taken within each round.

    .venv/bin/python benchmarks/jpeg_classify.py resnet18.onnx
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import cnndeploy
from cnndeploy.benchmark.intervals import ratio_interval
from cnndeploy.display.cells import machine_line
from cnndeploy.machine import environment
from cnndeploy.preprocessing import Preprocessing

WIDTH, HEIGHT = 500, 375
_CALLS = 5


def by_hand(path: str, preprocessing: Preprocessing) -> Callable[[str], int]:
    """Return what a careful engineer writes for one network."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    mean, std = (np.array(values, np.float32) for values in (preprocessing.means, preprocessing.stds))
    height, width = preprocessing.size

    def classify(photo: str) -> int:
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        target = preprocessing.resized_size(image.height, image.width)
        image = image.resize(target[::-1], Image.Resampling.BILINEAR)
        top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)
        image = image.crop((left, top, left + width, top + height))
        prepared = (np.asarray(image, np.float32) / 255 - mean) / std
        (logits,) = session.run(
            ["logits"], {"image": np.ascontiguousarray(prepared.transpose(2, 0, 1)[None])}
        )
        return int(logits.argmax())

    return classify


def _round(calls: dict[str, Callable[[str], int]], photo: str) -> dict[str, float]:
    """Return the seconds that each takes for the photo, in random order."""
    seconds = {}
    for name in random.sample(list(calls), len(calls)):
        started = time.perf_counter()
        for _ in range(_CALLS):
            calls[name](photo)
        seconds[name] = (time.perf_counter() - started) / _CALLS
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description="classify() of a JPEG against Pillow and ONNX Runtime by hand."
    )
    parser.add_argument(
        "model", help="an ONNX file of an RGB network that is resized bilinearly, with antialias"
    )
    parser.add_argument("--rounds", type=int, default=60, help="of five calls each (default: 60)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cnndeploy.load(arguments.model, threads=1) as model:
        photo = str(Path(folder, "photo.jpg"))
        noise = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(photo, quality=90)
        hand = by_hand(arguments.model, model.manifest.preprocessing)

        def ours(photo: str) -> int:
            (prediction,) = model.classify(cnndeploy.read_image(photo, channels=3))
            return model.labels.index(prediction.label)

        if ours(photo) != hand(photo):
            raise SystemExit("the two give different labels")
        calls: dict[str, Callable[[str], int]] = {"by hand": hand, "cnndeploy": ours}
        rounds = [_round(calls, photo) for _ in range(arguments.rounds)]
    for name in calls:
        print(f"{name:10} {1000 * statistics.median(one[name] for one in rounds):8.2f} ms")
    ratios = [one["cnndeploy"] / one["by hand"] for one in rounds]
    low, high = ratio_interval(ratios)
    print(f"cnndeploy takes {statistics.median(ratios):.3f} times as long ({low:.3f} to {high:.3f}, 95%)")
    print(machine_line(environment()))


if __name__ == "__main__":
    main()
