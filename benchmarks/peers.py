"""Compare a tuned folder with other tools: is it the fastest way to run a network here? A table of docs/BENCHMARKS.md.

For each checkpoint in the folder: eager PyTorch, frozen TorchScript, torch.compile, ONNX Runtime and OpenVINO as a
plain script uses them, both on int8 files that a plain script quantises by ONNX Runtime's tool and by NNCF, OpenVINO's
own, and the tuned folder by the session that cnndeploy.load opens; all side by side in one run, at batch 1. What was
measured is kept in benchmarks/results/peers.json after each network; the table and the plot in docs/ are made of that.

    .venv/bin/python -m pip install nncf==3.4.0
    .venv/bin/python benchmarks/peers.py --folder checkpoints --max-minutes 20
    .venv/bin/python benchmarks/peers.py --folder checkpoints --keep-tuned     # with the tuned folders that are there
    .venv/bin/python benchmarks/peers.py --page                # the table and the plot again, of what was measured
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _peers_page import into_page, plot
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
from rich.console import Console

from cnndeploy import evaluate, tune
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import Limits, bench_candidates
from cnndeploy.benchmark.intervals import ratio_interval
from cnndeploy.benchmark.raw import RAW_ONNXRUNTIME, RAW_OPENVINO
from cnndeploy.benchmark.report import BenchmarkReport, round_ratios
from cnndeploy.datasets import open_dataset
from cnndeploy.deployment import Candidate, resolve
from cnndeploy.display.benchmark_tables import tuning_table
from cnndeploy.exporters import export
from cnndeploy.files import write_file
from cnndeploy.machine import patient_threads
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.serial import dumps

with patient_threads():
    import torch

    from cnndeploy.training.train import has_bfloat16

CALIBRATION = 256
REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "peers.json"
PAGE, PLOT = REPOSITORY / "docs" / "BENCHMARKS.md", REPOSITORY / "docs" / "peers.png"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a network; ``measured`` is the run whose accuracy is measured, None if it is the checkpoint's."""

    label: str
    candidate: Candidate
    measured: Run | None = None


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


def nncf_int8(source: Artifact, path: Path) -> Artifact:
    """Quantise a file to int8 with NNCF, as its guide does: all default settings, training images to calibrate."""
    nncf: Any = importlib.import_module("nncf")  # which only this needs
    dataset = nncf.Dataset(list(iter(_TrainingImages(source).get_next, None)))
    onnx.save(nncf.quantize(onnx.load(source.path), dataset), path)
    return Artifact.open(path)


def ways(folder: Path, name: str, threads: int, max_minutes: float, keep_tuned: bool) -> Iterator[Way]:
    """Yield each way; eager PyTorch first, the tuned folder last."""
    checkpoint = Artifact.open(folder / f"{name}.pt")
    plain = export(checkpoint.path, "onnx", folder / f"{name}.plain.onnx", simplify=False)
    script = export(checkpoint.path, "torchscript", folder / f"{name}.plain.torchscript", simplify=False)
    int8 = plain_int8(plain, folder / f"{name}.plain.int8.onnx")
    by_nncf = nncf_int8(plain, folder / f"{name}.nncf.int8.onnx")
    tuned = folder / f"{name}.deploy"
    if not (keep_tuned and tuned.exists()):
        print(f"\nTuning {name}", flush=True)
        report = tune(checkpoint.path, tuned, threads=threads, max_minutes=max_minutes, progress=_Said())
        Console(width=160).print(tuning_table(report))
    # OpenVINO computes what is not int8 in bfloat16 if the processor can
    reduced = RuntimeOptions(precision="bfloat16") if has_bfloat16(torch.device("cpu")) else RuntimeOptions()
    on_openvino, on_onnxruntime = Run("openvino", options=reduced), Run("onnxruntime")
    for label, artifact, runtime, measured in (
        ("eager PyTorch", checkpoint, "eager", None),
        ("frozen TorchScript", script, "torchscript", None),
        ("torch.compile", checkpoint, "compiled", None),
        ("ONNX Runtime, plain script", plain, RAW_ONNXRUNTIME, None),
        ("OpenVINO, plain script", plain, RAW_OPENVINO, on_openvino),
        ("ONNX Runtime, plain int8", int8, RAW_ONNXRUNTIME, on_onnxruntime),
        ("OpenVINO, plain int8", int8, RAW_OPENVINO, on_openvino),
        ("ONNX Runtime, NNCF int8", by_nncf, RAW_ONNXRUNTIME, on_onnxruntime),
        ("OpenVINO, NNCF int8", by_nncf, RAW_OPENVINO, on_openvino),
    ):
        yield Way(label, resolve(artifact, Run(runtime, threads=threads)), measured)
    candidate = resolve(tuned)
    run = candidate.run
    assert candidate.plan is not None  # noqa: S101 - it is a folder
    if candidate.artifact.require_manifest().held_against != checkpoint.sha256:
        sys.exit(f"{tuned} was not made of {checkpoint.path}; tune that again, without --keep-tuned")
    if candidate.plan.elsewhere:
        sys.exit(f"{tuned}: {candidate.plan.elsewhere}")
    counted = "1 thread" if run.threads == 1 else f"{run.threads} threads"
    chosen = next(row for row in _tuning(folder, name) if row["outcome"] == "chosen")
    yield Way(f"cnndeploy tune: {chosen['variant']}, {run.runtime}, {counted}", candidate)


class _Said:
    """A progress callback that prints a line for each new task."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, done: int, total: int, text: str) -> None:
        del done, total
        task = " ".join(word for word in text.partition(",")[0].split() if not word.isdigit())
        if task != self._last:
            self._last = task
            print(f"  {text}", flush=True)


def measured(folder: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all ways to run a checkpoint, and return what docs/ says of them."""
    tried = [*ways(folder, name, arguments.threads, arguments.max_minutes, arguments.keep_tuned)]
    limits = Limits(until=0.02, seconds=arguments.seconds, timeout_s=600, cold_starts=0, seed=0)
    report = bench_candidates([way.candidate for way in tried], [1], limits)
    # before accuracies, which may fail
    write_file(folder / f"{name}.peers.json", dumps(report.to_dict()).encode())
    plan = tried[-1].candidate.plan
    assert plan is not None  # noqa: S101 - it is a folder
    figures = plan.figures
    exported = next(way for way in tried if way.label.startswith("ONNX Runtime"))
    plain = evaluate(exported.candidate.artifact, batch_size=64, images=arguments.images)
    accuracies: list[float] = []
    for way, row in zip(tried, report.results, strict=True):
        run = way.measured
        accuracies.append(
            plain.accuracy
            if run is None or row.failure
            else evaluate(way.candidate.artifact, run=run, batch_size=64, images=arguments.images).accuracy
        )
    ours = tried[-1].candidate
    accuracies[-1] = (
        figures["accuracy"]
        if arguments.images is None
        else evaluate(ours.folder or ours.artifact, batch_size=64, images=arguments.images).accuracy
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": arguments.seconds,
        "max_minutes": _minutes_of(plan.command) or arguments.max_minutes,
        "environment": {**report.environment, "versions": report.environment["versions"] | _nncf_version()},
        "warnings": report.warnings,
        "images": plain.images,
        "verdict": figures["verdict"],
        "raced": raced(_tuning(folder, name)),
        "rows": [*_rows(tried, report, accuracies)],
    }


def _minutes_of(command: str) -> float | None:
    """Return the time limit of a tuning, which need not be that of this run if its folder was kept."""
    given = re.search(r"--max-minutes[ =]([\d.]+)", command)
    return None if given is None else float(given[1])


def _nncf_version() -> dict[str, str]:
    return {"nncf": metadata.version("nncf")}


def _tuning(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of the table that tune left in a folder."""
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.deploy" / "tuning.json").read_text())["rows"]
    return rows


def raced(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of a call of each variant in a tuning's table, by its fastest run, the fastest first.

    They tell what compression adds to int8 alone.
    """
    fastest = dict[str, float]()
    for row in rows:
        if row["p50_s"] is not None:
            fastest[row["variant"]] = min(row["p50_s"], fastest.get(row["variant"], row["p50_s"]))
    return dict(sorted(fastest.items(), key=lambda one: one[1]))


def _rows(tried: list[Way], report: BenchmarkReport, accuracies: list[float]) -> Iterator[dict[str, Any]]:
    ours = report.results[-1]
    for way, row, accuracy in zip(tried, report.results, accuracies, strict=True):
        shown: dict[str, Any] = {"way": way.label, "failure": row.failure}
        if not row.failure:
            shown |= {"p50_s": row.p50_s, "ratio": [row.ratio, row.ratio_low, row.ratio_high]}
            shown |= {"accuracy": accuracy, "as_checkpoint": way.measured is None and row is not ours}
            shown["bytes"] = row.file_bytes
            if row is not ours and not ours.failure:
                ratios = round_ratios(row, ours)
                shown["tuned_over"] = [
                    float(np.median(ratios)),
                    *ratio_interval(ratios, len(report.results) - 1),
                ]
        yield shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the tuned folder with other tools.")
    parser.add_argument("--folder", type=Path, help="with checkpoints, as lenet.pt")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each candidate (default: 10)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, help="for the accuracy of the others (default: all)")
    parser.add_argument("--max-minutes", type=float, default=20.0, help="of each tuning (default: 20)")
    parser.add_argument("--keep-tuned", action="store_true", help="use the tuned folders that are there")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the table and the plot again"
    )
    parser.add_argument("names", nargs="*", help="of the checkpoints in the folder (default: all)")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not arguments.page:
        if arguments.folder is None:
            sys.exit("Name the folder of the checkpoints: --folder checkpoints")
        folder: Path = arguments.folder
        for name in arguments.names or sorted(path.stem for path in folder.glob("*.pt")):
            results[name] = measured(folder, name, arguments)
            write_file(RESULTS, dumps(results).encode())
    if not results:
        sys.exit(f"{RESULTS} has no results; measure first: --folder checkpoints")
    write_file(PAGE, into_page(PAGE.read_text(), results).encode())
    write_file(PLOT, plot(results))


if __name__ == "__main__":
    main()
