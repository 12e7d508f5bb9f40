"""The rates at which verification is wrong: sound files that it rejects, and broken ones that it passes.

It exports every architecture in every format, with either input, from networks of several seeds, simplified as
exports are by default, and verifies each file: every rejection is a false alarm. Then it breaks files in every way of
tests/broken.py and broken_images.py, and verifies those: every pass is a miss, and so is a reason that does not name
the defect. It prints the tables of docs/EQUIVALENCE.md in about an hour on two cores, and exits with 1 after a false
alarm or a miss.

    .venv/bin/python benchmarks/verification_rates.py --part sound
    .venv/bin/python benchmarks/verification_rates.py --part broken --images 100
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.display.cells import machine_line
from cnndeploy.exporters import ModelInput, export
from cnndeploy.machine import environment
from cnndeploy.verification.reference import Reference
from cnndeploy.verification.report import EquivalenceReport
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
    """Verify sound files; return the number of those that were rejected."""
    alarms = 0
    print("| architecture | format, input | files | rejected | error, times eager's own |")
    print("| --- | --- | ---: | ---: | --- |")
    for architecture in ARCHITECTURES.names():
        by_kind: dict[str, list[EquivalenceReport]] = defaultdict(list)
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = good_files(architecture, seed, Path(folder), ()).checkpoint
                with Reference(checkpoint) as reference:
                    for name in FORMATS:
                        for takes in get_args(ModelInput):
                            artifact = export(checkpoint, name, input=takes)
                            by_kind[f"{name}, {takes}"].append(verify(artifact, reference, images=images))
                            artifact.path.unlink()
        for kind, reports in by_kind.items():
            rejected = [report for report in reports if not report.equivalent]
            ratios = ", ".join(f"{report.oracle.ratio:.2f}" if report.oracle else "-" for report in reports)
            print(f"| {architecture} | {kind} | {len(reports)} | {len(rejected)} | {ratios} |", flush=True)
            alarms += len(rejected)
            for report in rejected:
                print(f"FALSE ALARM: {report.reasons}", file=sys.stderr)
    return alarms


def misses(images: int) -> int:
    """Verify broken files; return the number of those that passed, or whose reasons do not name the defect."""
    wrong = 0
    print("\n| defect | format | architectures | rejected | named |")
    print("| --- | --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        architectures = sorted({name for defect in DEFECTS for name in defect.architectures})
        good = {name: good_files(name, 0, folder, FORMATS) for name in architectures}
        references = {name: stack.enter_context(Reference(files.checkpoint)) for name, files in good.items()}
        for number, defect in enumerate(DEFECTS):
            rejected = named = 0
            for architecture in defect.architectures:
                here = folder / f"{number}-{architecture}"
                here.mkdir()
                with importable(here):
                    outcome = defect.outcome(good[architecture], here, images, references[architecture])
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
