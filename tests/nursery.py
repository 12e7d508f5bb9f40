"""Worker processes for the tests, forked off one that has imported what they import.

Torch takes two seconds of CPU each time, ONNX Runtime and our own modules a third of one. All commands that tests run
as programs, and the workers of tests that use ``real_workers``, are started as users start them.
"""

from __future__ import annotations

import array
import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_PR_SET_CHILD_SUBREAPER = 36
_PREFIX = [sys.executable, "-P", "-m"]
_WORKERS = ("cnndeploy.benchmark.worker", "cnndeploy.verification.worker")
# Read when Python starts or a library is loaded, which is before the fork.
_EARLY = (
    "CUDA_",
    "GLIBC_",
    "GOMP_",
    "KMP_",
    "LD_",
    "MALLOC_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
    "TORCH",
)
# Read when it is used: PYTHONPATH by the nursery's children themselves, and the other, which torch sets in every
# process that exports, by torch.
_LATE = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
_TIMEOUT_S = 120


class Nursery:
    """A process that has imported a package and forks when asked; a context manager that ends it.

    It has the workers for files whose names end in one of ``suffixes``.
    """

    def __init__(self, package: str, *suffixes: str) -> None:
        self._suffixes = suffixes
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", __file__, str(theirs.fileno()), package]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._ours.settimeout(_TIMEOUT_S)
        self._early, self._works, self._lock = _early(), True, threading.Lock()

    def takes(self, command: Sequence[str]) -> bool:
        """Say whether this command is one for the nursery."""
        worker = list(command[:3]) == _PREFIX and command[3] in _WORKERS
        return self._works and worker and command[4].endswith(self._suffixes) and _early() == self._early

    def fork(self, arguments: Sequence[str], *files: int) -> int:
        """Start ``python -m ARGUMENTS`` with these files as its 0, 1 and 2; return its number, a child of ours."""
        request = json.dumps([os.getpid(), str(Path.cwd()), dict(os.environ), *arguments])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        with self._lock:
            _adopt_orphans(True)  # the nursery's own child ends at once, and what it forked becomes ours
            try:
                self._ours.sendmsg([request.encode()], rights)
                return int(self._ours.recv(32))
            except BaseException:
                self._works = False  # its next answer may be this one's
                raise
            finally:
                _adopt_orphans(False)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.wait()


class Forked:
    """What ``subprocess.Popen`` gives, as far as :class:`cnndeploy.process.WorkerProcess` uses it."""

    def __init__(self, nursery: Nursery, arguments: Sequence[str]) -> None:
        (read, stdin), (stdout, write) = os.pipe(), os.pipe()
        self.stdin: IO[bytes] = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] = os.fdopen(stdout, "rb")
        try:
            self.pid = nursery.fork(arguments, read, write, 2)
        finally:
            os.close(read)
            os.close(write)
        self.returncode: int | None = None

    def wait(self) -> int:
        """Return the status once it has ended, negative for a signal."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class Subprocess:
    """The module ``subprocess``, for a module that starts workers with ``Popen``."""

    PIPE = subprocess.PIPE

    def __init__(self, *nurseries: Nursery) -> None:
        self._nurseries = nurseries

    def Popen(self, command: Sequence[str], **options: Any) -> Any:  # noqa: N802 - as subprocess names it
        """Start a worker, here or by a nursery."""
        for nursery in self._nurseries:
            if nursery.takes(command):
                return Forked(nursery, command[3:])
        return subprocess.Popen(command, **options)


def _early() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name.startswith(_EARLY) and name not in _LATE
    }


def _adopt_orphans(ours: bool) -> None:
    """Have the children of children that end become ours; source: prctl(2)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(ours), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _serve(number: int, package: str) -> None:
    """Be the nursery, until nobody asks any more."""
    for module in (package, *_WORKERS):
        importlib.import_module(module)
    for module in _WORKERS:
        del sys.modules[module]  # who is forked off runs it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    with socket.socket(fileno=number) as asked:
        while (request := socket.recv_fds(asked, 1 << 18, 3))[0]:
            content, files = request[:2]
            if (child := os.fork()) == 0:
                if os.fork() == 0:
                    _be_the_worker(asked, json.loads(content), files)
                os._exit(0)
            os.waitpid(child, 0)
            for file in files:
                os.close(file)


def _be_the_worker(asked: socket.socket, request: list[Any], files: Sequence[int]) -> None:
    parent, folder, environment, module, *arguments = request
    os.setsid()  # before anyone knows our number, by which our group may be ended
    give_up = time.monotonic() + _TIMEOUT_S
    while os.getppid() != parent:
        time.sleep(1e-4)
        if time.monotonic() > give_up:
            os._exit(1)
    asked.send(str(os.getpid()).encode())
    asked.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    sys.modules["cnndeploy.devices"]._forks.clear()  # the nursery ran nothing; its children may have threads
    status = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter ends
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
