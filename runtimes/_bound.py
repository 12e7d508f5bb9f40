"""Calls of ONNX Runtime on small arrays, with inputs and outputs at addresses that are bound once.

For each call ONNX Runtime's own ``run`` makes arrays and looks names up. That takes a microsecond, which counts if the
call takes ten. Here each thread has arrays of its own, and a call copies in and out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.runtimes._session import Arrays

_MOST_BYTES = 2**15  # of input and outputs: to copy more takes longer than is saved


class BoundCalls:
    """The bound arrays of a session's threads, for files with one input; they are released with this object."""

    def __init__(self, session: Any, output_names: Sequence[str]) -> None:
        self._session, self._output_names = session, output_names
        self._of_thread = threading.local()
        self._is_given_up = False  # because outputs have other shapes each time, or cannot be bound

    def run(self, feeds: Arrays) -> list[NDArray[Any]] | None:
        """Return the outputs, which the caller owns; None if nothing is bound for such an input in this thread."""
        arrays: _Arrays | None = getattr(self._of_thread, "arrays", None)
        if arrays is None:
            return None
        ((_, given),) = feeds.items()
        if not arrays.fits(given):
            return None
        try:
            return arrays.run(given)
        except Exception:  # noqa: BLE001 - ONNX Runtime's own run raises it again, if the shapes are not at fault
            self._give_up()
            return None

    def bind(self, feeds: Arrays, outputs: Sequence[NDArray[Any]]) -> None:
        """Bind arrays for calls like one with ``feeds`` that returned ``outputs``, if that pays.

        It pays if inputs and outputs are small and numeric, and two calls in a row have the same shape, for which
        nothing is bound yet.
        """
        ((name, given),) = feeds.items()
        arrays = [given, *outputs]
        # an output that is the input itself would not be written
        if self._is_given_up or given.nbytes > _MOST_BYTES or name in self._output_names:
            return
        last, self._of_thread.last = getattr(self._of_thread, "last", None), given.shape
        if (bound := getattr(self._of_thread, "arrays", None)) is not None and bound.was_used:
            bound.was_used, last = False, None  # a bound call came between
        of_numbers = all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in arrays)
        if last != given.shape or not of_numbers or sum(one.nbytes for one in arrays) > _MOST_BYTES:
            return
        try:
            self._of_thread.arrays = _Arrays(self._session, name, given, self._output_names, outputs)
        except Exception:  # noqa: BLE001 - the answer is there; later calls do without
            self._give_up()

    def _give_up(self) -> None:
        self._is_given_up, self._of_thread.arrays = True, None


class _Arrays:
    """The bound input and outputs of one thread, for one set of shapes."""

    def __init__(
        self,
        session: Any,
        name: str,
        given: NDArray[Any],
        names: Sequence[str],
        outputs: Sequence[NDArray[Any]],
    ) -> None:
        import onnxruntime as ort

        self._session, self._busy, self.was_used = session, False, False
        self._source = np.empty(given.shape, given.dtype)
        self._targets = [np.empty(one.shape, one.dtype) for one in outputs]
        self._binding = session.io_binding()
        # on the CPU an OrtValue refers to the array's memory
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(self._source))
        for output, target in zip(names, self._targets, strict=True):
            self._binding.bind_ortvalue_output(output, ort.OrtValue.ortvalue_from_numpy(target))

    def fits(self, given: NDArray[Any]) -> bool:
        """Return whether an input has the bound shape and dtype, and no call uses the arrays.

        A signal handler may call in the middle of a call.
        """
        return not self._busy and given.shape == self._source.shape and given.dtype == self._source.dtype

    def run(self, given: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs; raise what ONNX Runtime raises if they have other shapes this time."""
        self._busy = self.was_used = True
        try:
            self._source[...] = given
            self._session.run_with_iobinding(self._binding)
            return [target.copy() for target in self._targets]
        finally:
            self._busy = False
