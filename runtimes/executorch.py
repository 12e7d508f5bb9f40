"""ExecuTorch, on the CPU: exported programs, run by XNNPACK and, for what that does not know, by portable kernels.

In Python it needs torch; in C++, Swift and Kotlin it does not. The number of threads is one for the whole process, and
cannot change while a program is open, for XNNPACK keeps the threads.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, fork_count, installed, last_line
from cnndeploy.errors import ArtifactError, DeviceUnavailableError, InputMismatchError
from cnndeploy.files import is_utf8
from cnndeploy.formats.executorch import FORWARD, Forward, forward_of
from cnndeploy.own_warnings import no_standard_error
from cnndeploy.run import Run
from cnndeploy.runtimes._session import Arrays, Session

_open: weakref.WeakSet[Program] = weakref.WeakSet()
_opening = threading.Lock()  # held from the look at what is open until one more is, or one less
_started: list[int] = []  # how often this process was a fork when ExecuTorch started its threads


class Program:
    """A loaded program, on as many threads as are given, else as are set; it is open until :meth:`close`."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._lock = threading.Lock()
        with _opening:
            if threads is not None:
                _set_threads(threads)
            self._method: Any = _method(path)
            _open.add(self)

    def run(self, images: Any) -> Any:
        """Return the outputs for a tensor, one batch at a time, for a program has one memory."""
        with self._lock:
            return self._method([images])

    def close(self) -> None:
        """Release it; may be called twice, or while another thread runs it."""
        with self._lock, _opening:
            self._method = None
            _open.discard(self)


class ExecuTorchSession(Session):
    """A loaded program."""

    _library = "ExecuTorch"
    _words = staticmethod(last_line)

    def __init__(self, artifact: Artifact, run: Run, program: Program, forward: Forward) -> None:
        manifest = artifact.require_manifest()
        super().__init__(artifact, run, [manifest.input], manifest.outputs, "cpu")
        self._program, self._forward = program, forward

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        import torch

        (image,) = feeds.values()
        batch, most = len(image), self._forward.largest_batch
        if batch > most or (batch < most and self._forward.fixed_batch):
            takes = "exactly" if self._forward.fixed_batch else "at most"
            raise InputMismatchError(
                f"{self.artifact.path} takes {takes} {most} images at once, for which an ExecuTorch program plans its "
                f"memory, and {batch} came; split the batch"
            )
        # torch refuses negative strides, and warns of arrays that are read-only
        outputs = self._program.run(torch.from_numpy(np.require(image, requirements=("C", "W"))))
        return {spec.name: output.numpy() for spec, output in zip(self.outputs, outputs, strict=True)}

    def placement(self) -> dict[str, str]:
        """Return the CPU for each step, which is named for the backend or the portable kernel that computes it."""
        return {f"{name} #{number}": "cpu" for number, name in enumerate(self._forward.parts)}

    def _release(self) -> None:
        self._program.close()


class ExecuTorchRuntime:
    """The runtime ExecuTorch."""

    formats = ("executorch",)
    package = "executorch"
    options: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def devices(self) -> dict[str, DeviceStatus]:
        """Return the CPU."""
        package = installed("executorch")
        return {"cpu": installed("torch") if package.usable else package}

    def open(self, artifact: Artifact, run: Run) -> ExecuTorchSession:
        """Load the program on so many threads.

        Raises:
            ArtifactError: ExecuTorch cannot open the file.
            DeviceUnavailableError: Another program is open in this process, on another number of threads.
        """
        artifact.require_manifest()
        forward = forward_of(artifact.path)
        try:
            program = Program(artifact.path, run.thread_count)
        except RuntimeError as error:
            reason = f"it is damaged, or of another version of ExecuTorch ({last_line(error)})"
            raise ArtifactError(f"ExecuTorch cannot open {artifact.path}; {reason}") from error
        return ExecuTorchSession(artifact, run, program, forward)


def _method(path: Path) -> Any:
    """Load the method that takes images."""
    library = _library()
    check = library.Verification.InternalConsistency
    if is_utf8(path):
        program = library._load_program(str(path), program_verification=check)
    else:  # the binding takes no name that is not UTF-8
        program = library._load_program_from_buffer(path.read_bytes(), program_verification=check)
    return program.load_method(FORWARD)  # keeps its program alive


def _set_threads(count: int) -> None:
    library = _library()
    now = library._threadpool_get_thread_count()
    if count == now:
        return
    if len(_open):
        raise DeviceUnavailableError(
            f"ExecuTorch has one number of threads for the whole process, and a program is open on {now}; {count} "
            f"were asked for. Close that one first, or open this one with threads={now}."
        )
    with no_standard_error():  # notes on the processor, when threads start
        library._unsafe_reset_threadpool(count)  # unsafe only for programs that are open


def _library() -> Any:
    """Return the binding itself, its threads started: executorch.runtime imports the exporter too, for six seconds."""
    import torch  # noqa: F401 - loads the libraries that the binding needs
    from executorch.extension.pybindings import _C

    if not _started:
        _started.append(fork_count())
        with no_standard_error():  # notes on the processor, when threads start
            _C._threadpool_get_thread_count()  # starts them
    if _started[0] != fork_count():
        raise DeviceUnavailableError(
            "ExecuTorch was started in the process that this one was forked from, and its threads do not survive a "
            "fork. Start processes by multiprocessing's 'spawn'."
        )
    return _C


RUNTIME = ExecuTorchRuntime()
