"""The cost for an app of cnndeploy instead of ONNX Runtime by hand; prints the table of docs/EMBEDDING.md.

The script makes an environment with nothing but cnndeploy[cpu], and measures in it, side by side and in random order,
whole processes: Python itself, `import cnndeploy`, a script against onnxruntime that loads a file and classifies one
image, and the same with cnndeploy. Then it times, in turns within one process, a classify() and the session.run()
within it.

    .venv/bin/python benchmarks/cold_start.py lenet.onnx
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.intervals import ratio_interval
from cnndeploy.datasets import fashion_mnist
from cnndeploy.display.cells import machine_line
from cnndeploy.machine import environment

REPOSITORY = Path(__file__).parents[1]

BY_HAND = """
import sys, json, numpy as np, onnxruntime
labels = json.loads(sys.argv[3])
image = np.fromfile(sys.argv[2], np.uint8).reshape(28, 28)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"image": image[None, None].astype(np.float32) / 255})
exponentials = np.exp(logits[0] - logits[0].max())
probabilities = exponentials / exponentials.sum()
print(labels[probabilities.argmax()], probabilities.max())
"""

OURS = """
import sys, numpy as np, cnndeploy
image = np.fromfile(sys.argv[2], np.uint8).reshape(28, 28)
(prediction,) = cnndeploy.load(sys.argv[1]).classify(image)
print(prediction.label, prediction.probability)
"""

OVERHEAD = """
import json, statistics, sys, time, numpy as np, onnxruntime, cnndeploy
images = np.fromfile(sys.argv[2], np.uint8).reshape(-1, 28, 28)
model = cnndeploy.load(sys.argv[1], threads=1)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {"image": model.manifest.prepared(images[:1])}
calls = (lambda: session.run(None, feeds), lambda: model.classify(images[0]))

def median_us(call):
    seconds = []
    for number in range(250):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1e6 * statistics.median(seconds[50:])

print(json.dumps([[median_us(call) for call in calls] for round in range(60)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What an app pays for cnndeploy over ONNX Runtime by hand.")
    parser.add_argument("model", type=Path, help="an ONNX file of a network that takes images of 28 x 28")
    parser.add_argument("--rounds", type=int, default=40, help="of whole processes (default: 40)")
    arguments = parser.parse_args()
    if Artifact.open(arguments.model).require_manifest().takes_images:
        sys.exit(
            f"{arguments.model} takes raw images; the script by hand feeds a tensor: export with --input tensor"
        )
    print("Making an environment with cnndeploy[cpu], as of the last commit, by pip", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "image"
        fashion_mnist.load("test").images[0].tofile(image)
        python = _environment(folder / "venv")
        given = [str(arguments.model.resolve()), str(image), json.dumps(fashion_mnist.LABELS)]
        commands = {
            "Python": ["-c", "pass"],
            "import cnndeploy": ["-c", "import cnndeploy"],
            "by hand": ["-c", BY_HAND, *given],
            "cnndeploy": ["-c", OURS, *given],
        }
        found = _whole_processes(python, commands, arguments.rounds, folder)
        overhead = json.loads(_run(python, ["-c", OVERHEAD, *given], folder))
    _print(found, np.array(overhead))


def _environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)  # noqa: S603 - our own command
    python = folder / "bin" / "python"
    source = folder / "source"  # a copy, because setuptools leaves files behind
    subprocess.run(["git", "clone", "-q", REPOSITORY, source], check=True)  # noqa: S603, S607
    constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
    _run(python, ["-m", "pip", "install", "-q", *constraints, f"{source}[cpu]"], folder)
    return python


def _run(python: Path, arguments: list[str], folder: Path) -> str:
    done = subprocess.run(  # noqa: S603 - our own commands
        [python, *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=folder
    )
    return done.stdout


def _whole_processes(
    python: Path, commands: dict[str, list[str]], rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of each command in each round; what two commands print of the same image must agree."""
    order = list(commands)
    draw = random.Random(0)  # noqa: S311 - an order, no secret
    found: dict[str, list[float]] = {name: [] for name in commands}
    for each in range(rounds + 1):
        draw.shuffle(order)
        printed = {}
        for name in order:
            started = time.perf_counter()
            printed[name] = _run(python, commands[name], folder).split()
            if each:  # the first fills the disk's cache
                found[name].append(time.perf_counter() - started)
        hand, ours = printed["by hand"], printed["cnndeploy"]
        if hand[:-1] != ours[:-1] or abs(float(hand[-1]) - float(ours[-1])) > 1e-5:
            sys.exit(f"The two scripts disagree: {hand} and {ours}")
    return found


def _print(found: dict[str, list[float]], overhead: np.ndarray) -> None:
    print("| process | median | over Python itself |")
    print("| --- | ---: | ---: |")
    python = statistics.median(found["Python"])
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median * 1e3:.1f} ms | {(median - python) * 1e3:.1f} ms |")
    ratios = [ours / hand for ours, hand in zip(found["cnndeploy"], found["by hand"], strict=True)]
    low, high = ratio_interval(ratios)
    print(
        f"\nload() and the first classify() take {statistics.median(ratios):.3f} times as long as the script by hand "
        f"({low:.3f} to {high:.3f}, {len(ratios)} rounds)."
    )
    run, classify = np.median(overhead, axis=0)
    more = overhead[:, 1] - overhead[:, 0]
    print(
        f"One image: session.run {run:.1f} us, classify {classify:.1f} us: {np.median(more):.1f} us more "
        f"({np.quantile(more, 0.05):.1f} to {np.quantile(more, 0.95):.1f} over {len(more)} rounds)."
    )
    print(f"\n{machine_line(environment())}")


if __name__ == "__main__":
    main()
