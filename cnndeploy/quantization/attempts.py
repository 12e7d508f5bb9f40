"""Attempts: the files worth measuring on test images, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.errors import DataError
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.calibration import Calibration
from cnndeploy.quantization.graph import Network, with_manifest
from cnndeploy.quantization.half import in_float16
from cnndeploy.quantization.screening import Screen, Trial, batches, screen_size
from cnndeploy.quantization.search import Search

SEED = 0


@dataclass(frozen=True, slots=True)
class Attempts:
    """The contents of ``files``, in turn; ``trials`` grows with the settings that were tried to make them."""

    files: Iterator[bytes]
    trials: Sequence[Trial]


def float16_attempts(source: Artifact, budget: float) -> Attempts:
    """Return the one way to store a float file in float16."""

    def files() -> Iterator[bytes]:
        settings = {"precision": "float16", "budget_points": budget}
        yield _file(source, in_float16(onnx.load(source.path)), settings)

    return Attempts(files(), ())


def int8_attempts(
    source: Artifact,
    budget: float,
    calibration: int,
    tests: int,
    threads: int,
    data_dir: str | None,
    deadline: Deadline,
    progress: Progress,
) -> Attempts:
    """Calibrate a float file, and return the settings that should keep the budget, the least careful first.

    Args:
        source: The float file.
        budget: Percentage points of accuracy that may be lost.
        calibration: Training images to calibrate on.
        tests: How many test images the files will be measured on.
        threads: CPU threads.
        data_dir: Folder of the data set.
        deadline: Checked after every batch and every trial.
        progress: Called with what is done, of how much, and at what.
    """
    manifest, network = source.require_manifest(), Network(onnx.load(source.path))
    calibrating, screening = _split(data.load("train", data_dir), calibration, screen_size(network.work()))
    calibrated, done = Calibration(network), 0
    for size in calibrated.collect(batches(calibrating.images, manifest, network.floats()), threads):
        done += size
        progress(done, calibration, "Calibrating")
        deadline.check()
    progress(0, 0, "Running the float file")
    screen = Screen(network.model, manifest, screening, tests, threads)
    search = Search(network, calibrated, screen, deadline, progress)

    def files() -> Iterator[bytes]:
        for trial, model in search.candidates(budget):
            settings = {
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
            yield _file(source, model, settings)

    return Attempts(files(), search.trials)


def _file(source: Artifact, model: onnx.ModelProto, settings: dict[str, Any]) -> bytes:
    return with_manifest(model, replace(source.require_manifest(), quantization=settings).to_json())


def _split(train: data.Images, calibration: int, screening: int) -> tuple[data.Images, data.Images]:
    """Draw images to calibrate with, by a seed, and others to screen with."""
    most = len(train) - screening
    if calibration > most:
        raise DataError(
            f"calibration takes 1 to {most:,} training images, for {screening:,} of {len(train):,} are held out to "
            f"choose settings by; not {calibration:,}. 512 are usual."
        )
    drawn = np.random.default_rng(SEED).permutation(len(train))
    first, second = (
        data.Images(train.images[part], train.labels[part], train.sha256)
        for part in (drawn[screening : screening + calibration], drawn[:screening])
    )
    return first, second
