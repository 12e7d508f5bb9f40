"""The search for an int8 file: first the calibration method, then which layers stay in float, all by measuring.

It sees training images only. A step leaves the next most sensitive layers in float, until the screen predicts that
the budget is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.errors import DataError
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.calibration import METHODS, Calibration, Method
from cnndeploy.quantization.graph import Network, quantised, with_manifest
from cnndeploy.quantization.screening import Screen, Trial, batches, screen_size

SEED = 0
# Layers left in float at each step, as shares of all; at least one more than before.
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
# If the test images did not confirm the first choice, the next must promise to stay below this share of the budget.
_CAREFUL = 0.5


def int8_files(
    source: Artifact,
    budget: float,
    calibration: int,
    tests: int,
    threads: int,
    data_dir: str | None,
    deadline: Deadline,
    progress: Progress,
) -> tuple[list[Trial], Iterator[bytes]]:
    """Calibrate a float file, and return the files that should keep the budget, the least careful first.

    Args:
        source: The float file.
        budget: Percentage points of accuracy that may be lost.
        calibration: Training images to calibrate on.
        tests: How many test images the files will be measured on.
        threads: CPU threads.
        data_dir: Folder of the data set.
        deadline: Checked after every batch and every trial.
        progress: Called with what is done, of how much, and at what.

    Returns:
        The settings that were tried so far, and the contents of the files, each made when it is asked for.
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
    settings: dict[str, Any] = {
        "precision": "int8",
        "activations": "uint8",
        "weights": "int8 per channel",
        "calibration_images": calibration,
        "seed": SEED,
        "layers": len(network.layers),
        "budget_points": budget,
    }

    def files() -> Iterator[bytes]:
        for trial, model in search.candidates(budget):
            tried = {"method": trial.method, "float_layers": list(trial.float_layers)}
            yield with_manifest(model, replace(manifest, quantization=settings | tried).to_json())

    return search.trials, files()


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


class Search:
    """Finds the settings worth measuring on test images; ``trials`` are all that were tried."""

    def __init__(
        self,
        network: Network,
        calibration: Calibration,
        screen: Screen,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        self._network = network
        self._ranges = cache(calibration.ranges)
        self._screen = screen
        self._deadline = deadline
        self._progress = progress
        self.trials: list[Trial] = []

    def candidates(self, budget: float) -> Iterator[tuple[Trial, onnx.ModelProto]]:
        """Yield the setting with the fewest layers in float that should keep the budget, then a more careful one."""
        tried = {method: self._try(method, []) for method in METHODS}
        # nearest to the float file with every layer in int8
        method = min(METHODS, key=lambda method: tried[method][0].logit_error)
        limit, ranking = budget, list[str]()
        for count in self._counts():
            if count and not ranking:
                ranking = self._ranking(method)
            trial, model = self._try(method, ranking[:count]) if count else tried[method]
            if trial.predicted_high_points <= limit:
                yield trial, model
                limit = _CAREFUL * budget

    def _counts(self) -> list[int]:
        """Return how many layers stay in float at each step; never all of them."""
        layers = len(self._network.layers)
        counts = [0]
        for share in _SHARES[1:]:
            counts.append(max(counts[-1] + 1, round(share * layers)))
        return [count for count in counts if count < layers]

    def _try(self, method: Method, float_layers: list[str]) -> tuple[Trial, onnx.ModelProto]:
        left = f", {len(float_layers)} layers in float" if float_layers else ""
        self._progress(0, 0, f"Trying {method}{left}")
        model = quantised(self._network, self._ranges(method), float_layers)
        trial = self._screen.trial(model, method, sorted(float_layers))
        self.trials.append(trial)
        self._deadline.check()
        return trial, model

    def _ranking(self, method: Method) -> list[str]:
        """Return the layers by the error that each makes when it alone is in int8, the worst first."""
        layers, errors = list(self._network.layers), {}
        for done, layer in enumerate(layers):
            self._progress(done, len(layers), f"Layer {layer} alone in int8")
            self._deadline.check()
            others = [other for other in layers if other != layer]
            errors[layer] = self._screen.logit_error(quantised(self._network, self._ranges(method), others))
        return sorted(layers, key=lambda layer: -errors[layer])
