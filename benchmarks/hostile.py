"""Mutated files: each is opened, described, loaded and run once in a worker, and must run or raise an error of ours.

It makes an untrained LeNet and writes it in every format, with either input, in int8, as a deployment's folder, with
all that commands read beside it, and some pictures and a data set. Then it flips, cuts, inserts, deletes and reverses
bytes, makes lengths huge, and changes members of archives under checksums that are right. It prints how many files
came to which end, and the largest memory that each kind took beyond that of the sound files. It exits with 1 if a file
raised another error, ended its worker, took longer than two minutes, made a library print on standard output, or took
more memory than 256 MiB and 20 times its size; for a picture, which may have 8192 pixels a side, than 1 GiB more. Those
files are kept.

    .venv/bin/python benchmarks/hostile.py --files 100000 --seed 1 --keep hostile/
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _hostile_files import PICTURES, use, write_files, write_results

import cnndeploy

_MEMORY = 8 * 2**30
_SECONDS = 120  # a machine that is busy with others takes its time
# What a file may take: so many bytes, and so many times its size.
_FREE, _TIMES, _PICTURE = 256 * 2**20, 20, 2**30
_GOOD_ENDS = ("ran", "named error")
_Rng = random.Random
# What a value in JSON is not expected to be.
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(2**63), 2**31, 1e-310, float("inf"), float("nan")),
    *("", "x", "\x00", "\ud800", "../../etc/passwd", "1", "x" * 10_000, [], {}, [[]], [0] * 1000, {"": None}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Open, load and run mutated files.")
    parser.add_argument("--files", type=int, default=1000, help="mutated files (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="what the mutations are drawn from (default: 0)")
    parser.add_argument("--kind", help="mutate only files whose name contains this")
    parser.add_argument("--keep", type=Path, help="a folder for the files that came to a bad end")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return _work()
    with tempfile.TemporaryDirectory() as folder:
        every = write_files(Path(folder)) + write_results(Path(folder))
        sound = [path for path in every if (arguments.kind or "") in path.name]
        ends, most = _run(sound, arguments.files, arguments.seed, arguments.keep)
    for (name, end), count in sorted(ends.items()):
        print(f"{count:8,} {name}: {end}")
    for name, memory in sorted(most.items()):
        print(f"{memory / 2**20:8,.0f} MiB {name}: the most memory")
    bad = sum(count for (_, end), count in ends.items() if end not in _GOOD_ENDS)
    print(f"{ends.total():8,} files, {bad} with a bad end")
    sys.exit(1 if bad else 0)


def _run(
    sound: list[Path], count: int, seed: int, keep: Path | None
) -> tuple[Counter[tuple[str, str]], dict[str, int]]:
    """Try ``count`` mutated files one by one; return how many came to which end, and the most memory of each kind."""
    ends, most = Counter[tuple[str, str]](), dict[str, int]()
    contents = [path.read_bytes() for path in sound]
    worker = started(sound)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            which, content = drawn(contents, f"{seed} {number}")
            path = Path(scratch, sound[which].name)
            path.write_bytes(content)
            end, said, memory = ask(worker, path, sound[which].parent)
            most[path.name] = max(memory, most.get(path.name, 0))
            if worker.poll() is not None or end in ("crash", "hang"):
                worker.kill()
                worker.wait()
                worker = started(sound)
            ends[path.name, end] += 1
            if end not in _GOOD_ENDS:
                print(f"{path.name}, seed {seed}, file {number}: {end}: {said}", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{seed}-{number}-{path.name}")
    worker.kill()
    worker.wait()
    return ends, most


def drawn(contents: list[bytes], key: str) -> tuple[int, bytes]:
    """Return the number of a sound file, and what becomes of its content; the same for the same key."""
    rng = _Rng(key)
    which = rng.randrange(len(contents))
    return which, _mutated(contents[which], rng)


def _mutated(content: bytes, rng: _Rng) -> bytes:
    """Change a file in one to four places, or perhaps a member of an archive or a value in JSON."""
    if content[:2] == b"PK" and rng.random() < 0.5:
        return _with_other_member(content, rng)
    if content[:1] == b"{" and rng.random() < 0.5:
        return _with_other_value(content, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(_MUTATIONS)(content, rng)
    return content


def _with_other_member(content: bytes, rng: _Rng) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(output, "w") as new:
        names = old.namelist()
        # those that are read as programs
        telling = [name for name in names if name.endswith((".pkl", ".py", ".json", "version"))]
        chosen = rng.choice(telling if rng.random() < 0.8 else names)
        for name in names:
            member = old.read(name)
            if name != chosen:
                new.writestr(name, member)
            elif rng.random() < 0.95:  # else it is missing
                new.writestr(name, rng.choice(_MUTATIONS)(member, rng))
    return output.getvalue()


def _with_other_value(content: bytes, rng: _Rng) -> bytes:
    """Put something else, or nothing, in a place of a JSON document."""
    document = json.loads(content)
    places, waiting = list[tuple[Any, Any]](), [document]
    while waiting:
        inner = waiting.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        places += [(inner, key) for key in keys]
        waiting += [inner[key] for key in keys if isinstance(inner[key], dict | list)]
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        holder[f"{key}{rng.choice(_ODD)}"[:50]] = holder.pop(key)
    elif rng.random() < 0.1:
        del holder[key]
    else:
        holder[key] = rng.choice(_ODD)
    return json.dumps(document).encode()


def _flipped(content: bytes, rng: _Rng) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20)) if changed else 0):
        changed[_place(content, rng)] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _cut(content: bytes, rng: _Rng) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _inserted(content: bytes, rng: _Rng) -> bytes:
    place = _place(content, rng)
    return content[:place] + rng.randbytes(rng.choice((1, 2, 8, 100))) + content[place:]


def _deleted(content: bytes, rng: _Rng) -> bytes:
    place = _place(content, rng)
    return content[:place] + content[place + rng.choice((1, 2, 8, 100)) :]


def _reversed(content: bytes, rng: _Rng) -> bytes:
    place, length = _place(content, rng), rng.choice((2, 8, 100))
    return content[:place] + content[place : place + length][::-1] + content[place + length :]


def _huge(content: bytes, rng: _Rng) -> bytes:
    place = _place(content, rng)
    number = rng.choice((b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\xff" * 9 + b"\x01"))
    return content[:place] + number + content[place + len(number) :]


def _place(content: bytes, rng: _Rng) -> int:
    """Choose a place, half of the time near an end, where the structure is and not the weights."""
    length = len(content) or 1
    near = min(length, 3000)
    return (
        rng.choice(
            (rng.randrange(length), rng.randrange(length), rng.randrange(near), -1 - rng.randrange(near))
        )
        % length
    )


_MUTATIONS: tuple[Callable[[bytes, _Rng], bytes], ...] = (
    *(_flipped, _flipped, _flipped, _cut, _inserted),
    *(_deleted, _reversed, _huge),
)


def started(sound: list[Path]) -> subprocess.Popen[bytes]:
    """Start a worker, which has used every sound file, so that what libraries take once is not counted."""
    command = [sys.executable, __file__, "--worker"]
    worker = subprocess.Popen(  # noqa: S603 - this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with tempfile.TemporaryDirectory() as scratch:
        for path in sound:
            end, said, _ = ask(worker, Path(shutil.copy(path, scratch)), path.parent)
            if end != "ran":
                sys.exit(f"{path.name}, which is sound: {end}: {said}")
    return worker


def ask(worker: subprocess.Popen[bytes], path: Path, sound: Path) -> tuple[str, str, int]:
    """Have a worker use a file; return its end, what was said, and the bytes of memory that it took."""
    assert worker.stdin is not None  # noqa: S101 - made with a pipe
    assert worker.stdout is not None  # noqa: S101 - made with a pipe
    worker.stdin.write(f"{path}\t{sound}\n".encode())
    worker.stdin.flush()
    if not select.select([worker.stdout], [], [], _SECONDS)[0]:
        return "hang", "", 0
    line = worker.stdout.readline()
    if not line:
        return "crash", f"status {worker.wait()}", 0
    end, said, memory = json.loads(line)
    return end, said, memory


def _work() -> None:
    """Try the files whose names come on standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    out = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        for line in sys.stdin:
            path, sound = map(Path, line.rstrip("\n").split("\t"))
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
            before = _memory("VmRSS")
            end, said = _tried(path, sound)
            memory = _memory("VmHWM") - before
            allowed = _FREE + _TIMES * path.stat().st_size + _PICTURE * (path.suffix in PICTURES)
            if memory > allowed and end in _GOOD_ENDS:
                end, said = "memory", f"{memory:,} bytes, {allowed:,} allowed; {end}: {said}"
            sys.stdout.flush()
            if os.fstat(1).st_size:
                os.lseek(1, 0, os.SEEK_SET)
                end, said = "printed", os.read(1, 200).decode(errors="replace")
                os.ftruncate(1, 0)
                os.lseek(1, 0, os.SEEK_SET)
            out.write(json.dumps((end, said, memory)) + "\n")
            out.flush()


def _tried(path: Path, sound: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            use(path, sound)
    except cnndeploy.CnndeployError as error:
        return "named error", str(error)
    except BaseException as error:  # noqa: BLE001 - what is looked for
        return f"raw {type(error).__name__}", repr(error)[:200]
    return "ran", ""


def _memory(line: str) -> int:
    """Return a number of bytes in /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{line}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
