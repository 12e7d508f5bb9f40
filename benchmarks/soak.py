"""A long run under load: eight threads classify while models, disks and processes fail around them.

The threads share Classifiers of several runtimes. They classify pictures of random sizes, some damaged, open and close
models, and use models whose file is replaced. Beside them `cnndeploy predict`, `verify` and `export` run on small disks
of their own, are killed with kill -9, lose their workers, and find the disk full or read-only. In the end a table says
what was done how often, and whether each promise of docs/RELIABILITY.md was kept; the exit code is 1 if one was not.
Ctrl-C ends it with what it has. The disks need root; without it that part is left out, and the table says so.

The memory is measured while no thread classifies, after malloc_trim, with MALLOC_ARENA_MAX=1: glibc keeps what was
freed for later, tens of MB more or less from one moment to the next, in which no leak could be seen.

    nice .venv/bin/python benchmarks/soak.py --minutes 60 --json soak.json
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _soak_commands as soaked
import numpy as np
from PIL import Image

import cnndeploy
from cnndeploy.files import write_file
from cnndeploy.machine import environment
from cnndeploy.own_warnings import CnndeployWarning

_THREADS, _QUESTIONS, _LIMIT_MIB = 8, 120, 5.0
ANSWERS = "answers are bitwise those of one thread"
_PROMISES = (ANSWERS, soaked.NAMED, soaked.WHOLE, soaked.LOST, soaked.CODES, soaked.ENDED)
_MAKE_MODELS = """
import sys, torch, cnndeploy
from cnndeploy.checkpoint import Checkpoint
for seed, name in enumerate("ab"):
    torch.manual_seed(seed)
    path = f"{sys.argv[1]}/{name}.pt"
    Checkpoint.untrained("lenet").save(path)
    for kind in ("onnx", "torchscript"):
        cnndeploy.export(path, kind)
    cnndeploy.export(path, "onnx", f"{sys.argv[1]}/{name}.image.onnx", input="image")
"""
# What the libraries leave in the folder of temporary files for good, and share: a session's number, compiled code.
_OF_LIBRARIES = (".ses", "torchinductor_")
_Rng = random.Random
Question = tuple[bytes, ...]  # some pictures, as files


class Model:
    """A file and a runtime, the answers of one thread, and a Classifier that threads share and replace."""

    def __init__(self, path: Path, runtime: str, questions: list[Question]) -> None:
        self.path, self.runtime = path, runtime
        with self.load() as model:
            self.expected = [_answer(model, question) for question in questions]
        self.shared = self.load()

    def load(self, path: Path | None = None) -> cnndeploy.Classifier:
        """Open the file, or another."""
        return cnndeploy.load(path or self.path, runtime=self.runtime, threads=1)


class Soak:
    """The threads that classify, and what they share."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.record, self.stop, self.seed = soaked.Record(), threading.Event(), seed
        self.locks = [threading.Lock() for _ in range(_THREADS)]  # each is free while its thread does nothing
        self._folder, self._renewing = folder, threading.Lock()
        rng = _Rng(f"{seed} questions")
        self._questions = [_question(rng) for _ in range(_QUESTIONS)]
        runtimes = [
            ("a.onnx", "onnxruntime"),
            ("a.image.onnx", "onnxruntime"),
            ("a.torchscript", "torchscript"),
        ]
        with contextlib.suppress(ModuleNotFoundError):
            import openvino  # noqa: F401

            runtimes.append(("a.onnx", "openvino"))
        self.models = [Model(folder / name, runtime, self._questions) for name, runtime in runtimes]
        with cnndeploy.load(folder / "b.onnx", threads=1) as other:
            self._expected_of_b = [_answer(other, question) for question in self._questions]
        self._contents = [(folder / name).read_bytes() for name in ("a.onnx", "b.onnx")]
        self._live = folder / "live.onnx"
        write_file(self._live, self._contents[0])

    def work(self, number: int) -> None:
        """Do one thing after another until the end, with a moment for other programs between them."""
        rng = _Rng(f"{self.seed} {number}")
        jobs = {
            self._ask: 80,
            self._open: 4,
            self._renew: 3,
            self._replace: 2,
            self._ask_live: 4,
            self._spoil: 2,
        }
        while not self.stop.is_set():
            job = rng.choices(list(jobs), list(jobs.values()))[0]
            with self.locks[number]:
                try:
                    job(rng)
                except Exception as error:  # noqa: BLE001 - what is looked for
                    self.record.broke(soaked.NAMED, f"{job.__name__}: {error!r}")
            time.sleep(rng.uniform(0, 0.02))

    def _ask(self, rng: _Rng) -> None:
        model = rng.choice(self.models)
        shared = model.shared
        self._compare("shared", shared, rng, model.expected, closed=lambda: model.shared is not shared)

    def _open(self, rng: _Rng) -> None:
        model = rng.choice(self.models)
        with model.load() as own:
            self._compare("opened and closed", own, rng, model.expected)
        try:
            own.classify(np.zeros((28, 28), np.uint8))
        except cnndeploy.CnndeployError as error:
            said = str(error)
        else:
            said = "an answer"
        if "closed" not in said:
            self.record.broke(ANSWERS, f"a closed classifier of {model.path.name}: {said}")

    def _renew(self, rng: _Rng) -> None:
        """Close a Classifier that others may be using."""
        model = rng.choice(self.models)
        with self._renewing:
            old, model.shared = model.shared, model.load()
        old.close()
        self.record.did("shared classifier closed in use")

    def _replace(self, rng: _Rng) -> None:
        write_file(self._live, rng.choice(self._contents))
        self.record.did("file replaced in use")

    def _ask_live(self, rng: _Rng) -> None:
        with cnndeploy.load(self._live, threads=1) as model:
            number = rng.randrange(_QUESTIONS)
            first = _answer(model, self._questions[number])
            expected = next(
                (all_ for all_ in (self.models[0].expected, self._expected_of_b) if all_[number] == first),
                None,
            )
            if expected is None:
                self.record.broke(ANSWERS, "a replaced file answers like neither of its contents")
            else:
                self._compare("file that is replaced", model, rng, expected)

    def _spoil(self, rng: _Rng) -> None:
        """Overwrite a file in place while it is open."""
        model = rng.choice(self.models)
        path = self._folder / f"own{threading.get_ident()}{model.path.suffix}"
        shutil.copyfile(model.path, path)
        with model.load(path) as own:
            path.write_bytes(rng.randbytes(rng.choice((0, 100, 200_000))))
            self._compare("file spoiled in use", own, rng, model.expected)
        path.unlink()

    def _compare(
        self,
        what: str,
        model: cnndeploy.Classifier,
        rng: _Rng,
        expected: list[bytes],
        closed: Callable[[], bool] = lambda: False,
    ) -> None:
        number = rng.randrange(_QUESTIONS)
        answer = _answer(model, self._questions[number])
        if answer == expected[number]:
            self.record.did(f"answers, {what}" if not answer.startswith(b"error") else f"refusals, {what}")
        elif b"closed" in answer and closed():
            self.record.did("answers refused, closed meanwhile")
        else:
            shown = answer[:200] if b"error" in (answer[:5], expected[number][:5]) else b"other logits"
            self.record.broke(ANSWERS, f"{what}, {model!r}, question {number}: {shown!r}")


def _question(rng: _Rng) -> Question:
    """Return one to four pictures of random sizes and formats; some are damaged."""
    pictures = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        side = rng.choice((28, 60, 300, 300, 1500))
        shape = (rng.randint(1, side), rng.randint(1, side), *((3,) if rng.random() < 0.5 else ()))
        pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, shape, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, rng.choice(("PNG", "JPEG", "BMP", "WEBP")))
        content = bytearray(file.getvalue())
        if rng.random() < 0.1:
            for _ in range(10):
                content[rng.randrange(len(content))] = rng.randrange(256)
            if rng.random() < 0.5:
                del content[rng.randrange(len(content)) :]
        pictures.append(bytes(content))
    return tuple(pictures)


def _answer(model: cnndeploy.Classifier, question: Question) -> bytes:
    """Return the logits of some pictures, or the error, as bytes."""
    try:
        return model.logits([cnndeploy.read_image(picture) for picture in question]).tobytes()
    except cnndeploy.CnndeployError as error:
        return f"error {type(error).__name__}: {error}".encode()


class State:
    """What this process holds: resident memory in MiB, descriptors, threads and children."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text()
        self.mib = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        self.descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - by its number of names
        self.threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
        self.children = len(soaked.children())


def _quiet_state(soak: Soak) -> State:
    """Return the state at a moment in which no thread classifies."""
    with contextlib.ExitStack() as stack:
        for lock in soak.locks:
            stack.enter_context(lock)
        return State()


def _watch(soak: Soak, minutes: float) -> list[float]:
    """Print a line from time to time until the end; return the resident memory at these moments, in MiB."""
    began, memory = time.monotonic(), list[float]()
    steps = max(20, round(2 * minutes))
    for step in range(1, steps + 1):
        if soak.stop.wait(max(0.0, began + 60 * minutes * step / steps - time.monotonic())):
            break
        state = _quiet_state(soak)
        memory.append(state.mib)
        done = sum(
            count for what, count in soak.record.done.items() if what.startswith(("answers", "refusals"))
        )
        print(
            f"{(time.monotonic() - began) / 60:6.1f} min: {done:,} answers, {state.mib:.1f} MiB, "
            f"{state.descriptors} descriptors, {state.threads} threads, {state.children} children, "
            f"{soak.record.broken.total()} broken",
            flush=True,
        )
    return memory


def _growth(memory: list[float]) -> float | None:
    """Return by how much the memory grew after the first third; None if there is too little to say."""
    warm = memory[len(memory) // 3 :]
    count = max(5, len(warm) // 8)
    return statistics.median(warm[-count:]) - statistics.median(warm[:count]) if len(warm) >= 10 else None


def _run(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    models, temporary, pictures = folder / "models", folder / "tmp", folder / "pictures"
    for each in (models, temporary, pictures):
        each.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    program = [sys.executable, "-c", _MAKE_MODELS, str(models)]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
    for number in range(200):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 300), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    soak = Soak(models, seed)
    disks = [soaked.Disk(folder / f"disk{number}") for number in range(2)]
    try:
        todo = [soaked.commands(models, pictures, disk.folder) for disk in disks]
        return _soaked(soak, disks, todo, minutes, temporary)
    finally:
        for disk in disks:
            disk.close()


def _soaked(
    soak: Soak, disks: list[soaked.Disk], todo: list[list[soaked.Command]], minutes: float, temporary: Path
) -> dict[str, Any]:
    """Let everything run, and end it; return the figures."""

    def end(number: int, _frame: object) -> None:
        soak.stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once

    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, end)
    before = State()
    threads = [threading.Thread(target=soak.work, args=(number,)) for number in range(_THREADS)]
    for number, (disk, those) in enumerate(zip(disks, todo, strict=True)):
        rng = _Rng(f"{soak.seed} commands {number}")
        threads.append(threading.Thread(target=soaked.work, args=(soak.record, rng, those, disk, soak.stop)))
    for thread in threads:
        thread.start()
    began = time.monotonic()
    memory = _watch(soak, minutes)
    soak.stop.set()
    for thread in threads:
        thread.join()
    after = State()
    left = [file for file in temporary.iterdir() if not file.name.startswith(_OF_LIBRARIES)]
    for disk, those in zip(disks, todo, strict=True):
        known = {command.result for command in those} | {disk.folder / "a.onnx"}
        left += [file for file in disk.folder.rglob("*") if file.is_file() and file not in known]
    for file in left:
        print(f"left over: {file}")
    promises = {name: (soak.record.broken[name], 0) for name in _PROMISES}
    return {
        "seconds": round(time.monotonic() - began),
        "seed": soak.seed,
        "small_disks": all(disk.is_mounted for disk in disks),
        "done": dict(sorted(soak.record.done.items())),
        "memory_mib": memory,
        "promises": {
            **promises,
            "resident memory, MiB more after the first third": (_growth(memory), _LIMIT_MIB),
            "descriptors left": (after.descriptors - before.descriptors, 0),
            "threads left": (after.threads - before.threads, 0),
            "child processes left": (after.children, 0),
            "temporary files left": (len(left), 0),
        },
        "examples": soak.record.examples,
        "machine": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify for long, while models, disks and processes fail.")
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="what everything is drawn from (default: 0)")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    arguments = parser.parse_args()
    if "MALLOC_ARENA_MAX" not in os.environ:
        os.environ["MALLOC_ARENA_MAX"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - this program
    warnings.simplefilter("ignore", CnndeployWarning)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="cnndeploy-soak-") as folder:
        figures = _run(Path(folder), arguments.minutes, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    for what, count in figures["done"].items():
        print(f"{count:10,}  {what}")
    if not figures["small_disks"]:
        print("No small disk could be mounted, which needs root: full disks were left out.")
    kept = True
    for promise, (figure, limit) in figures["promises"].items():
        is_kept = figure is None or figure <= limit
        kept &= is_kept
        shown = "not measured" if figure is None else f"{figure:g}"
        print(f"{'kept' if is_kept else 'BROKEN':7} {promise}: {shown} (at most {limit:g})")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
