"""Small reports made by hand, for the tests of what is rendered: nothing is trained, run or timed for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.baseline import Change, Comparison
from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result
from cnndeploy.certificate import Accuracy
from cnndeploy.evaluation import Evaluation
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.quantization.search import Trial
from cnndeploy.specs import Manifest, TensorSpec
from cnndeploy.tuning.report import Outcome, Row, TuneReport
from cnndeploy.verification.checks import BatchInvariance, Decisions, OracleCheck
from cnndeploy.verification.divergence import Divergence, ModuleError
from cnndeploy.verification.report import BudgetReport, EquivalenceReport, FileIdentity, SideFacts

SHA256 = "b36b90dc0f3c1a5d" * 4
CHECKPOINT = FileIdentity("models/lenet.pt", "f75f5fde" * 8)
ACCURACY = Accuracy(0.8796, 10_000)
ORACLE = OracleCheck(10_000, 0, 1e-7, 1e-6, 1e-7, 1e-6, 1.28)
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ENVIRONMENT = {
    "cpu": "Intel(R) Xeon(R) Processor",
    "usable_cpus": 2,
    "gpus": [],
    "system": "Linux 6.18.44 x86_64",
    "versions": {"python": "3.11.7", "cnndeploy": "0.1.0", "numpy": "2.4.6", "onnxruntime": "1.31.1"},
}


def _result(name: str, runtime: str, batch_size: int, p50_s: float, ratio: float, **others: Any) -> Result:
    interval = (0.97 * p50_s, 1.04 * p50_s)
    figures: dict[str, Any] = {
        "threads": 2,
        "p50_s": p50_s,
        "p50_interval_s": interval,
        "p90_s": 1.2 * p50_s,
        "p90_interval_s": interval,
        "p99_s": 1.6 * p50_s,
        "p99_interval_s": interval,
        "images_per_s": batch_size / p50_s,
        "ratio": ratio,
        "ratio_low": 0.98 * ratio,
        "ratio_high": 1.03 * ratio,
        "verdict": "FASTER" if ratio > 1 else "REFERENCE",
        "peak_memory_bytes": 68_600_000,
        "file_bytes": 186_800,
        "cold_start": ColdStart(0.222, 0.0168, 0.000831, 0.000336, starts=3),
        "accuracy": 0.8796,
    }
    return Result(f"models/{name}", runtime, "cpu", batch_size=batch_size, **figures | others)


def benchmark(*batch_sizes: int) -> BenchmarkReport:
    """Three files, each run by the runtime that its suffix implies; the intervals of some p99 are not known."""
    rows = [
        row
        for batch in batch_sizes
        for row in (
            _result("lenet.pt", "eager", batch, 344e-6 * batch**0.5, 1.0),
            _result("lenet.onnx", "onnxruntime", batch, 45.3e-6 * batch**0.5, 9.27, p99_interval_s=None),
            _result("lenet.torchscript", "torchscript", batch, 314e-6 * batch**0.5, 1.234),
        )
    ]
    return BenchmarkReport(tuple(rows), ENVIRONMENT, ("The machine became 6% faster while it was measured.",))


def mixed_benchmark() -> BenchmarkReport:
    """Rows that only runtime and threads tell apart, a long name, and a failure; no process was started again."""
    long_name = "googlenet_fine_tuned_on_our_own_photos.onnx"
    bare = {"cold_start": None, "peak_memory_bytes": None, "accuracy": None}
    rows = (
        _result(long_name, "onnxruntime", 64, 0.0123, 1.0, threads=1, **bare),
        _result(long_name, "onnxruntime", 64, 0.0071, 1.73, threads=2, **bare),
        _result(long_name, "openvino", 64, 0.0069, 1.78, p90_s=None, p99_s=None, **bare),
    )
    failed = Result(
        f"models/{long_name}", "openvino", "cpu", 1, 64, failure="its process ended with status -9"
    )
    return BenchmarkReport((*rows, failed), ENVIRONMENT)


def comparison() -> Comparison:
    """A line that got slower and one that did not."""
    slower = Change("lenet.onnx", "onnxruntime", 2, 1, "ratio", 0.499, 0.493, 0.503, "SLOWER")
    same = replace(slower, artifact="lenet.pt", runtime="eager", by="time", ratio=1.002, verdict="SAME")
    rounds = "has 3 rounds in the baseline and 2 here; 8 are needed"
    undecided = f"lenet.torchscript on torchscript, cpu, 2 threads, batch 1 {rounds}"
    return Comparison((same, slower), ("onnxruntime was 1.30.0, is 1.31.1",), (undecided,))


def _row(variant: str, runtime: str, outcome: Outcome, reason: str, ratio: float = 0, **others: Any) -> Row:
    figures = (
        {"ratio": ratio, "ratio_interval": (0.9 * ratio, 1.1 * ratio), "p50_s": 254e-6 / ratio}
        if ratio
        else {}
    )
    settings: dict[str, Any] = {"threads": 2, "options": {}, "lossy": False, "accuracy": 0.8796}
    return Row(variant, runtime, outcome=outcome, reason=reason, **settings | figures | others)


def tuning() -> TuneReport:
    """Every outcome, with reasons of many lengths."""
    beyond = "its loss of 0.31 points (0.12 to 0.52) is beyond the budget of 0.5 points"
    compiler = "CppCompileError: g++ was not found, which torch.compile needs; install it, or see https://pytorch.org"
    bfloat16 = {"precision": "bfloat16"}
    slow = "{} times as fast as the fastest"
    late = "the time was over before it could be timed"
    rows = (
        _row("int8", "onnxruntime", "rejected", beyond, 12.9, threads=1, lossy=True, accuracy=0.8765),
        _row("simplified", "onnxruntime", "chosen", "equivalent on 10,000 images", 12.2, threads=1),
        _row("simplified", "onnxruntime", "as fast", "", 12.1, options={"spinning": False}),
        _row(
            "float",
            "openvino",
            "slower",
            slow.format("0.9 (0.871 to 0.925)"),
            10.9,
            options=bfloat16,
            accuracy=None,
        ),
        _row("simplified", "torchscript", "slower", slow.format("0.0824 (0.0801 to 0.0855)"), 1.01),
        _row("checkpoint", "eager", "slower", slow.format("0.0811 (0.0798 to 0.083)"), 1.0),
        _row("checkpoint", "compiled", "failed", compiler),
        _row("float", "onnxruntime", "not tried", late),
    )
    return TuneReport("lenet.pt", "lenet.deploy", "latency", 1, 0.5, rows, False, 96.0, ENVIRONMENT)


def equivalence(name: str = "lenet.onnx") -> EquivalenceReport:
    """Return a pass on all test images."""
    placement = dict.fromkeys(map(str, range(12)), "CPUExecutionProvider")
    settings = {"threads": 2, "tf32": False, "graph_optimization_level": "ORT_ENABLE_ALL", "spinning": True}
    return EquivalenceReport(
        artifact=FileIdentity(f"models/{name}", SHA256),
        against=CHECKPOINT,
        runtime="onnxruntime",
        device="cpu",
        threads=2,
        images=10_000,
        top1_agreement=1.0,
        batch_sizes=(1, 2, 3, 4, 7, 64, 256),
        max_abs_error=3.34e-06,
        max_rel_error=1.38e-06,
        oracle=ORACLE,
        decisions=Decisions((), 10_000, 0.8796, 0.8796, 1.0),
        batch_invariance=BatchInvariance(3, (2, 7, 64), 0.0, 0.0, 3e-05),
        artifact_side=SideFacts(placement, settings),
        against_side=SideFacts({"features.0": "cpu"}, {"threads": 1, "tf32": False}),
    )


def divergent() -> EquivalenceReport:
    """Return a failure that was compared, with the layer to blame."""
    how = "output channel 2 off by up to 0.11 of the largest value, where eager's rounding is 4e-07"
    modules = [ModuleError(f"features.{n}", "Conv2d", 0.11 if n > 2 else 3e-7, 4e-7) for n in range(8)]
    divergence = Divergence(
        (0, 7), tuple(modules), "features.3", f"it departs first in features.3 (Conv2d): {how}"
    )
    return replace(
        equivalence("broken.onnx"),
        reasons=("9,871 of 10,000 images are beyond the tolerance",),
        decisions=Decisions((3, 8, 21, 30, 41, 77), 129, 0.8412, 0.8796, 3.1e-05),
        top1_agreement=0.9123,
        divergence=divergence,
        oracle=replace(ORACLE, ratio=86_412.0),
    )


def incomparable() -> EquivalenceReport:
    """Return a failure of which nothing was compared."""
    known = {"runtime": "onnxruntime", "device": "cpu"}
    return EquivalenceReport.undecided(
        "models/other.onnx", "models/lenet.pt", "exported from another", **known
    )


def budget() -> BudgetReport:
    """Return a pass of a lossy file."""
    return BudgetReport(
        artifact=FileIdentity("models/lenet.int8.onnx", SHA256),
        against=CHECKPOINT,
        runtime="onnxruntime",
        device="cpu",
        threads=1,
        options={"spinning": False},
        images=10_000,
        top1_agreement=0.9912,
        budget_points=0.5,
        artifact_accuracy=0.8789,
        checkpoint_accuracy=0.8796,
        loss_points=0.07,
        loss_low_points=-0.09,
        loss_high_points=0.23,
        gained=1,
        lost=8,
    )


def manifest(**changes: Any) -> Manifest:
    """Return the manifest of a trained LeNet."""
    values: dict[str, Any] = {
        "architecture": "lenet",
        "input": TensorSpec("images", "float32", ("batch", 1, 28, 28)),
        "output": TensorSpec("logits", "float32", ("batch", 10)),
        "preprocessing": Preprocessing(size=(28, 28)),
        "labels": LABELS,
        "training": {
            "test_accuracy": 0.8796,
            "test_images": 10_000,
            "recipe": {"optimizer": "adamw", "learning_rate": 0.003, "epochs": 20, "batch_size": 128},
        },
        "versions": {"python": "3.11.7", "cnndeploy": "0.1.0", "torch": "2.14.1"},
    }
    return Manifest(**values | changes)


def quantized(folder: Path) -> Quantized:
    """Return what quantize gives; ``folder`` holds the file of 48 kB."""
    path = folder / "lenet.int8.onnx"
    path.write_bytes(b"\0" * 48_000)
    settings = {"precision": "int8", "layers": 5, "float_layers": ["classifier.4"], "budget_points": 0.5}
    trials = (
        Trial("minmax", (), 1, 0.0213, 0.0117, 0.1, 0.62),
        Trial("entropy, per channel", ("classifier.4",), 1, 0.0098, 0.0052, 0.0, 0.31),
    )
    speed = _result("lenet.int8.onnx", "onnxruntime", 1, 22.5e-6, 0.95, verdict="SLOWER")
    artifact = Artifact(path, "onnx", SHA256, manifest(quantization=settings))
    return Quantized(artifact, budget(), trials, 186_800, speed)


def evaluation() -> Evaluation:
    """Ten classes, one of which was shown once."""
    counts = [[0] * 10 for _ in LABELS]
    for number, row in enumerate(counts):
        row[number], row[(number + 1) % 10] = 870 + 7 * number, 130 - 7 * number
    counts[9] = [0] * 9 + [1]
    return Evaluation("models/lenet.onnx", SHA256, "onnxruntime", "cpu", 1, LABELS, tuple(map(tuple, counts)))


def evaluation_of_many_classes() -> Evaluation:
    """1,500 classes, every tenth without images."""
    labels = tuple(f"class {number}" for number in range(1500))
    counts = tuple((number % 51, 50 if number % 10 else 0) for number in range(1500))
    counts = tuple((min(right, images), images) for right, images in counts)
    how = "models/large.onnx", SHA256, "onnxruntime", "cpu", 1
    return Evaluation(*how, labels, (), top5_correct=61_200, counts=counts)


def facts(kind: str) -> tuple[dict[str, Any], Manifest | None, Accuracy | None]:
    """Return what inspect shows of a ``checkpoint``, an ``onnx`` file, a ``folder`` or a ``foreign`` file."""
    lenet = manifest()
    known: dict[str, Any] = {
        "path": "models/production/lenet.onnx",
        "format": "onnx",
        "bytes": 186_210,
        "sha256": SHA256,
        "inputs": [lenet.input],
        "outputs": [lenet.output],
        "operators": {},
        "certificate": None,
    }
    if kind == "checkpoint":
        return known | {"path": "models/lenet.pt", "format": "checkpoint"}, lenet, ACCURACY
    graph = {"ir_version": 10, "opset": {"ai.onnx": 20}, "producer": "pytorch"}
    known |= graph | {"operators": {"Conv": 2, "Gemm": 3, "MaxPool": 2, "Relu": 4, "Reshape": 1}}
    if kind == "foreign":
        return (
            known | {"path": "/srv/models/vision/classification/resnet18/2026-11-28/export/resnet.onnx"},
            None,
            None,
        )
    known["certificate"] = {
        "verdict": "equivalent",
        "against": {"sha256": SHA256},
        "runtime": "onnxruntime",
        "device": "cpu",
        "images": 10_000,
        "date": "2026-11-28T08:00:00+00:00",
    }
    if kind == "folder":
        known["plan"] = PLAN
    rewrites = ("merge_linear(classifier.1, classifier.3)",)
    return known, manifest(checkpoint_sha256=SHA256, rewrites=rewrites), ACCURACY


PLAN = {
    "file": "lenet.onnx",
    "runtime": "onnxruntime",
    "device": "cpu",
    "threads": 1,
    "options": {"spinning": False},
    "figures": {
        "objective": "latency",
        "batch_size": 1,
        "budget_points": 0.5,
        "complete": False,
        "times_as_fast_as_eager": 12.233465381697947,
        "interval": [11.286273956972789, 13.1234],
        "p50_s": 2.0473750055316486e-05,
        "accuracy": 0.8796,
        "verdict": "equivalent on 10,000 images",
        "tried": 16,
        "of another version": 0.5,
    },
    "date": "2026-11-28T08:00:00+00:00",
    "command": "cnndeploy tune lenet.pt --output lenet.deploy --max-minutes 1.5",
}
