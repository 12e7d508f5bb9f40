"""Runtime: a way to run artifacts. Session: an artifact that is open on one device, ready to run."""

from __future__ import annotations

import os
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, fork_count
from cnndeploy.errors import ArtifactError, CnndeployError, DeviceUnavailableError, InputMismatchError
from cnndeploy.registry import Registry
from cnndeploy.run import Run
from cnndeploy.specs import TensorSpec

Arrays = Mapping[str, NDArray[Any]]


class DeviceArray(Protocol):
    """An array that other libraries can use where it lies, by DLPack, such as a tensor of torch or an array of CuPy."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


# Raw images of so many bytes leave a runtime with several times as much memory that small ones never need again.
_LARGE_BYTES = 4 * 2**20

# What ONNX Runtime and torch say of a GPU that fails, runs out of memory, or has no cuDNN.
_OF_A_GPU = re.compile(r"cudnn|cublas|CUDA (?:error|failure|out of memory)|failed to allocate memory", re.I)

_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[Session] = []


if hasattr(os, "register_at_fork"):
    # a fork never releases what was open, because a runtime could wait for threads that the fork does not have
    os.register_at_fork(after_in_child=lambda: _inherited.extend(_open_sessions))


@dataclass(frozen=True, slots=True)
class Activation:
    """The output of one module of a network: the module's path, such as ``features.3``, its class, and the values.

    The path is empty if the file does not name it.
    """

    module: str
    kind: str
    values: NDArray[Any]


def words_of(error: Exception, words: Callable[[Exception], str] = str) -> str:
    """Say what a runtime raised, which for a file that may be anybody's may be anything."""
    if isinstance(error, UnicodeDecodeError):  # a message of the library, or a name in the file
        text = bytes(error.object).decode(errors="backslashreplace")
        return f"it holds text that is not UTF-8: {text:.200}"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return words(error) or type(error).__name__


class Session(ABC):
    """An artifact that is open on one device, ready to run; a context manager.

    ``run_as`` says how it is run, with the exact device, such as ``cuda:0``. ``inputs`` and ``outputs`` are what the
    opened file declares, or the manifest's if the format declares none, as torch's formats do. For every part
    :meth:`placement` must return ``placed_on``.
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
        self._any_size = any(isinstance(axis, str) for spec in self.inputs for axis in spec.shape[1:])
        self._closed = False
        self._forks = fork_count()
        self._accepted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        _open_sessions.add(self)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run one batch through the graph, and return when the results are there.

        Args:
            feeds: The array for each input name; ``image`` is float32 (batch, 1, height, width), NCHW, preprocessed.

        Returns:
            The array for each output name; ``logits`` is float32 (batch, classes), unnormalised. The caller owns it.

        Raises:
            InputMismatchError: A name, dtype or fixed axis differs from ``inputs``.
            ArtifactError: The session is closed, belongs to another process, or failed on this batch.
            DeviceUnavailableError: The GPU failed, or has not enough memory, or lacks a library.
        """
        if self._closed or self._forks != fork_count():
            raise self._unusable()
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                raise InputMismatchError(
                    f"input {spec.name!r} is missing; expected {spec}, got {sorted(feeds)}"
                )
            seen = (array.dtype, array.shape)
            # checking again in every run would cost a microsecond
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
        except Exception as error:  # a runtime may raise anything for a file that may be anybody's
            raise self._failure({name: array.shape for name, array in feeds.items()}, error) from error

    def run_on_device(self, feeds: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Run one batch that lies on the session's GPU, without copying it; the outputs lie there too.

        Args:
            feeds: For each input name an array that supports DLPack, such as a tensor of torch, of the dtype and shape
                that :meth:`run` takes. The call waits for work that still writes to it.

        Returns:
            For each output name an array that supports DLPack: ``torch.from_dlpack(outputs["logits"])`` does not copy
            it either. Each output is complete. Keep it, or a tensor made from it, until all work on it has ended.
            Once you drop it, ONNX Runtime reuses its memory. Outputs stay valid after the session is closed.

        Raises:
            InputMismatchError: As in :meth:`run`, or an array is not contiguous or lies elsewhere.
            ArtifactError: As in :meth:`run`.
            DeviceUnavailableError: As in :meth:`run`, or this is not a session of ONNX Runtime on a GPU.
        """
        if self._closed or self._forks != fork_count():
            raise self._unusable()
        return self._run_on_device(feeds)

    @abstractmethod
    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run feeds that fit; :meth:`run` turns whatever this raises into an ArtifactError."""

    def _run_on_device(self, feeds: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Do what :meth:`run_on_device` says; most runtimes cannot."""
        raise DeviceUnavailableError(
            f"{self.artifact.path} runs by {self.run_as.runtime} on {self.device}, which takes numpy arrays only, so "
            f"run_on_device() cannot take {sorted(feeds)}. Use run(), or open an ONNX file by onnxruntime on cuda."
        )

    def _is_large(self, feeds: Arrays) -> bool:
        """Return whether these are large images, in a file that takes any size, so that the next may be small."""
        return self._any_size and sum(array.nbytes for array in feeds.values()) >= _LARGE_BYTES

    def activations(self, feeds: Arrays) -> list[Activation]:  # noqa: ARG002 - for those that can
        """Return what each module computes for one batch, in order; take what :meth:`run` takes.

        The list is empty if the runtime cannot look inside. Outputs that the runtime would otherwise fuse away are
        kept, so this need not compute the same bits as :meth:`run`.
        """
        return []

    @abstractmethod
    def placement(self) -> dict[str, str]:
        """Return where each part is computed: node or tensor name to execution provider or device."""

    def settings(self) -> dict[str, Any]:
        """Return what else influences the numbers, JSON-ready; at least ``threads`` and ``tf32``."""
        return {"threads": self.threads, "tf32": self.options.precision == "tf32"}

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for is the common case
        """Wait until the device has done all its work."""

    def close(self) -> None:
        """Release the model; it is safe to close twice, or while another thread runs the model."""
        self._closed = True
        if self._forks == fork_count():
            self._release()

    def _release(self) -> None:  # noqa: B027 - a runtime that holds nothing needs none
        """Release the model, its memory and its threads; may be called twice."""

    def _unusable(self) -> CnndeployError:
        """Say why a session that is closed, or belongs to another process, does not run."""
        if self._closed:
            return ArtifactError(f"the session of {self.artifact.path} is closed; open it again")
        return ArtifactError(
            f"{self.artifact.path} was opened before this process was forked, and a runtime's threads do not "
            "survive a fork. Open it in this process, or start processes with multiprocessing's 'spawn'."
        )

    def _failure(self, shapes: Mapping[str, Sequence[int]], error: Exception) -> CnndeployError:
        if self._closed:  # perhaps by another thread, just now
            return self._unusable()
        where, reason = f"{self.artifact.path} on inputs of shape {shapes}", words_of(error, self._words)
        if self.device != "cpu" and _OF_A_GPU.search(str(error)):  # which says nothing about the file
            return DeviceUnavailableError(f"{self._library} could not run {where} on {self.device}: {reason}")
        return ArtifactError(f"{self._library} could not run {where}: {reason}")

    def __reduce__(self) -> NoReturn:
        raise ArtifactError(
            f"an open session cannot be pickled or copied; open {self.artifact.path} in the process that runs it"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Runtime(Protocol):
    """A way to run artifacts; the module's ``RUNTIME`` is an instance.

    Its module can be imported without the package that it uses, so that ``formats`` can be read and ``cnndeploy
    list`` can say what is missing.
    """

    @property
    def formats(self) -> tuple[str, ...]:
        """The names of the formats that it opens."""

    @property
    def package(self) -> str:
        """The import name of the package that it uses."""

    @property
    def options(self) -> Mapping[str, tuple[Any, ...]]:
        """The fields of RuntimeOptions that it uses, each with the values that it knows besides the default."""

    def devices(self) -> dict[str, DeviceStatus]:
        """Return every device that this runtime knows, and whether it works on this machine; never raise.

        A runtime may also have ``status(device)``, which returns the status of one device, ``cpu`` or ``cuda:N``, and
        starts nothing on another. Without it all devices are tried before a file is opened on one.
        """

    def open(self, artifact: Artifact, run: Run) -> Session:
        """Open an artifact in one of ``formats``; open_session() has checked that ``package`` is installed.

        Every field of ``run`` is filled in. Its ``device`` is ``cpu`` or ``cuda:N``. Options that differ from the
        default are among this runtime's. Raise ArtifactError if the file cannot be opened, and DeviceUnavailableError
        if the device does not work here; never fall back to another.
        """


RUNTIMES: Registry[Runtime] = Registry("runtimes", "RUNTIME")
