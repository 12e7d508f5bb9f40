"""The time to verify a checkpoint's two formats, compared with another checkout of this repository in one run.

    python benchmarks/verification_time.py lenet.pt lenet.onnx lenet.torchscript --other ../other/.venv/bin/python

Each round runs both checkouts once, in random order, each in a fresh process; the ratio is taken within a round. The
time is that of the verifications on all test images, the start of their workers included. Commit 8c60a52 and earlier,
which run the checkpoint for each file, are known too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys

from cnndeploy.benchmark.intervals import ratio_interval
from cnndeploy.machine import cpu_model, usable_cpus

_VERIFY = """
import sys, time
checkpoint, *files = sys.argv[1:]
started = time.perf_counter()
try:
    from cnndeploy import Reference, verify
except ImportError:
    from cnndeploy.equivalence import verify
    reports = [verify(file, checkpoint) for file in files]
else:
    with Reference(checkpoint) as reference:
        reports = [verify(file, reference) for file in files]
assert all(report.equivalent and report.images == 10_000 for report in reports)
print(time.perf_counter() - started)
"""


def main() -> None:
    """Print each round, then the median ratio with its 95% interval."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", metavar="CHECKPOINT FILE", help="the checkpoint, then what came of it"
    )
    parser.add_argument("--other", required=True, metavar="PYTHON", help="the other checkout's interpreter")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    order, seconds = random.Random(0), {"this": list[float](), "other": list[float]()}  # noqa: S311 - an order
    pythons = {"this": sys.executable, "other": arguments.other}
    for number in range(arguments.rounds):
        for name in order.sample(sorted(pythons), 2):
            command = [pythons[name], "-c", _VERIFY, *arguments.files]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ours
            seconds[name].append(float(done.stdout))
        print(
            f"round {number + 1}: "
            + ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        )
    ratios = [this / other for this, other in zip(seconds["this"], seconds["other"], strict=True)]
    low, high = ratio_interval(ratios)
    print(f"{cpu_model()}, {usable_cpus()} CPUs: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
