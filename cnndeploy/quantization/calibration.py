"""Calibration: from what range of values each activation's 256 levels are made, on training images.

One pass over the images makes a histogram of every activation; all methods read it. Only histograms are kept, and the
images come in small batches, so that memory is bounded whatever the network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from cnndeploy.errors import QuantizationError
from cnndeploy.quantization.graph import Network, Range
from cnndeploy.quantization.screening import open_on_cpu
from cnndeploy.quiet import quiet

Method = Literal["min-max", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99  # of all values lie within; those beyond are clipped
# Entropy takes time by the square of the bins; of values of one sign half of them are used, a level of uint8 each.
_BINS, _ENTROPY_BINS = 512, 128


class Calibration:
    """The histogram of each activation over the calibration images."""

    def __init__(self, network: Network) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        self._input = network.model.graph.input[0].name
        self._collector: Any = HistogramCollector("entropy", False, _BINS, _ENTROPY_BINS, PERCENTILE, "same")
        self._network = network

    def collect(self, batches: Iterable[NDArray[Any]], threads: int) -> Iterator[int]:
        """Run all batches of what the network takes, (batch, ...), and yield the size of each."""
        wanted = self._network.measured()
        names = [name for name in wanted if name != self._input]
        model = copy.deepcopy(self._network.model)
        inner = (name for name in names if name not in self._network.outputs)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
        session = open_on_cpu(model, threads)
        for batch in batches:
            values = dict(zip(names, session.run(names, {self._input: batch}), strict=True))
            if self._input in wanted:
                values[self._input] = batch
            for name, array in values.items():
                if not np.isfinite(array).all():
                    raise QuantizationError(
                        f"{name} is NaN or infinite on training images; train the network again"
                    )
            with quiet():
                self._collector.collect(values)
            yield len(batch)

    def ranges(self, method: Method) -> dict[str, Range]:
        """Return, for each activation, the lowest and the highest value that is not clipped.

        Images keep their whole range in every method: they are grey levels, which 256 levels hold exactly.

        Source: onnxruntime.quantization.calibrate; entropy as in Migacz, 8-bit Inference with TensorRT, 2017.
        """
        histograms = self._collector.get_histogram_dict()
        clipped: dict[str, Any] = {}
        with quiet():
            if method == "percentile":
                clipped = self._collector.compute_percentile()
            elif method == "entropy":
                clipped = {
                    name: self._collector.get_entropy_threshold(histogram, _ENTROPY_BINS)
                    for name, histogram in histograms.items()
                    if name != self._input
                }
        clipped.pop(self._input, None)
        ranges = {name: histogram[2:4] for name, histogram in histograms.items()} | clipped
        return {name: (float(values[0]), float(values[1])) for name, values in ranges.items()}
