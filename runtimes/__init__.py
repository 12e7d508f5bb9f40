"""Runtimes: open an artifact on a device and run it. One file each; imported as ``cnndeploy.runtimes``.

A runtime never runs anywhere but on the device it was asked for, and never times itself.
"""

from __future__ import annotations

if __name__ != "cnndeploy.runtimes":
    raise ImportError(f"import this package as cnndeploy.runtimes, not as {__name__}")

import importlib.util
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from cnndeploy import registry
from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus as DeviceStatus
from cnndeploy.devices import device_index as device_index
from cnndeploy.devices import fork_count
from cnndeploy.errors import (
    ArtifactError,
    CnndeployError,
    DeviceUnavailableError,
    InputMismatchError,
    MissingDependencyError,
)
from cnndeploy.machine import usable_cpus
from cnndeploy.specs import RAW_SIDE, TensorSpec

Arrays = Mapping[str, NDArray[Any]]
Precision = Literal["float32", "bfloat16"]
Threads = int | Literal["auto"]
# For threads="auto": above so many seconds an image all threads are taken untried; all must be so many times as fast.
_LARGE_S, _WORTH_IT = 0.005, 1.1
_MOST_THREADS = 1024
_TRIAL_S, _FEWEST_TRIALS = 0.001, 5

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[Session] = []


def _keep_inherited() -> None:
    """In a forked process: what was open is never released, for a runtime may wait for threads that are not there."""
    _inherited.extend(_open_sessions)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What some runtimes let a user choose, see :attr:`Runtime.options`.

    ``spinning``: whether threads that wait for work spin, which wakes them sooner and keeps their CPUs busy.
    ``precision``: what is computed in; in ``bfloat16``, which keeps 8 bits of 24, a float32 file is lossy.
    """

    spinning: bool = True
    precision: Precision = "float32"

    @property
    def lossy(self) -> bool:
        """Whether a float32 file run so gives up accuracy on purpose."""
        return self.precision != "float32"

    @property
    def changed(self) -> dict[str, Any]:
        """JSON-ready: the fields that are not as they are by default."""
        return {
            each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default
        }

    @classmethod
    def of(cls, changed: Mapping[str, Any]) -> Self:
        """Read what :attr:`changed` gave; raises ValueError where it did not."""
        allowed = {"spinning": (True, False), "precision": get_args(Precision)}
        if not all(value in allowed.get(name, ()) for name, value in changed.items()):
            raise ValueError(f"not options of a runtime: {changed}")
        return cls(**changed)


@dataclass(frozen=True, slots=True)
class Activation:
    """What one module of a network gave: its path in the network, as ``features.3``, and its class, as
    ``Conv2d``; the path is empty where the file does not name it.
    """

    module: str
    kind: str
    values: NDArray[Any]


class Session(ABC):
    """An artifact opened on one device, ready to run; a context manager.

    ``inputs`` and ``outputs`` are what the opened file says of itself; a format that says nothing, as those
    of torch, has its manifest's. ``placed_on`` is what :meth:`placement` must give for every part.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: str,
        placed_on: str,
        threads: int,
        tf32: bool = False,
    ) -> None:
        self.tf32 = tf32
        self.artifact = artifact
        self.placed_on = placed_on
        self.inputs = inputs
        self.outputs = outputs
        self.device = device
        self.threads = threads
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
            if (
                self._accepted.get(spec.name) != seen
            ):  # to check every run anew would take a microsecond of each
                if not spec.accepts(array):
                    raise InputMismatchError(
                        f"input {spec.name!r}: expected {spec}, got {TensorSpec('', str(array.dtype), array.shape)}"
                    )
                self._accepted[spec.name] = seen
        if len(feeds) != len(self.inputs):
            expected = [spec.name for spec in self.inputs]
            raise InputMismatchError(f"expected the inputs {expected}, got {sorted(feeds)}")
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run feeds that fit; raises ArtifactError where the runtime fails."""

    def activations(self, feeds: Arrays) -> list[Activation]:
        """What each module gives for one batch, in the order computed; takes what :meth:`run` takes.

        Empty where the runtime cannot look inside. To be seen, outputs are kept that the runtime may otherwise
        fuse away, so this run need not give the same bits as :meth:`run`.
        """
        del feeds
        return []

    @abstractmethod
    def placement(self) -> dict[str, str]:
        """Where the work is done: node or tensor name to execution provider or device."""

    def settings(self) -> dict[str, Any]:
        """JSON-ready: what else bears on the numbers; at least ``threads`` and ``tf32``."""
        return {"threads": self.threads, "tf32": self.tf32}

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Wait until all work handed to the device is done."""

    def close(self) -> None:
        """Release the model; closing twice is harmless, and so is closing while another thread runs it."""
        self._closed = True
        if self._forks == fork_count():
            self._release()

    def _release(self) -> None:  # noqa: B027 - a runtime that holds nothing needs none
        """Drop the model, its memory and its threads; may be called twice."""

    def _closed_error(self) -> ArtifactError:
        return ArtifactError(f"the session of {self.artifact.path} is closed; open it anew")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Runtime(Protocol):
    """One way to run artifacts; the module's ``RUNTIME`` is an instance.

    Its module imports without the package it drives, so that ``formats`` can be read and ``cnndeploy list``
    can say what is missing. ``package`` is the import name of that package.
    """

    formats: tuple[str, ...]
    package: str
    options: frozenset[str]
    """The fields of RuntimeOptions that this runtime heeds."""

    def devices(self) -> dict[str, DeviceStatus]:
        """Every device this runtime knows, and whether it works on this machine; never raises."""

    def open(
        self, artifact: Artifact, *, device: str, threads: int, tf32: bool, options: RuntimeOptions
    ) -> Session:
        """Open an artifact.

        Args:
            artifact: Of one of ``formats``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            threads: CPU threads for one run, at least 1.
            tf32: On CUDA, whether products of float32 may be taken in TF32, which keeps 10 bits of 23.
            options: Only what this runtime heeds differs from the default.

        Raises:
            DeviceUnavailableError: The device does not work here; there is no fallback.
            MissingDependencyError: The runtime's package is not installed.
            ArtifactError: The runtime cannot open the file.
        """


_DEFAULT_OPTIONS = RuntimeOptions()


def open_session(
    artifact: Artifact,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: Threads | None = None,
    tf32: bool = False,
    options: RuntimeOptions = _DEFAULT_OPTIONS,
) -> Session:
    """Open an artifact on the runtime named, or on its format's default.

    ``threads`` defaults to the CPUs that this process may use; ``auto`` times one image with one thread and with all
    of them, and takes one where all are not a tenth faster. Raises what :meth:`Runtime.open` raises, and
    DeviceUnavailableError where a part of the model is seen to be elsewhere than on ``device``, or where TF32 is
    asked of a CPU.
    """
    name = runtime if runtime is not None else default_runtime(artifact.format)
    if threads not in (None, "auto") and not (type(threads) is int and 1 <= threads <= _MOST_THREADS):
        raise DeviceUnavailableError(
            f"threads are a whole number from 1 to {_MOST_THREADS}, or 'auto', not {threads!r}"
        )
    if threads == "auto":
        return _fewest_threads(lambda count: _open(artifact, name, device, count, tf32, options))
    return _open(artifact, name, device, usable_cpus() if threads is None else threads, tf32, options)


def _open(
    artifact: Artifact, name: str, device: str, threads: int, tf32: bool, options: RuntimeOptions
) -> Session:
    chosen = registry.get("runtimes", name)
    if artifact.format not in chosen.formats:
        raise ArtifactError(
            f"the runtime {name} opens {', '.join(chosen.formats)}, but {artifact.path} is {artifact.format}. "
            f"Use --runtime {default_runtime(artifact.format)}."
        )
    if importlib.util.find_spec(chosen.package) is None:
        raise MissingDependencyError(chosen.package)
    if unheeded := options.changed.keys() - chosen.options:
        raise ArtifactError(
            f"the runtime {name} lets nobody choose {', '.join(sorted(unheeded))}; leave it out"
        )
    # Before the runtime is asked, because one that ignores its device would open the file all the same.
    index = device_index(device, name, chosen.devices())
    if tf32 and index is None:
        raise DeviceUnavailableError("TF32 is a format of CUDA GPUs; leave it out, or use --device cuda")
    session = chosen.open(artifact, device=device, threads=threads, tf32=tf32, options=options)
    if session.tf32 != tf32:
        session.close()
        raise DeviceUnavailableError(f"{name} does not let TF32 be {'allowed' if tf32 else 'switched off'}")
    placement = session.placement()
    if not placement:
        session.close()
        raise DeviceUnavailableError(
            f"{name} shows no part of {artifact.path} that it computes; is there any?"
        )
    elsewhere = [part for part, where in placement.items() if where != session.placed_on]
    if elsewhere or session.device != ("cpu" if index is None else f"cuda:{index}"):
        session.close()
        raise DeviceUnavailableError(
            f"{name} put {len(elsewhere)} of {len(placement)} parts of {artifact.path} elsewhere than on {device}: "
            f"{', '.join(elsewhere[:5])}. Use --device cpu, or a build that has these operators there."
        )
    return session


def _fewest_threads(opened_with: Callable[[int], Session]) -> Session:
    """The session with all threads, or with one where that is no slower: it leaves the other CPUs to the app."""
    session = opened_with(usable_cpus())
    if usable_cpus() == 1 or session.device != "cpu":
        return session
    try:
        image = {spec.name: np.zeros(spec.with_batch(1, RAW_SIDE), spec.dtype) for spec in session.inputs}
        all_s = _median_seconds(session, image)
        if all_s > _LARGE_S:
            return session
        alone = opened_with(1)
        one_s = _median_seconds(alone, image)
    except (
        ValueError,
        TypeError,
        CnndeployError,
    ):  # its shape is not known, its type not numpy's, or it does not run
        return session
    session.close()
    if one_s < _WORTH_IT * all_s:
        return alone
    alone.close()  # and opened anew: torch has one number of threads for the whole process, the last one set
    return opened_with(usable_cpus())


def _median_seconds(session: Session, feeds: Arrays) -> float:
    """Over many runs; of a large model, over few."""
    seconds: list[float] = []
    while len(seconds) < _FEWEST_TRIALS or sum(seconds) < _TRIAL_S:
        start = time.perf_counter()
        session.run(feeds)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def default_runtime(model_format: str) -> str:
    """The runtime that opens a format unless another is asked for."""
    return registry.get("formats", model_format).default_runtime
