"""How often is verification wrong? Sound files that it rejects, and broken ones that it passes.

Exports every architecture in every format, with either input, from networks of several seeds and verifies each:
every rejection is a false alarm. Then breaks files in every way of tests/broken.py and broken_images.py and verifies
those: every pass is a miss, and a reason that does not name the defect is counted too. Prints the tables of
docs/EQUIVALENCE.md; takes over an hour on two cores. Exits with 1 where a rate is not what it should be.

    .venv/bin/python benchmarks/verification_rates.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import get_args

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.display.cells import machine_line
from cnndeploy.exporters import ModelInput, export
from cnndeploy.machine import environment
from cnndeploy.verification.verify import verify

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import broken_images  # noqa: F401 - they join the others
from broken import DEFECTS, good_files, importable

FORMATS = ("onnx", "torchscript")


def main() -> None:
    parser = argparse.ArgumentParser(description="Rates of false alarms and misses of cnndeploy verify.")
    parser.add_argument("--images", type=int, default=333, help="test images each (default: 333)")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each architecture (default: 3)")
    parser.add_argument("--part", choices=["sound", "broken"], help="only this table (default: both)")
    arguments = parser.parse_args()
    alarms = false_alarms(arguments.images, range(arguments.seeds)) if arguments.part != "broken" else 0
    wrong = misses(arguments.images) if arguments.part != "sound" else 0
    print(f"\n{machine_line(environment())}")
    sys.exit(1 if alarms or wrong else 0)


def false_alarms(images: int, seeds: range) -> int:
    """Verify sound files; gives the number that were rejected."""
    alarms = 0
    print("| architecture | format, input | files | rejected | error, times eager's own |")
    print("| --- | --- | ---: | ---: | --- |")
    for architecture in ARCHITECTURES.names():
        found = defaultdict(list)
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = good_files(architecture, seed, Path(folder), ()).checkpoint
                for each in FORMATS:
                    for takes in get_args(ModelInput):
                        artifact = export(checkpoint, each, input=takes)
                        found[f"{each}, {takes}"].append(verify(artifact, checkpoint, images=images))
                        artifact.path.unlink()
        for each, reports in found.items():
            rejected = [report for report in reports if not report.equivalent]
            ratios = ", ".join(f"{report.oracle.ratio:.2f}" if report.oracle else "-" for report in reports)
            print(f"| {architecture} | {each} | {len(reports)} | {len(rejected)} | {ratios} |", flush=True)
            alarms += len(rejected)
            for report in rejected:
                print(f"FALSE ALARM: {report.reasons}", file=sys.stderr)
    return alarms


def misses(images: int) -> int:
    """Verify broken files; gives the number that passed or whose reasons do not name the defect."""
    wrong = 0
    print("\n| defect | format | architectures | rejected | named |")
    print("| --- | --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        architectures = sorted({each for defect in DEFECTS for each in defect.architectures})
        good = {each: good_files(each, 0, folder, FORMATS) for each in architectures}
        for number, defect in enumerate(DEFECTS):
            rejected = named = 0
            for architecture in defect.architectures:
                here = folder / f"{number}-{architecture}"
                here.mkdir()
                with importable(here):
                    outcome = defect.outcome(good[architecture], here, images)
                rejected += bool(outcome.reasons)
                named += outcome.named
                if not outcome.named:
                    print(f"NOT NAMED: {defect.name}, {architecture}: {outcome.reasons}", file=sys.stderr)
            tried = len(defect.architectures)
            wrong += tried - named
            print(
                f"| {defect.name} | {defect.format} | {', '.join(defect.architectures)} "
                f"| {rejected} of {tried} | {named} of {tried} |",
                flush=True,
            )
    return wrong


if __name__ == "__main__":
    main()
