"""Worker processes, in which verification and benchmarks run models, and the frames that they exchange.

A frame is a line of JSON and the bytes of the arrays that it names. So a million logits need no parsing, and there is
no pickle, because a worker opens files that nobody has checked yet.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

import numpy as np

from cnndeploy import errors
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.machine import end_with_parent
from cnndeploy.own_warnings import CnndeployWarning, showing_own
from cnndeploy.progress import ShouldStop, never

Message = dict[str, Any]
"""A dict whose values are JSON-ready or arrays."""
_GRACE_S = 3.0
_ARRAYS = "arrays"  # the key of a frame's line that names its arrays
_WARNING = "warning"  # the key of a frame that is no answer


class WorkerProcess:
    """A module of ours that runs as a process of its own; a context manager that ends it.

    Errors name ``subject``, what the process works on.
    """

    def __init__(self, module: str, *arguments: str, subject: str) -> None:
        self._subject = subject
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", module, *arguments],  # -P: import nothing from the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is ours alone; __exit__ ends the worker
        )
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        self._to, self._from = self._process.stdin, self._process.stdout

    def send(self, request: Message) -> None:
        """Send a request; :meth:`receive` returns its answers."""
        with contextlib.suppress(BrokenPipeError):  # the worker has ended; receive() says how
            _send(self._to, request)

    def receive(self, timeout_s: float = math.inf, should_stop: ShouldStop = never) -> Message:
        """Return the next answer; warn of what the worker warns of before it.

        Raises:
            CnndeployError: The worker's own error, of the same class.
            ArtifactError: The worker ended without an answer, or was ended because it did not answer in time, or not
                within some seconds after it was asked to stop.
        """
        if (status := self._process.returncode) is not None:
            raise ArtifactError(f"{self._subject}: its process ended before, with status {status}")
        with self._watched(timeout_s, should_stop) as reasons:  # by a second thread
            while (message := self._frame()) is not None and _WARNING in message:
                warnings.warn(message[_WARNING], CnndeployWarning, stacklevel=2)
        if message is None:  # not reaped yet, so that no other process has its number, or its group's
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._kill()
            status = self._process.wait()
            if reasons:
                raise reasons[0]
            cause = " (killed; out of memory?)" if status == -signal.SIGKILL else ""
            raise ArtifactError(f"{self._subject}: its process ended with status {status}{cause}")
        if "error" in message:
            kind: type[CnndeployError] = getattr(errors, message["error"], CnndeployError)
            error = kind.__new__(kind)
            error.args = (message["text"],)  # the finished text; __init__ would expect what makes it up
            raise error
        return message

    def _frame(self) -> Message | None:
        """Read a line and the arrays that it names; None if the worker has ended."""
        if not (line := self._from.readline()):
            return None
        try:
            message: Message = json.loads(line)
        except ValueError as nonsense:
            raise ArtifactError(f"{self._subject}: its process answered {line[:80]!r}") from nonsense
        for name, dtype, shape in message.pop(_ARRAYS, ()):
            size = np.dtype(dtype).itemsize * math.prod(shape)
            if len(content := self._from.read(size)) < size:
                return None
            message[name] = np.frombuffer(content, dtype).reshape(shape)
        return message

    @contextlib.contextmanager
    def _watched(self, timeout_s: float, should_stop: ShouldStop) -> Iterator[list[Exception]]:
        """Watch over a block that waits for an answer: end the worker if it takes too long, and yield the reason.

        If ``should_stop`` raises, that stops the worker too, and is the reason.
        """
        answered, reasons, raised = threading.Event(), list[Exception](), list[Exception]()

        def must_stop() -> bool:
            try:
                return should_stop()
            except Exception as error:  # noqa: BLE001 - it must not end the thread
                raised.append(error)
                return True

        def watch() -> None:
            deadline, stop_deadline = time.monotonic() + timeout_s, math.inf
            while not answered.wait(max(0.0, min(1.0, deadline - time.monotonic()))):
                now = time.monotonic()
                if stop_deadline == math.inf and must_stop():
                    stop_deadline = now + _GRACE_S
                if now >= min(deadline, stop_deadline):
                    why = f"no answer within {timeout_s:g} seconds" if now >= deadline else "it did not stop"
                    reasons.extend([*raised, ArtifactError(f"{self._subject}: {why}; it was ended")])
                    self._kill()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield reasons
        finally:
            answered.set()
            watcher.join()

    def _kill(self) -> None:
        """End the worker and what it started itself, such as a compiler, which could outlive it."""
        if self._process.returncode is None:  # else it is reaped, and its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(BrokenPipeError):  # a request that the worker did not live to read
                pipe.close()


def serve(subject: str, answers: Callable[[Iterator[Message]], Iterator[Message]]) -> None:
    """Work as the worker: pass requests from standard input to ``answers``, and send what it yields.

    An error ends the worker, and is raised again in the parent, which also repeats our own warnings.
    """
    end_with_parent()
    if _is_abandoned():  # the parent was killed before that, and what it asked for may take long
        return
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    try:
        with showing_own(lambda warning: _send(out, {_WARNING: str(warning)})):
            for answer in answers(json.loads(line) for line in sys.stdin):
                _send(out, answer)
    except BrokenPipeError:
        pass  # the parent has gone
    except CnndeployError as error:
        _send(out, {"error": type(error).__name__, "text": str(error)})
    except Exception as error:  # noqa: BLE001 - no memory, a runtime's own fault: the parent reports it
        _send(out, {"error": "ArtifactError", "text": f"{subject} could not be run: {error!r}"})


def _is_abandoned() -> bool:
    """Return whether nobody can read standard output any more."""
    import select

    if not hasattr(select, "poll"):  # on Windows
        return False
    poll = select.poll()
    poll.register(1, 0)  # for errors, which are always told
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _send(out: IO[bytes], message: Message) -> None:
    arrays = {name: value for name, value in message.items() if isinstance(value, np.ndarray)}
    line = {name: value for name, value in message.items() if name not in arrays}
    if arrays:
        line[_ARRAYS] = [(name, value.dtype.str, value.shape) for name, value in arrays.items()]
    out.write(json.dumps(line).encode() + b"\n")
    for value in arrays.values():
        out.write(np.ascontiguousarray(value).data)
    out.flush()
