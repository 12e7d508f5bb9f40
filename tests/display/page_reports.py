"""What the tests of plots and pages are drawn from, made by hand: nothing is trained, run or timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.intervals import Verdict
from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result
from cnndeploy.display.samples import Sample
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.specs import Manifest, TensorSpec
from cnndeploy.tuning.report import Row, TuneReport
from cnndeploy.verification.report import EquivalenceReport, FileIdentity

LABELS = ("Shirt", "Coat", "Bag")
ENVIRONMENT = {
    "cpu": "Some Processor",
    "usable_cpus": 2,
    "gpus": [],
    "system": "Linux 6 x86_64",
    "versions": {"python": "3.11.7", "cnndeploy": "0.1.0", "torch": "2.14.1", "onnxruntime": "1.31.1"},
}


def result(
    artifact: str, runtime: str, p50_s: float, ratio: float, verdict: Verdict, **others: Any
) -> Result:
    values: dict[str, Any] = {
        "batch_size": 1,
        "threads": 2,
        "p50_interval_s": (0.97 * p50_s, 1.04 * p50_s),
        "p90_s": 1.2 * p50_s,
        "p90_interval_s": (1.1 * p50_s, 1.3 * p50_s),
        "ratio_low": 0.98 * ratio,
        "ratio_high": 1.03 * ratio,
        "cold_start": ColdStart(1.9, 0.02, 0.003, 0.001, starts=3),
        "peak_memory_bytes": 68_600_000,
        "file_bytes": 186_800,
        "accuracy": 0.8796,
    }
    known = {"p50_s": p50_s, "ratio": ratio, "verdict": verdict}
    values |= known | others
    return Result(f"models/{artifact}", runtime, "cpu", images_per_s=values["batch_size"] / p50_s, **values)


def benchmark(*rows: Result, warnings: tuple[str, ...] = ()) -> BenchmarkReport:
    return BenchmarkReport(rows, ENVIRONMENT, warnings)


def lenets(**others: Any) -> BenchmarkReport:
    """Three files at two batch sizes, by default all as accurate as each other."""
    rows = []
    for size in (1, 64):
        scale = {"batch_size": size, **others}
        rows += [
            result("lenet.pt", "eager", 344e-6 * size**0.5, 1.0, "REFERENCE", **scale),
            result("lenet.onnx", "onnxruntime", 21.4e-6 * size**0.5, 10.46, "FASTER", **scale),
            result("lenet.torchscript", "torchscript", 290e-6 * size**0.5, 1.2, "FASTER", **scale),
        ]
    return benchmark(*rows, warnings=("The machine became 6% faster.",))


def lossy() -> BenchmarkReport:
    """A file that is faster and less accurate, one that is neither, and one that failed."""
    return benchmark(
        result("lenet.onnx", "onnxruntime", 21.4e-6, 1.0, "REFERENCE"),
        result("lenet.int8.onnx", "onnxruntime", 16.6e-6, 1.29, "FASTER", accuracy=0.8721),
        result("lenet.wide.onnx", "onnxruntime", 30.1e-6, 0.71, "SLOWER"),
        Result("models/broken.onnx", "onnxruntime", "cpu", 2, 1, failure="it ended with status -9"),
    )


def manifest(**training: Any) -> Manifest:
    """Return the manifest of a trained network of three classes."""
    epoch = {"train_loss": 1.3, "train_accuracy": 0.59, "test_accuracy": 0.7689}
    facts = {
        "epochs": [{"epoch": 1, **epoch}, {"epoch": 2, **epoch, "train_loss": 0.6, "test_accuracy": 0.8796}],
        "confusion": [[80, 20, 0], [10, 90, 0], [0, 6, 94]],
        "train_images": 60_000,
        "test_images": 300,
        "test_accuracy": 0.8796,
    }
    return Manifest(
        "lenet",
        TensorSpec("images", "float32", ("batch", 1, 28, 28)),
        TensorSpec("logits", "float32", ("batch", 3)),
        Preprocessing(size=(28, 28)),
        LABELS,
        training=facts | training,
    )


def artifacts(folder: Path) -> list[Artifact]:
    """Return a checkpoint and two exports, which are no more than their names and sizes."""
    made = []
    for number, (suffix, kind) in enumerate(
        {"pt": "checkpoint", "onnx": "onnx", "torchscript": "torchscript"}.items()
    ):
        path = folder / f"lenet.{suffix}"
        path.write_bytes(bytes(184_000 + number))
        made.append(Artifact(path, kind, f"{number}b36b90d" * 8, manifest()))
    return made


def equivalence(*reasons: str) -> list[EquivalenceReport]:
    """Return a report on each export, of which the first failed if there are reasons."""
    against = FileIdentity("models/lenet.pt", "f75f5fde" * 8)
    facts: dict[str, Any] = {"against": against, "images": 10_000, "batch_sizes": (1, 7), "device": "cpu"}
    facts |= {"top1_agreement": 1.0, "max_rel_error": 1.38e-06}
    onnx, torchscript = (FileIdentity(f"models/lenet.{kind}", "0" * 64) for kind in ("onnx", "torchscript"))
    return [
        EquivalenceReport(artifact=onnx, runtime="onnxruntime", reasons=reasons, **facts),
        EquivalenceReport(artifact=torchscript, runtime="torchscript", **facts),
    ]


def samples() -> list[Sample]:
    """Three images that are labelled right, two of them of one label, and one that is not."""
    images = np.arange(4 * 28 * 28, dtype=np.uint8).reshape(4, 28, 28)
    given = (("Bag", "Bag"), ("Shirt", "Coat"), ("Bag", "Bag"), ("Coat", "Coat"))
    return [Sample(image, *labels) for image, labels in zip(images, given, strict=True)]


def tuning(int8_accuracy: float) -> TuneReport:
    """Return what was tried of a network: in float32 many settings, of which two are as fast, and one int8 file."""

    def row(variant: str, runtime: str, p50_us: float, threads: int = 1, **others: Any) -> Row:
        values: dict[str, Any] = {
            "options": {},
            "lossy": variant == "int8",
            "outcome": "slower",
            "accuracy": 0.8796,
        }
        return Row(variant, runtime, threads, p50_s=1e-6 * p50_us, ratio=340 / p50_us, **values | others)

    rows = (
        row("int8", "onnxruntime", 16.6, accuracy=int8_accuracy),
        row("simplified", "onnxruntime", 20.1, outcome="chosen"),
        row("simplified", "onnxruntime", 20.4, threads=2, options={"spinning": False}),
        row("float", "onnxruntime", 23.0),
        row("float", "openvino", 70.5),
        row("simplified", "openvino", 71.0),
        row("float", "torchscript", 280.0),
        row("checkpoint", "eager", 340.0),
        Row("checkpoint", "compiled", 1, {}, False, "failed", "g++ was not found"),
    )
    return TuneReport("lenet.pt", "lenet.deploy", "latency", 1, 0.5, rows, True, 60.0, ENVIRONMENT)
