"""Calls of ONNX Runtime as CUDA graphs: what the GPU has to do is recorded once for each shape, and then replayed.

A call of a small network spends its time in starting kernels one by one; a replay starts all of them at once. A graph
reads and writes the addresses that it was recorded with, so each call copies its input there first.

Source: ONNX Runtime's documentation of the CUDA execution provider, "Using CUDA Graphs".
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.runtimes._session import Arrays
from cnndeploy.specs import TensorSpec

_MOST_SHAPES = 8  # each keeps memory of its own on the GPU
_NO_GRAPH = "-1"


class GraphCalls:
    """The recorded calls of a session on ``cuda:N``, for files with one input; a session may run one call at a time."""

    def __init__(self, session: Any, device: str, given: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
        self._session, self._index = session, int(device.removeprefix("cuda:"))
        self._given, self._outputs = given, outputs
        self._recorded: dict[tuple[int, ...], Callable[[NDArray[Any]], list[NDArray[Any]]]] = {}
        self._lock, self._is_busy = threading.RLock(), False

    def run(self, feeds: Arrays) -> list[NDArray[Any]]:
        """Return the outputs, which the caller owns; those of a shape that is not recorded are computed as usual.

        Raise RuntimeError if this thread is in the middle of another call, as a signal handler is.
        """
        given = feeds[self._given.name]
        with self._lock:
            if self._is_busy:
                raise RuntimeError("a session with CUDA graphs cannot be called in the middle of a call")
            self._is_busy = True
            try:
                call = self._recorded.get(given.shape)
                if call is None and len(self._recorded) < _MOST_SHAPES:
                    call = self._recorded[given.shape] = self._record(given)
                if call is None:
                    names = [spec.name for spec in self._outputs]
                    return list(self._session.run(names, feeds, _options(_NO_GRAPH)))
                return call(given)
            finally:
                self._is_busy = False

    def _record(self, given: NDArray[Any]) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
        """Return a call for inputs of this shape, whose first run records."""
        import onnxruntime as ort

        on_gpu = ("cuda", self._index)
        source = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(given), *on_gpu)
        targets = [
            ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype).type, *on_gpu)
            for spec, shape in zip(self._outputs, self._shapes(given.shape), strict=True)
        ]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._given.name, source)
        for spec, target in zip(self._outputs, targets, strict=True):
            binding.bind_ortvalue_output(spec.name, target)
        options = _options(str(len(self._recorded) + 1))

        def call(images: NDArray[Any]) -> list[NDArray[Any]]:
            source.update_inplace(np.ascontiguousarray(images))
            self._session.run_with_iobinding(binding, options)
            return [target.numpy() for target in targets]

        return call

    def _shapes(self, given: tuple[int, ...]) -> list[list[int]]:
        """Return the outputs' shapes for an input of this one, by the names of its axes.

        Raise ValueError if an output has an axis that the input has not.
        """
        axes = {
            axis: length
            for axis, length in zip(self._given.shape, given, strict=True)
            if isinstance(axis, str)
        }
        names = itertools.chain.from_iterable(spec.shape for spec in self._outputs)
        if unknown := {axis for axis in names if isinstance(axis, str)} - axes.keys():
            raise ValueError(
                f"CUDA graphs need outputs of known shapes, and not {', '.join(sorted(unknown))}"
            )
        return [
            [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape] for spec in self._outputs
        ]


def _options(graph: str) -> Any:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
