"""Session: an artifact opened on one device, ready to run."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import fork_count
from cnndeploy.errors import ArtifactError, CnndeployError, InputMismatchError
from cnndeploy.run import Run
from cnndeploy.specs import TensorSpec

Arrays = Mapping[str, NDArray[Any]]

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[Session] = []


def _keep_inherited() -> None:
    """In a forked process: what was open is never released, for a runtime may wait for threads that are not there."""
    _inherited.extend(_open_sessions)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


@dataclass(frozen=True, slots=True)
class Activation:
    """What one module of a network computes: its path, such as ``features.3``, its class, and its values.

    The path is empty if the file does not name it.
    """

    module: str
    kind: str
    values: NDArray[Any]


class Session(ABC):
    """An artifact opened on one device, ready to run; a context manager.

    ``run_as`` says how it is run, with the very device, as ``cuda:0``. ``inputs`` and ``outputs`` are what the opened
    file says of itself; a format that says nothing, as those of torch, has its manifest's. ``placed_on`` is what
    :meth:`placement` must return for every part.
    """

    _library = "the runtime"
    _words: Callable[[Exception], str] = str

    def __init__(
        self,
        artifact: Artifact,
        run: Run,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        placed_on: str,
    ) -> None:
        self.artifact = artifact
        self.placed_on = placed_on
        self.inputs = inputs
        self.outputs = outputs
        self.run_as = run
        self.device, self.threads, self.options = run.device, run.thread_count, run.choices
        self._closed = False
        self._forks = fork_count()
        self._accepted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        _open_sessions.add(self)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run one batch through the graph; returns when the results are there.

        Args:
            feeds: Input name to array; ``image`` is float32 (batch, 1, height, width), NCHW, preprocessed.

        Returns:
            Output name to array; ``logits`` is float32 (batch, classes), unnormalised. The caller owns it.

        Raises:
            InputMismatchError: A name, dtype or fixed axis differs from ``inputs``.
            ArtifactError: The session is closed or of another process, or the runtime failed on this batch.
        """
        if self._closed:
            raise self._closed_error()
        if self._forks != fork_count():
            raise ArtifactError(
                f"{self.artifact.path} was opened before this process was forked, and a runtime's threads do not live "
                "on in a fork. Open it in this process, or start processes by multiprocessing's 'spawn'."
            )
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                raise InputMismatchError(
                    f"input {spec.name!r} is missing; expected {spec}, got {sorted(feeds)}"
                )
            seen = (array.dtype, array.shape)
            # checking every run again would take a microsecond of each
            if self._accepted.get(spec.name) != seen:
                if not spec.accepts(array):
                    raise InputMismatchError(
                        f"input {spec.name!r}: expected {spec}, got {TensorSpec('', str(array.dtype), array.shape)}"
                    )
                self._accepted[spec.name] = seen
        if len(feeds) != len(self.inputs):
            expected = [spec.name for spec in self.inputs]
            raise InputMismatchError(f"expected the inputs {expected}, got {sorted(feeds)}")
        try:
            return self._run(feeds)
        except CnndeployError:
            raise
        except Exception as error:  # whatever a runtime makes of a file that may be anybody's
            raise self._failure(feeds, error) from error

    @abstractmethod
    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run feeds that fit; what it raises becomes an ArtifactError, and of a closed session says so."""

    def activations(self, feeds: Arrays) -> list[Activation]:  # noqa: ARG002 - for those that can
        """Return what each module computes for one batch, in the order computed; takes what :meth:`run` takes.

        Empty if the runtime cannot look inside. To be seen, outputs are kept that the runtime may otherwise fuse away,
        so this run need not compute the same bits as :meth:`run`.
        """
        return []

    @abstractmethod
    def placement(self) -> dict[str, str]:
        """Return where the work is done: node or tensor name to execution provider or device."""

    def settings(self) -> dict[str, Any]:
        """Return JSON-ready what else bears on the numbers; at least ``threads`` and ``tf32``."""
        return {"threads": self.threads, "tf32": self.options.precision == "tf32"}

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Wait until all work handed to the device is done."""

    def close(self) -> None:
        """Release the model; closing twice is harmless, and so is closing while another thread runs it."""
        self._closed = True
        if self._forks == fork_count():
            self._release()

    def _release(self) -> None:  # noqa: B027 - a runtime that holds nothing needs none
        """Drop the model, its memory and its threads; may be called twice."""

    def _failure(self, feeds: Arrays, error: Exception) -> ArtifactError:
        if self._closed:  # by another thread, just now
            return self._closed_error()
        shapes = {name: array.shape for name, array in feeds.items()}
        where = f"{self.artifact.path} on inputs of shape {shapes}"
        return ArtifactError(f"{self._library} could not run {where}: {self._words(error)}")

    def _closed_error(self) -> ArtifactError:
        return ArtifactError(f"the session of {self.artifact.path} is closed; open it again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
