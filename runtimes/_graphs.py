"""Calls as CUDA graphs, of ONNX Runtime and of torch: what the GPU has to do is recorded once for each shape.

Later calls with that shape replay it.

A call of a small network spends its time in starting kernels one by one; a replay starts all of them at once. A graph
reads and writes the addresses that it was recorded with, so each call copies its input there first.

Source: ONNX Runtime's documentation of the CUDA execution provider, "Using CUDA Graphs", and cuda_graph.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.runtimes._session import Arrays
from cnndeploy.specs import TensorSpec

_MOST_SHAPES = 8  # each keeps memory of its own on the GPU
_NO_GRAPH = "-1"
_THREAD = ThreadPoolExecutor(1, "cuda-graphs")  # which it starts at the first call
Call = Callable[[NDArray[Any]], list[NDArray[Any]]]


class Recorded:
    """The recorded calls of a session with one input.

    ONNX Runtime replays a graph only in the thread that recorded it, and while one is recorded nothing else may use
    CUDA. So one thread makes all calls of all such sessions, and callers wait for it.
    """

    def __init__(self) -> None:
        self._calls: dict[tuple[int, ...], Call] = {}

    def run(
        self, given: NDArray[Any], recording: Callable[[NDArray[Any]], Call], without: Call
    ) -> list[NDArray[Any]]:
        """Return the outputs for an input, which the caller owns.

        ``recording`` returns the call for inputs of one shape. Shapes beyond the eighth are left to ``without``, which
        uses no graph.
        """
        return _THREAD.submit(self._run, given, recording, without).result()

    def _run(
        self, given: NDArray[Any], recording: Callable[[NDArray[Any]], Call], without: Call
    ) -> list[NDArray[Any]]:
        if (known := self._calls.get(given.shape)) is not None:
            return known(given)
        if len(self._calls) == _MOST_SHAPES:
            return without(given)
        call = recording(given)
        outputs = call(given)
        self._calls[given.shape] = call  # after a failure the next call records again
        return outputs


class GraphCalls:
    """The calls of a session of ONNX Runtime on ``cuda:N``, for files with one input."""

    def __init__(self, session: Any, device: str, given: TensorSpec, outputs: Sequence[TensorSpec]) -> None:
        self._session, self._index = session, int(device.removeprefix("cuda:"))
        self._given, self._outputs = given, outputs
        self._recorded = Recorded()
        self._attempts = 0

    def run(self, feeds: Arrays) -> list[NDArray[Any]]:
        """Return the outputs, which the caller owns."""
        return self._recorded.run(feeds[self._given.name], self._recording, self._beyond)

    def without(self, work: Callable[..., Any]) -> Any:
        """Return what ``work`` returns, with ``options`` that leave graphs out, in the thread that makes all calls."""
        return _THREAD.submit(work, options=_options(_NO_GRAPH)).result()

    def _beyond(self, given: NDArray[Any]) -> list[NDArray[Any]]:
        names = [spec.name for spec in self._outputs]
        return list(self._session.run(names, {self._given.name: given}, _options(_NO_GRAPH)))

    def _recording(self, given: NDArray[Any]) -> Call:
        """Return a call for inputs of this shape, whose first run records."""
        import onnxruntime as ort

        session, on_gpu = self._session, ("cuda", self._index)
        source = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(given), *on_gpu)
        targets = [
            ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(spec.dtype).type, *on_gpu)
            for spec, shape in zip(self._outputs, self._shapes(given.shape), strict=True)
        ]
        binding = session.io_binding()
        binding.bind_ortvalue_input(self._given.name, source)
        for spec, target in zip(self._outputs, targets, strict=True):
            binding.bind_ortvalue_output(spec.name, target)
        self._attempts += 1
        options = _options(str(self._attempts))

        def call(images: NDArray[Any]) -> list[NDArray[Any]]:  # without self, which holds it
            source.update_inplace(np.ascontiguousarray(images))
            session.run_with_iobinding(binding, options)
            return [target.numpy() for target in targets]

        return call

    def _shapes(self, given: tuple[int, ...]) -> list[list[int]]:
        """Return the shapes of the outputs for an input of the shape ``given``.

        Axes of the same name have the same length. Raise ValueError if the length of an output's axis does not follow.
        """
        lengths: dict[str, set[int]] = {}
        for axis, length in zip(self._given.shape, given, strict=True):
            if isinstance(axis, str):
                lengths.setdefault(axis, set()).add(length)

        def length_of(axis: int | str) -> int:
            if isinstance(axis, int):
                return axis
            if len(known := lengths.get(axis, set())) != 1:
                raise ValueError(
                    "CUDA graphs need output shapes that follow from the input's shape; "
                    f"the length of the axis {axis} does not"
                )
            return next(iter(known))

        return [[length_of(axis) for axis in spec.shape] for spec in self._outputs]


def _options(graph: str) -> Any:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
