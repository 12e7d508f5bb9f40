"""The search for a setting: first the calibration method, then which layers stay in float, all by measuring.

It sees training images only. A step leaves the next most sensitive layers in float, until the screen predicts that
the budget is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import onnx

from cnndeploy.quantization.calibration import METHODS, Calibration, Method
from cnndeploy.quantization.graph import Network, Range, quantised
from cnndeploy.quantization.screening import Screen, Trial

# Layers left in float at each step, as shares of all; at least one more than before.
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
# Where the test images did not confirm the first choice, the next must promise to stay below this share of the budget.
_CAREFUL = 0.5

Progress = Callable[[int, int, str], None]


class Search:
    """Gives the settings worth asking the test images about; ``trials`` are all that were tried."""

    def __init__(
        self, network: Network, calibration: Calibration, screen: Screen, on_progress: Progress
    ) -> None:
        self._network = network
        self._calibration = calibration
        self._screen = screen
        self._on_progress = on_progress
        self._ranges: dict[Method, dict[str, Range]] = {}
        self.trials: list[Trial] = []

    def candidates(self, budget: float) -> Iterator[tuple[Trial, onnx.ModelProto]]:
        """The setting with the fewest layers in float that should keep the budget, then a more careful one."""
        limit = budget
        for number, count in enumerate(self._counts()):
            if number == 0:
                trial, model = self._best_method()
            else:
                trial, model = self._try(self._method, self._ranking[:count])
            if trial.predicted_high_points <= limit:
                yield trial, model
                limit = _CAREFUL * budget

    def _counts(self) -> list[int]:
        """How many layers stay in float at each step; never all of them."""
        layers = len(self._network.layers)
        found = [0]
        for share in _SHARES[1:]:
            found.append(max(found[-1] + 1, round(share * layers)))
        return [count for count in found if count < layers]

    def _best_method(self) -> tuple[Trial, onnx.ModelProto]:
        """The one whose logits are nearest to the float file's, with every layer in int8."""
        tried = [self._try(method, []) for method in METHODS]
        best = min(range(len(METHODS)), key=lambda at: tried[at][0].logit_error)
        self._method = METHODS[best]
        return tried[best]

    def _try(self, method: Method, float_layers: list[str]) -> tuple[Trial, onnx.ModelProto]:
        left = f", {len(float_layers)} layers in float" if float_layers else ""
        self._on_progress(0, 0, f"Trying {method}{left}")
        model = quantised(self._network, self._of(method), float_layers)
        trial = self._screen.trial(model, method, sorted(float_layers))
        self.trials.append(trial)
        return trial, model

    def _of(self, method: Method) -> dict[str, Range]:
        if method not in self._ranges:
            self._ranges[method] = self._calibration.ranges(method)
        return self._ranges[method]

    @cached_property
    def _ranking(self) -> list[str]:
        """Layers by the error that each makes when it alone is in int8, the worst first."""
        layers = list(self._network.layers)
        errors = {}
        for done, layer in enumerate(layers):
            self._on_progress(done, len(layers), f"Layer {layer} alone in int8")
            others = [other for other in layers if other != layer]
            errors[layer] = self._screen.logit_error(quantised(self._network, self._of(self._method), others))
        return sorted(layers, key=lambda layer: -errors[layer])
