"""The commands of soak.py: each works on a disk of its own that is full or read-only at times, and may be killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import cnndeploy
from cnndeploy.certificate import certificate_path, read_certificates

CODES = "commands end with a documented exit code"
NAMED = "errors are named: no traceback, no foreign exception"
WHOLE = "a result that exists is whole"
LOST = "a command that succeeds leaves its result"
ENDED = "workers of a killed command end, and nothing hangs"
_DISK_BYTES = 8 * 2**20
_PATIENCE_S = (
    900  # for a machine that does much else; a worker of a killed command must have ended by then too
)
_STALE_S = 6  # after which the next run takes a temporary file for left behind
_EVENTS = {"nothing": 4, "kill -9": 3, "kill -9 of a worker": 3, "SIGTERM": 1, "disk full": 2, "read-only": 2}
_DISK_EVENTS = ("disk full", "read-only")


class Record:
    """What was done how often, and what broke a promise; threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done, self.broken = Counter[str](), Counter[str]()
        self.examples: list[str] = []

    def did(self, what: str) -> None:
        """Count something."""
        with self._lock:
            self.done[what] += 1

    def broke(self, promise: str, example: str) -> None:
        """Count a broken promise, and print an example at once."""
        with self._lock:
            self.broken[promise] += 1
            if len(self.examples) < 50:
                self.examples.append(f"{promise}: {example}")
                print(f"BROKEN: {promise}: {example}", flush=True)


class Disk:
    """A file system of some MB that fills up and becomes read-only; without root a folder that does the latter."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._filler = folder, folder / "filler"
        self.is_mounted = self._mount(f"size={_DISK_BYTES}")

    def fill(self) -> bool:
        """Leave no free byte; return whether that is possible."""
        if self.is_mounted:
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
                for size in (2**16, 1):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(size)):
                            pass
        return self.is_mounted

    def make_read_only(self) -> bool:
        """Refuse writes; return whether that works, for a mounted one has no file open for writing then."""
        if self.is_mounted:
            return self._mount("remount,ro")
        self.folder.chmod(0o555)
        return os.getuid() != 0  # who may write all the same

    def mend(self) -> None:
        """Make it writable and free again."""
        if self.is_mounted:
            self._mount("remount,rw")
        self.folder.chmod(0o755)
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)  # noqa: S603, S607 - ours

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - ours
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class Command:
    """A command, the file that it leaves on its disk, and what tells whether that is whole."""

    arguments: tuple[str, ...]
    result: Path
    is_whole: Callable[[Path], bool]

    @property
    def name(self) -> str:
        """Return the name of the subcommand."""
        return self.arguments[0]


def started(*arguments: str) -> subprocess.Popen[str]:
    """Start a command of cnndeploy in a session of its own, so that a terminal's Ctrl-C does not reach it."""
    return subprocess.Popen(  # noqa: S603 - ours
        [sys.executable, "-m", "cnndeploy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def commands(models: Path, pictures: Path, disk: Path) -> list[Command]:
    """Return the commands that work on a disk, to which the model that is verified is copied."""
    checkpoint, model = str(models / "a.pt"), disk / "a.onnx"
    model.write_bytes((models / "a.onnx").read_bytes())
    process = started("predict", str(models / "a.onnx"), str(pictures), "--csv", "--threads", "1")
    rows = process.communicate()[0]
    assert process.returncode == 0, rows  # noqa: S101 - else there is nothing to compare with
    predict = ("predict", str(models / "a.onnx"), str(pictures), "--csv", "--threads", "1", "--output")
    export = ("export", checkpoint, "--format", "onnx", "--output-dir", str(disk / "exported"))
    verify = ("verify", str(model), "--against", checkpoint, "--images", "300", "--threads", "1")
    return [
        Command(
            (*predict, str(disk / "labels.csv")), disk / "labels.csv", lambda path: path.read_text() == rows
        ),
        Command(verify, certificate_path(model), lambda _: len(read_certificates(_opened(model))) == 1),
        Command(export, disk / "exported" / "a.onnx", _runs),
    ]


def work(record: Record, rng: random.Random, todo: list[Command], disk: Disk, stop: threading.Event) -> None:
    """Run commands until ``stop``, and disturb them; then each once more, after which nothing may be left over."""
    seconds = dict.fromkeys((command.name for command in todo), 3.0)  # how long each takes
    while not stop.is_set():
        command = rng.choice(todo)
        event = rng.choices(list(_EVENTS), list(_EVENTS.values()))[0]
        if rng.random() < 0.5:
            command.result.unlink(missing_ok=True)
        began = time.monotonic()
        run(record, command, event, rng.uniform(0, 1.1 * seconds[command.name]), disk)
        if event == "nothing":
            seconds[command.name] = time.monotonic() - began
    time.sleep(_STALE_S)
    for command in todo:
        command.result.unlink(missing_ok=True)
        run(record, command, "nothing", 0, disk)


def run(record: Record, command: Command, event: str, delay: float, disk: Disk) -> None:
    """Run a command, let something happen to it after a while, and check what it leaves."""
    process = started(*command.arguments)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=delay)
        happened = process.poll() is None and _happens(event, process, disk)
        try:
            said = process.communicate(timeout=_PATIENCE_S)[1]
        except subprocess.TimeoutExpired:  # which a worker's open end of the pipe causes too
            record.broke(ENDED, f"{command.name} after {event}")
            return
    finally:
        for pid in (*_descendants(process.pid), process.pid) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        process.wait()
        disk.mend()
    what = f"{command.name}, {event if happened else 'nothing'}"
    record.did(what)
    told = f"{what}: exit code {process.returncode}: {said.strip()[-500:]}"
    if "Traceback" in said:
        record.broke(NAMED, told)
    codes = {"kill -9": (0, -9), "SIGTERM": (0, 143, -15)}.get(event, (0, 1)) if happened else (0,)
    if process.returncode not in codes:
        record.broke(CODES, told)
    if not command.result.exists():
        # a verification that passed says that its certificate could not be written
        excused = command.name == "verify" and happened and event in _DISK_EVENTS
        if process.returncode == 0 and not excused:
            record.broke(LOST, told)
    elif not _is_whole(command):
        record.broke(WHOLE, f"{command.result.name}, {told}")
    else:
        record.did(f"result of {command.name} found whole")


def _happens(event: str, process: subprocess.Popen[str], disk: Disk) -> bool:
    """Let an event happen to a command; return whether it could."""
    if event in _DISK_EVENTS:
        return disk.fill() if event == "disk full" else disk.make_read_only()
    if event == "kill -9 of a worker":
        worker = next(_descendants(process.pid), None)
        if worker is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        return True
    if event in ("kill -9", "SIGTERM"):
        process.send_signal(signal.SIGKILL if event == "kill -9" else signal.SIGTERM)
        return True
    return False


def _descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process started, the innermost first."""
    with contextlib.suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            for child in (task / "children").read_text().split():
                yield from _descendants(int(child))
                yield int(child)


def children() -> list[int]:
    """Return the processes that this one started and that are still there."""
    return list(_descendants(os.getpid()))


def _is_whole(command: Command) -> bool:
    try:
        return command.is_whole(command.result)
    except (cnndeploy.CnndeployError, OSError, ValueError) as error:
        print(f"{command.result.name}: {error}", flush=True)
        return False


def _opened(path: Path) -> cnndeploy.Artifact:
    return cnndeploy.Artifact.open(path)


def _runs(path: Path) -> bool:
    with cnndeploy.load(path, threads=1) as model:
        return len(model.classify(np.zeros((2, 28, 28), np.uint8))) == 2
