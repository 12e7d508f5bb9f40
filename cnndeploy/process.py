"""Worker processes, spoken to in lines of JSON: what verification and benchmarks run models in."""

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
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from cnndeploy import errors
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.machine import end_with_parent

Message = dict[str, Any]
_GRACE_S = 3


class WorkerProcess:
    """A module of ours, run as a process of its own; a context manager that ends it.

    ``subject`` says in an error what the process was at work on.
    """

    def __init__(self, module: str, *arguments: str, subject: str) -> None:
        self._subject = subject
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", module, *arguments],  # -P: no module of the folder that we are in
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C is ours alone; __exit__ ends the worker
        )

    def send(self, request: Message) -> None:
        """Send a request; :meth:`receive` gives its answers."""
        assert self._process.stdin is not None  # noqa: S101 - made with a pipe
        with contextlib.suppress(BrokenPipeError):  # the worker has ended; receive() says how
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def receive(
        self, timeout_s: float = math.inf, should_stop: Callable[[], bool] = lambda: False
    ) -> Message:
        """The next answer.

        Raises:
            CnndeployError: The error that the worker met, of the same class.
            ArtifactError: The worker ended without an answer, or was ended because it gave none in time, or none
                within some seconds after it was to stop.
        """
        line = self._line(timeout_s, should_stop)
        if not line:
            # without reaping it yet: until then its number, and its group's, is no other process's
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._kill()
            status = self._process.wait()
            cause = " (killed; out of memory?)" if status == -signal.SIGKILL else ""
            raise ArtifactError(f"{self._subject}: its process ended with status {status}{cause}")
        try:
            message: Message = json.loads(line)
        except ValueError as nonsense:
            raise ArtifactError(f"{self._subject}: its process answered {line[:80]!r}") from nonsense
        if "error" in message:
            kind: type[CnndeployError] = getattr(errors, message["error"], CnndeployError)
            # the text is the message already made, not what the class makes it from
            error = kind.__new__(kind)
            error.args = (message["text"],)
            raise error
        return message

    def _line(self, timeout_s: float, should_stop: Callable[[], bool]) -> str:
        """Read to the end of a line; empty where the worker has ended."""
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        answered = threading.Event()
        reason = ""

        def watch() -> None:
            nonlocal reason
            deadline = time.monotonic() + timeout_s
            stopping = 0
            while not answered.wait(max(0.0, min(1.0, deadline - time.monotonic()))):
                stopping += should_stop()
                too_late = time.monotonic() >= deadline
                if too_late or stopping > _GRACE_S:
                    why = f"no answer within {timeout_s:g} seconds" if too_late else "it did not stop"
                    reason = f"{self._subject}: {why}; it was ended"
                    self._kill()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            line = self._process.stdout.readline()
        finally:
            answered.set()
            watcher.join()
        if not line and reason:
            raise ArtifactError(reason)
        return line

    def _kill(self) -> None:
        """The worker, and what it started itself, as a compiler; that may outlive it."""
        if self._process.returncode is None:  # else it is reaped, and its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that the worker did not live to read
                    pipe.close()


def serve(subject: str, answers: Callable[[Iterator[Message]], Iterator[Message]]) -> None:
    """The worker's side: hand requests from standard input to ``answers``, send what it gives.

    An error ends the worker and reaches the parent as what it is.
    """
    end_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not end up among the answers
    try:
        for answer in answers(json.loads(line) for line in sys.stdin):
            _send(out, answer)
    except BrokenPipeError:
        pass  # the parent has gone
    except CnndeployError as error:
        _send(out, {"error": type(error).__name__, "text": str(error)})
    except Exception as error:  # noqa: BLE001 - no memory, a runtime's own fault: the parent tells
        _send(out, {"error": "ArtifactError", "text": f"{subject} could not be run: {error!r}"})


def _send(out: TextIO, message: Message) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
