"""The search for a setting: first the calibration method, then which layers stay in float, all by measuring.

It sees training images only. A step leaves the next most sensitive layers in float, until the screen predicts that
the budget is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.calibration import METHODS, Calibration, Method
from cnndeploy.quantization.graph import Network, Range, quantised
from cnndeploy.quantization.screening import Screen, Trial

# Layers left in float at each step, as shares of all; at least one more than before.
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
# If the test images did not confirm the first choice, the next must promise to stay below this share of the budget.
_CAREFUL = 0.5


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
        self._calibration = calibration
        self._screen = screen
        self._deadline = deadline
        self._progress = progress
        self._ranges: dict[Method, dict[str, Range]] = {}
        self.trials: list[Trial] = []

    def candidates(self, budget: float) -> Iterator[tuple[Trial, onnx.ModelProto]]:
        """Yield the setting with the fewest layers in float that should keep the budget, then a more careful one."""
        tried = [self._try(method, []) for method in METHODS]
        method, first = min(
            zip(METHODS, tried, strict=True), key=lambda pair: pair[1][0].logit_error
        )  # nearest to the float file with every layer in int8
        limit, ranking = budget, list[str]()
        for count in self._counts():
            if count and not ranking:
                ranking = self._ranking(method)
            trial, model = self._try(method, ranking[:count]) if count else first
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
        model = quantised(self._network, self._of(method), float_layers)
        trial = self._screen.trial(model, method, sorted(float_layers))
        self.trials.append(trial)
        self._deadline.check()
        return trial, model

    def _of(self, method: Method) -> dict[str, Range]:
        if method not in self._ranges:
            self._ranges[method] = self._calibration.ranges(method)
        return self._ranges[method]

    def _ranking(self, method: Method) -> list[str]:
        """Return the layers by the error that each makes when it alone is in int8, the worst first."""
        layers = list(self._network.layers)
        errors = {}
        for done, layer in enumerate(layers):
            self._progress(done, len(layers), f"Layer {layer} alone in int8")
            self._deadline.check()
            others = [other for other in layers if other != layer]
            errors[layer] = self._screen.logit_error(quantised(self._network, self._of(method), others))
        return sorted(layers, key=lambda layer: -errors[layer])
