"""Quantisation: a file of int8 or float16, made from a checkpoint, that keeps a budget of accuracy or is not made."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import Result
from cnndeploy.certificate import remove_stale_certificate
from cnndeploy.devices import device_index
from cnndeploy.errors import (
    BudgetError,
    CnndeployError,
    DataError,
    MissingDependencyError,
    QuantizationError,
    UnknownNameError,
)
from cnndeploy.exporters import ModelInput, export
from cnndeploy.files import check_writable, write_file
from cnndeploy.machine import usable_cpus
from cnndeploy.quantization.screening import Trial
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.verification.budget import checkpoint_labels, require_budget, verify_budget
from cnndeploy.verification.budget_report import BudgetReport
from cnndeploy.verification.verdict import FileIdentity

Precision = Literal["int8", "float16"]
Progress = Callable[[int, int, str], None]
Labels = Sequence[int] | NDArray[Any]
SEED = 0
# Asked of the test images: the setting that was chosen, and if that fails one more.
_MOST_ASKED = 2


@dataclass(frozen=True, slots=True)
class Quantized:
    """What :func:`quantize` wrote and what it found out.

    ``report`` is what the test images say; ``trials`` are the settings that training images were asked about, none for
    float16. ``speed`` is the file's row in a benchmark beside its float file, whose ratio above 1 is faster, None
    where none was asked for; ``speed_warnings`` what to doubt about it. ``float_bytes`` is the size of the float file.

    >>> quantized = cnndeploy.quantize("lenet.pt", "small.onnx", budget=20, calibration=64, images=64, bench_s=0)
    >>> quantized.report.verdict, quantized.artifact.path.stat().st_size < quantized.float_bytes
    ('within budget', True)
    """

    artifact: Artifact
    report: BudgetReport
    trials: tuple[Trial, ...]
    float_bytes: int
    speed: Result | None = None
    speed_warnings: tuple[str, ...] = ()

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers that are left in float."""
        quantization = self.artifact.require_manifest().quantization or {}
        return tuple(quantization.get("float_layers", ()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.report.to_dict(),
            "bytes": self.artifact.path.stat().st_size,
            "float_bytes": self.float_bytes,
            "quantization": dict(self.artifact.require_manifest().quantization or {}),
            "trials": [asdict(trial) for trial in self.trials],
            "speed": None if self.speed is None else asdict(self.speed),
            "speed_warnings": list(self.speed_warnings),
        }


def quantize(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    precision: Precision = "int8",
    budget: float = 0.5,
    calibration: int = 512,
    input: ModelInput = "tensor",  # noqa: A002 - as export()'s
    runtime: str = "onnxruntime",
    device: str = "cpu",
    threads: int | None = None,
    images: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    reference_labels: Labels | None = None,
    bench_s: float = 3.0,
    on_progress: Progress | None = None,
) -> Quantized:
    """Write an ONNX file in int8, or float16, that loses no more accuracy than its budget; or write nothing.

    Settings are chosen by training images: some calibrate, others, which calibration did not see, screen. The test
    images are asked at most twice, for the setting chosen and, if that does not keep the budget, for one with more
    layers in float. Each time the upper end of a 95% interval errs in 2.5%, so together in at most 5%.

    Args:
        checkpoint: What ``cnndeploy train`` wrote.
        path: The file to write; beside the checkpoint by default, as ``lenet.int8.onnx``.
        precision: ``int8``: static, weights and activations of 8 bits. ``float16``: for CUDA.
        budget: Percentage points of test accuracy that may be lost, against the checkpoint.
        calibration: Training images that the ranges of activations are taken from; of int8 only.
        input: What the file takes, as :func:`cnndeploy.export`'s.
        runtime: What runs the file when its loss is measured.
        device: Where the file is run then.
        threads: CPU threads, all that the process may use by default.
        images: Measure on the first so many test images, all 10,000 by default.
        data_dir: Folder of the data set.
        reference_labels: As :func:`cnndeploy.verify_budget`'s.
        bench_s: Seconds to time the file beside its float file for, each; 0 for not at all.
        on_progress: Called with what is done, of how much (0 where that is unknown), and at what.

    Raises:
        QuantizationError: The network or what is asked for cannot be quantised, or the file is no checkpoint.
        BudgetError: No setting keeps the budget; the best figures are in its message.
        CheckpointError, ArtifactError, ExportError, DataError, DeviceUnavailableError: As export's and verify's.

    >>> quantized = cnndeploy.quantize("lenet.pt", budget=20, calibration=64, images=64, bench_s=0)
    >>> quantized.artifact.path.name, quantized.report.within_budget
    ('lenet.int8.onnx', True)
    """
    checkpoint = Path(checkpoint)
    target = checkpoint.with_suffix(f".{precision}.onnx") if path is None else Path(path)
    _check(checkpoint, precision, budget, calibration, runtime, device)
    check_writable(target, checkpoint)
    report_progress = on_progress or (lambda _done, _total, _text: None)
    with tempfile.TemporaryDirectory(prefix="cnndeploy-") as name:
        folder = Path(name)
        report_progress(0, 0, f"Exporting {checkpoint.name}")
        source = export(checkpoint, "onnx", folder / "float.onnx", input=input)
        shared: dict[str, Any] = {
            "budget": budget,
            "runtime": runtime,
            "device": device,
            "threads": threads,
            "images": images,
            "data_dir": data_dir,
        }
        asker = _Asker(checkpoint, folder / target.name, shared, report_progress, reference_labels)
        trials: list[Trial] = []
        if precision == "float16":
            found = asker.first_within(_half(source, budget))
        else:
            found = asker.first_within(
                _int8(source, budget, calibration, images, threads, data_dir, report_progress, trials)
            )
        if found is None:
            raise BudgetError(_nothing(checkpoint, budget, trials, asker.reports))
        row, warnings = _timed(source, asker.path, runtime, device, threads, bench_s, report_progress)
        write_file(target, asker.path.read_bytes())
        float_bytes = source.path.stat().st_size
    remove_stale_certificate(target)
    artifact = Artifact.open(target)
    report = replace(found, artifact=FileIdentity(str(target), found.artifact.sha256))
    return Quantized(artifact, report, tuple(trials), float_bytes, row, warnings)


def _check(
    checkpoint: Path, precision: str, budget: float, calibration: int, runtime: str, device: str
) -> None:
    """Refuse what cannot work before anything long is done."""
    if precision not in get_args(Precision):
        raise UnknownNameError("precision", precision, get_args(Precision))
    require_budget(budget)
    if precision == "int8" and (type(calibration) is not int or calibration < 1):
        raise DataError(
            f"int8 takes its ranges from training images, at least 1 and usually 512, not {calibration!r}"
        )
    opened = Artifact.open(checkpoint)
    if opened.manifest is not None and opened.manifest.lossy:
        already = (opened.manifest.quantization or {}).get("precision", "lossy")
        raise QuantizationError(
            f"{checkpoint} is already {already}; quantise the checkpoint that it came from"
        )
    if opened.format != "checkpoint":
        raise QuantizationError(
            f"{checkpoint} is {opened.format}; give the checkpoint that it was exported from, as lenet.pt"
        )
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package)
    chosen = RUNTIMES.get(runtime)
    if "onnx" not in chosen.formats:
        raise QuantizationError(
            f"the file is measured by a runtime that opens ONNX, as onnxruntime; {runtime} does not"
        )
    device_index(device, runtime, chosen.devices())


Candidates = Iterator[bytes]
"""Files to ask the test images about, in turn."""


def _made(source: Artifact, model: Any, quantization: dict[str, Any]) -> bytes:
    from cnndeploy.quantization.graph import with_manifest

    manifest = replace(source.require_manifest(), quantization=quantization)
    return with_manifest(model, manifest.to_json())


def _half(source: Artifact, budget: float) -> Candidates:
    import onnx

    from cnndeploy.quantization.half import in_float16

    facts = {"precision": "float16", "budget_points": budget}
    yield _made(source, in_float16(onnx.load(source.path)), facts)


def _int8(
    source: Artifact,
    budget: float,
    calibration: int,
    images: int | None,
    threads: int | None,
    data_dir: str | os.PathLike[str] | None,
    on_progress: Progress,
    trials: list[Trial],
) -> Candidates:
    """Files to ask the test images about, in turn; ``trials`` grows with all settings that were tried."""
    import onnx

    from cnndeploy.quantization.calibration import Calibration
    from cnndeploy.quantization.graph import Network
    from cnndeploy.quantization.screening import Screen, batches, screen_size
    from cnndeploy.quantization.search import Search

    manifest = source.require_manifest()
    network = Network(onnx.load(source.path))
    train = data.load("train", data_dir)
    calibrating, screening = _split(train, calibration, screen_size(network.work()))
    count = usable_cpus() if threads is None else threads
    calibrated = Calibration(network)
    done = 0

    def on_batch(size: int) -> None:
        nonlocal done
        done += size
        on_progress(done, calibration, "Calibrating")

    calibrated.collect(batches(calibrating.images, manifest, network.floats()), count, on_batch)
    on_progress(0, 0, "Running the float file")
    tests = len(data.load("test", data_dir).first(images))
    screen = Screen(network.model, manifest, screening, tests, count)
    search = Search(network, calibrated, screen, on_progress)
    search.trials = trials
    for trial, model in search.candidates(budget):
        facts = {
            "precision": "int8",
            "activations": "uint8",
            "weights": "int8 per channel",
            "method": trial.method,
            "calibration_images": calibration,
            "seed": SEED,
            "float_layers": list(trial.float_layers),
            "layers": len(network.layers),
            "budget_points": budget,
        }
        yield _made(source, model, facts)


def _split(train: data.Images, calibration: int, screening: int) -> tuple[data.Images, data.Images]:
    """Images to calibrate with, drawn by a seed, and others to screen with."""
    most = len(train) - screening
    if calibration > most:
        raise DataError(
            f"calibration takes 1 to {most:,} training images, for {screening:,} of {len(train):,} are held out to "
            f"choose settings by; not {calibration:,}. 512 are usual."
        )
    drawn = np.random.default_rng(SEED).permutation(len(train))
    parts = (drawn[screening : screening + calibration], drawn[:screening])
    first, second = (data.Images(train.images[part], train.labels[part], train.sha256) for part in parts)
    return first, second


class _Asker:
    """Asks the test images about at most two files; the one within its budget is left at ``path``."""

    def __init__(
        self,
        checkpoint: Path,
        path: Path,
        shared: dict[str, Any],
        on_progress: Progress,
        labels: Labels | None,
    ) -> None:
        self.path = path
        self.reports: list[BudgetReport] = []
        self._checkpoint = checkpoint
        self._shared = shared
        self._on_progress = on_progress
        self._labels = labels

    def first_within(self, candidates: Candidates) -> BudgetReport | None:
        for content in candidates:
            self.path.write_bytes(content)
            report = verify_budget(
                self.path,
                self._checkpoint,
                reference_labels=self._checkpoint_labels(),
                on_batch=lambda done, total: self._on_progress(done, total, "Measuring on test images"),
                **self._shared,
            )
            self.reports.append(report)
            if report.within_budget:
                return report
            if (
                len(self.reports) == _MOST_ASKED or not report.images
            ):  # what cannot be compared is no matter of bits
                return None
        return None

    def _checkpoint_labels(self) -> Labels:
        """Asked for once: they take longest."""
        if self._labels is None:
            self._labels = checkpoint_labels(
                Artifact.open(self._checkpoint),
                threads=self._shared["threads"],
                images=self._shared["images"],
                data_dir=self._shared["data_dir"],
                on_batch=lambda done, total: self._on_progress(done, total, "Labels by eager PyTorch"),
            )
        return self._labels


def _nothing(checkpoint: Path, budget: float, trials: list[Trial], reports: list[BudgetReport]) -> str:
    """Why nothing was written, with the best figures there are."""
    advice = "Allow more with --budget, or ship the float file. Nothing was written."
    start = f"no setting tried keeps {checkpoint} within {budget:g} percentage points of accuracy"
    if reports:
        return f"{start}: {'; '.join(reports[-1].reasons)}. {advice}"
    if not trials:
        return f"{start}. {advice}"
    best = min(trials, key=lambda trial: trial.predicted_high_points)
    return (
        f"{start}: the best of {len(trials)}, {best.method} with {len(best.float_layers)} layers in float, is expected "
        f"to lose up to {best.predicted_high_points:.2f}, by {best.images:,} training images. {advice}"
    )


def _timed(
    source: Artifact,
    path: Path,
    runtime: str,
    device: str,
    threads: int | None,
    bench_s: float,
    on_progress: Progress,
) -> tuple[Result | None, tuple[str, ...]]:
    """The new file beside its float file; what goes wrong here takes nothing from the file."""
    if not bench_s:
        return None, ()
    from cnndeploy.benchmark.bench import bench

    try:
        report = bench(
            [source.path, path],
            runtimes=[runtime],
            device=device,
            threads=() if threads is None else (threads,),
            budget_s=bench_s,
            cold_starts=0,
            on_progress=lambda text, done, total: on_progress(done, total, text),
        )
    except CnndeployError as error:
        return None, (f"its speed was not measured: {error}",)
    row = report.results[-1]
    return (None, (f"its speed was not measured: {row.failure}",)) if row.failure else (row, report.warnings)
