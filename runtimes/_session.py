"""Runtime: one way to open artifacts. Session: an artifact opened on one device, ready to run."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, fork_count
from cnndeploy.errors import ArtifactError, CnndeployError, InputMismatchError
from cnndeploy.registry import Registry
from cnndeploy.run import Run
from cnndeploy.specs import TensorSpec

Arrays = Mapping[str, NDArray[Any]]

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[Session] = []


if hasattr(os, "register_at_fork"):
    # what was open is never released in a fork, for a runtime may wait for threads that are not there
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_open_sessions))


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
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        placed_on: str,
    ) -> None:
        self.artifact, self.run_as, self.placed_on = artifact, run, placed_on
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
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
            raise self._failure()
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
                    given = TensorSpec("", str(array.dtype), array.shape)
                    raise InputMismatchError(f"input {spec.name!r}: expected {spec}, got {given}")
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

    def _failure(self, feeds: Arrays | None = None, error: Exception | None = None) -> ArtifactError:
        if self._closed or error is None:  # perhaps by another thread, just now
            return ArtifactError(f"the session of {self.artifact.path} is closed; open it again")
        shapes = {name: array.shape for name, array in (feeds or {}).items()}
        where = f"{self.artifact.path} on inputs of shape {shapes}"
        return ArtifactError(f"{self._library} could not run {where}: {self._words(error)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Runtime(Protocol):
    """One way to run artifacts; the module's ``RUNTIME`` is an instance.

    Its module imports without the package it drives, so that ``formats`` can be read and ``cnndeploy list`` can say
    what is missing.
    """

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats that it opens."""

    @property
    def package(self) -> str:
        """The import name of the package that it drives."""

    @property
    def options(self) -> Mapping[str, tuple[Any, ...]]:
        """The fields of RuntimeOptions that it heeds, each with the values beside the default that it knows."""

    def devices(self) -> dict[str, DeviceStatus]:
        """Return every device this runtime knows, and whether it works on this machine; never raise."""

    def open(self, artifact: Artifact, run: Run) -> Session:
        """Open an artifact of one of ``formats``, once open_session() knows that ``package`` is installed.

        Every field of ``run`` is filled in. Its ``device`` is ``cpu`` or ``cuda:N``; those of its options
        that differ from the default are among this runtime's. Raise ArtifactError if the file cannot be opened, and
        DeviceUnavailableError if the device does not work here, for there is no fallback.
        """


RUNTIMES: Registry[Runtime] = Registry("runtimes", "RUNTIME")
