"""Compare a tuned folder with other tools: is it the fastest way to run a network here? A table of docs/BENCHMARKS.md.

For each checkpoint in the folder: eager PyTorch, frozen TorchScript, torch.compile, ONNX Runtime and OpenVINO as a
plain script uses them, both on an int8 file that a plain script quantises, and the tuned folder by the session that
cnndeploy.load opens; all side by side in one run, at batch 1.

    .venv/bin/python benchmarks/peers.py --folder checkpoints --max-minutes 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

from cnndeploy import evaluate, tune
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import Limits, bench_candidates
from cnndeploy.benchmark.intervals import ratio_interval
from cnndeploy.benchmark.raw import RAW_ONNXRUNTIME, RAW_OPENVINO
from cnndeploy.benchmark.report import BenchmarkReport, Result, round_ratios
from cnndeploy.datasets import open_dataset
from cnndeploy.deployment import Candidate, resolve
from cnndeploy.display.benchmark_tables import tuning_table
from cnndeploy.display.cells import duration, machine_line
from cnndeploy.exporters import export
from cnndeploy.files import write_file
from cnndeploy.run import Run
from cnndeploy.serial import dumps

CALIBRATION = 256


class _TrainingImages(CalibrationDataReader):  # type: ignore[misc]
    """A reader of the first training images, one by one, as a plain script would calibrate."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.require_manifest()
        dataset = open_dataset(None, manifest.data, artifact.path)
        images = dataset.split("train", manifest.preprocessing.channels, manifest.labels)
        self._feeds = (
            {manifest.input.name: images.prepared([place], manifest.preprocessing)}
            for place in range(min(CALIBRATION, len(images)))
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def plain_int8(source: Artifact, path: Path) -> Artifact:
    """Quantise a file to static int8, per channel, with ONNX Runtime's own tool."""
    quantize_static(
        source.path,
        path,
        _TrainingImages(source),
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return Artifact.open(path)


def candidates(folder: Path, name: str, threads: int, max_minutes: float) -> Iterator[tuple[str, Candidate]]:
    """Yield each candidate and its name in the table; eager PyTorch first, the tuned folder last."""
    checkpoint = Artifact.open(folder / f"{name}.pt")
    onnx = export(checkpoint.path, "onnx", folder / f"{name}.plain.onnx", simplify=False)
    script = export(checkpoint.path, "torchscript", folder / f"{name}.plain.torchscript", simplify=False)
    int8 = plain_int8(onnx, folder / f"{name}.plain.int8.onnx")
    tuned = folder / f"{name}.deploy"
    print(f"\nTuning {name}", flush=True)
    report = tune(checkpoint.path, tuned, threads=threads, max_minutes=max_minutes, progress=_Said())
    from rich.console import Console

    Console(width=160).print(tuning_table(report))
    for label, artifact, runtime in (
        ("eager PyTorch", checkpoint, "eager"),
        ("frozen TorchScript", script, "torchscript"),
        ("torch.compile", checkpoint, "compiled"),
        ("ONNX Runtime, plain script", onnx, RAW_ONNXRUNTIME),
        ("OpenVINO, plain script", onnx, RAW_OPENVINO),
        ("ONNX Runtime, plain int8", int8, RAW_ONNXRUNTIME),
        ("OpenVINO, plain int8", int8, RAW_OPENVINO),
    ):
        yield label, resolve(artifact, Run(runtime, threads=threads))
    candidate = resolve(tuned)
    run = candidate.run
    yield f"cnndeploy tune: {report.chosen.variant}, {run.runtime}, {run.threads} threads", candidate


class _Said:
    """A progress callback that prints a line for each new task."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, done: int, total: int, text: str) -> None:
        del done, total
        if text.partition(",")[0] != self._last:
            self._last = text.partition(",")[0]
            print(f"  {text}", flush=True)


def accuracies(
    labelled: list[tuple[str, Candidate]], folder: Path, name: str, images: int | None
) -> dict[str, str]:
    """Return the accuracy on test images of those that may have lost some; the others have the checkpoint's."""
    plan = json.loads((folder / f"{name}.deploy" / "plan.json").read_text())
    known = {labelled[-1][0]: f"{plan['figures']['accuracy']:.4f}: {plan['figures']['verdict']}"}
    for label, candidate in labelled:
        if label == "OpenVINO, plain script":
            known[label] = "in bfloat16 if the processor can; not measured"
        if "plain int8" in label:
            runtime = "onnxruntime" if candidate.run.runtime == RAW_ONNXRUNTIME else "openvino"
            evaluation = evaluate(candidate.artifact, run=Run(runtime), batch_size=32, images=images)
            known[label] = f"{evaluation.accuracy:.4f} on {evaluation.images:,} images"
    return known


def table(labels: list[str], report: BenchmarkReport, known: dict[str, str]) -> str:
    """Return Markdown with each way's speed-up over eager, and the tuned folder's speed-up over each way."""
    ours = report.results[-1]
    lines = [
        "| way | speed-up over eager | speed-up of tuned over it | a call | test accuracy |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    comparisons = len(labels) - 1
    for label, row in zip(labels, report.results, strict=True):
        if row.failure:
            lines.append(f"| {label} | failed: {row.failure} | | | |")
            continue
        shown = known.get(label, "as the checkpoint")
        lines.append(
            f"| {label} | {row.ratio:.3g} ({row.ratio_low:.3g} to {row.ratio_high:.3g}) | "
            f"{_against(row, ours, comparisons)} | {duration(row.p50_s or 0)} | {shown} |"
        )
    return "\n".join(lines)


def _against(row: Result, ours: Result, comparisons: int) -> str:
    if row is ours:
        return ""
    ratios = round_ratios(row, ours)
    low, high = ratio_interval(ratios, comparisons)
    return f"{np.median(ratios):.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the tuned folder with other tools.")
    parser.add_argument("--folder", type=Path, required=True, help="with checkpoints, as lenet.pt")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each candidate (default: 20)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, help="for the accuracy of plain int8 files (default: all)")
    parser.add_argument("--max-minutes", type=float, default=20.0, help="of each tuning (default: 20)")
    parser.add_argument("names", nargs="*", help="of the checkpoints in the folder (default: all)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    for name in arguments.names or sorted(path.stem for path in folder.glob("*.pt")):
        labelled = [*candidates(folder, name, arguments.threads, arguments.max_minutes)]
        labels = [label for label, _ in labelled]
        limits = Limits(until=0.02, seconds=arguments.seconds, timeout_s=600, cold_starts=0, seed=0)
        report = bench_candidates([candidate for _, candidate in labelled], [1], limits)
        write_file(folder / f"{name}.peers.json", dumps(report.to_dict()).encode())
        known = accuracies(labelled, folder, name, arguments.images)
        print(f"\n### {name}\n\n{table(labels, report, known)}\n")
        print(machine_line(report.environment), *report.warnings, sep="\n", flush=True)


if __name__ == "__main__":
    main()
