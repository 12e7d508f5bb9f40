"""Mutated files: each is opened, described, loaded and run once in a worker, and must run or raise an error of ours.

It makes an untrained LeNet and writes it in every format, with either input, as a deployment's folder, and some
pictures. Then it flips, cuts, inserts, deletes and reverses bytes, makes lengths huge, and changes members of archives
under checksums that are right. It prints how many files came to which end, and exits with 1 if one raised another
error, ended its worker, took longer than 20 seconds, or made a library print on standard output. Those files are kept.

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

import numpy as np
from PIL import Image

import cnndeploy
from cnndeploy.checkpoint import Checkpoint

_MEMORY = 8 * 2**30
_SECONDS = 20
_PICTURES = (".png", ".jpg", ".gif", ".webp", ".tiff")
_GOOD_ENDS = ("ran", "named error")
_Rng = random.Random


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
        sound = [path for path in _sound_files(Path(folder)) if (arguments.kind or "") in path.name]
        ends = _run(sound, arguments.files, arguments.seed, arguments.keep)
    for (name, end), count in sorted(ends.items()):
        print(f"{count:8,} {name}: {end}")
    bad = sum(count for (_, end), count in ends.items() if end not in _GOOD_ENDS)
    print(f"{ends.total():8,} files, {bad} with a bad end")
    sys.exit(1 if bad else 0)


def _sound_files(folder: Path) -> list[Path]:
    checkpoint = folder / "lenet.pt"
    Checkpoint.untrained("lenet").save(checkpoint)
    for model_format in ("onnx", "torchscript"):
        cnndeploy.export(checkpoint, model_format)
    cnndeploy.export(checkpoint, "onnx", folder / "image.onnx", input="image")
    names = ["lenet.pt", "lenet.onnx", "lenet.torchscript", "image.onnx"]
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for suffix in _PICTURES:
        Image.fromarray(pixels).save(folder / f"picture{suffix}")
        names.append(f"picture{suffix}")
    run = {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "options": {}}
    sha256 = cnndeploy.Artifact.open(folder / "lenet.onnx").sha256
    facts = {"file": "lenet.onnx", "sha256": sha256, "machine": {}, "figures": {}, "command": "", "date": ""}
    (folder / "plan.json").write_text(json.dumps({**facts, **run}))
    return [folder / name for name in [*names, "plan.json"]]


def _run(sound: list[Path], count: int, seed: int, keep: Path | None) -> Counter[tuple[str, str]]:
    """Try ``count`` mutated files one by one; return how many came to which end."""
    ends = Counter[tuple[str, str]]()
    contents = [path.read_bytes() for path in sound]
    worker = _started()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            rng = _Rng(f"{seed} {number}")
            which = rng.randrange(len(sound))
            path = Path(scratch, sound[which].name)
            path.write_bytes(_mutated(contents[which], rng))
            end, said = _ask(worker, path, sound[which].parent)
            if worker.poll() is not None or end in ("crash", "hang"):
                worker.kill()
                worker.wait()
                worker = _started()
            ends[path.name, end] += 1
            if end not in _GOOD_ENDS:
                print(f"{path.name}, seed {seed}, file {number}: {end}: {said}", flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{seed}-{number}-{path.name}")
    worker.kill()
    worker.wait()
    return ends


def _mutated(content: bytes, rng: _Rng) -> bytes:
    """Change a file in one to four places, or if it is an archive perhaps a member of it."""
    if content[:2] == b"PK" and rng.random() < 0.5:
        return _with_other_member(content, rng)
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


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--worker"]
    return subprocess.Popen(  # noqa: S603 - this file
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _ask(worker: subprocess.Popen[bytes], path: Path, sound: Path) -> tuple[str, str]:
    assert worker.stdin is not None  # noqa: S101 - made with a pipe
    assert worker.stdout is not None  # noqa: S101 - made with a pipe
    worker.stdin.write(f"{path}\t{sound}\n".encode())
    worker.stdin.flush()
    # a worker that begins imports torch first
    if not select.select([worker.stdout], [], [], _SECONDS + 20)[0]:
        return "hang", ""
    line = worker.stdout.readline()
    if not line:
        return "crash", f"status {worker.wait()}"
    end, said = json.loads(line)
    return end, said


def _work() -> None:
    """Try the files whose names come on standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    out = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        for line in sys.stdin:
            path, sound = map(Path, line.rstrip("\n").split("\t"))
            end, said = _tried(path, sound)
            sys.stdout.flush()
            if os.fstat(1).st_size:
                os.lseek(1, 0, os.SEEK_SET)
                end, said = "printed", os.read(1, 200).decode(errors="replace")
                os.ftruncate(1, 0)
                os.lseek(1, 0, os.SEEK_SET)
            out.write(json.dumps((end, said)) + "\n")
            out.flush()


def _tried(path: Path, sound: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _use(path, sound)
    except cnndeploy.CnndeployError as error:
        return "named error", str(error)
    except BaseException as error:  # noqa: BLE001 - what is looked for
        return f"raw {type(error).__name__}", repr(error)[:200]
    return "ran", ""


def _use(path: Path, sound: Path) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    if path.suffix in _PICTURES:
        cnndeploy.read_image(path)
        return
    source, told = path, dict[str, Any]()
    if path.name == "plan.json":
        shutil.copy(sound / "lenet.onnx", path.parent)
        source = path.parent
    else:
        artifact = cnndeploy.Artifact.open(path)
        artifact.describe()
        if artifact.manifest is None:
            told = {"labels": [*"0123456789"], "preprocessing": cnndeploy.Preprocessing(size=(28, 28))}
    with cnndeploy.load(source, threads=1, **told) as model:
        model.classify(images[0])
        model.classify(images)


if __name__ == "__main__":
    main()
