"""A training that was stopped, killed or spread over processes ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, TrainingError
from cnndeploy.training.checkpoint import Checkpoint
from cnndeploy.training.loop import Epoch, train
from cnndeploy.training.state import State, state_path

QUICK = {"recipe": "tuned", "epochs": 4, "limit": 601, "batch_size": 64, "threads": 1, "seed": 3}
COMMAND = [
    "train",
    "lenet",
    *["--epochs", "4", "--limit", "601", "--batch-size", "64", "--threads", "1", "--seed", "3", "--output"],
]


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(Checkpoint.load(path).weights)


def _same(first: Path, second: Path) -> bool:
    ours, theirs = _weights(first), _weights(second)
    return all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def _log(path: Path) -> list[dict[str, object]]:
    """What was recorded of each epoch, but its time."""
    lines = map(json.loads, Path(f"{path}.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("lenet", tmp_path_factory.mktemp("unbroken") / "lenet.pt", **QUICK).path  # type: ignore[arg-type]


@pytest.mark.parametrize("stop_after", [1, 10, 13, 25])
def test_stopped_after_a_step_and_resumed(stop_after: int, unbroken: Path, tmp_path: Path) -> None:
    steps: list[object] = []
    path = tmp_path / "lenet.pt"
    with pytest.raises(KeyboardInterrupt):
        train(
            "lenet",
            path,
            on_step=steps.append,
            should_stop=lambda: len(steps) == stop_after,
            **QUICK,  # type: ignore[arg-type]
        )
    assert len(steps) == stop_after
    assert path.exists() is (stop_after > 10)  # an epoch has ten steps
    train("lenet", path, resume=True, on_step=steps.append)  # threads too are those it was begun with
    assert len(steps) == 40
    assert path.read_bytes() == unbroken.read_bytes()
    assert not state_path(path).exists()
    assert _log(path) == _log(unbroken)
    assert [json.loads(line)["epoch"] for line in Path(f"{path}.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]


def test_a_complete_training_has_nothing_to_resume(unbroken: Path) -> None:
    before = unbroken.read_bytes()
    train("lenet", unbroken, resume=True, **QUICK)  # type: ignore[arg-type]
    train("lenet", unbroken, resume=True)
    assert unbroken.read_bytes() == before
    with pytest.raises(TrainingError, match="was begun otherwise: seed 3, not 4"):
        train("lenet", unbroken, resume=True, **{**QUICK, "seed": 4})  # type: ignore[arg-type]


def test_where_nothing_is_a_training_begins_anew(unbroken: Path, tmp_path: Path) -> None:
    path = train("lenet", tmp_path / "lenet.pt", resume=True, **QUICK).path  # type: ignore[arg-type]
    assert _same(path, unbroken)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A training that was stopped in its first epoch."""
    with pytest.raises(KeyboardInterrupt):
        train("lenet", tmp_path / "lenet.pt", should_stop=lambda: True, **QUICK)  # type: ignore[arg-type]
    return tmp_path / "lenet.pt"


def test_an_unfinished_training_is_not_overwritten(stopped: Path) -> None:
    before = state_path(stopped).read_bytes()
    with pytest.raises(TrainingError, match="holds an unfinished training"):
        train("lenet", stopped, **QUICK)  # type: ignore[arg-type]
    assert state_path(stopped).read_bytes() == before


@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"batch_size": 32}, "batch_size 64, not 32"),
        ({"limit": 500}, "limit 601, not 500"),
        ({"recipe": "original"}, "recipe_name tuned, not original"),
    ],
)
def test_another_training_is_not_resumed(asked: dict[str, object], difference: str, stopped: Path) -> None:
    before = state_path(stopped).read_bytes()
    with pytest.raises(TrainingError, match=difference):
        train("lenet", stopped, resume=True, **asked)  # type: ignore[arg-type]
    assert state_path(stopped).read_bytes() == before


def test_another_architecture_is_not_resumed(stopped: Path) -> None:
    with pytest.raises(TrainingError, match="architecture lenet, not nin"):
        train("nin", stopped, resume=True)


def test_another_data_set_is_not_resumed(stopped: Path) -> None:
    state = State.load(stopped)
    state.plan.dataset_sha256["train-images-idx3-ubyte"] = "0" * 64  # type: ignore[index]
    state.save(stopped)
    with pytest.raises(TrainingError, match="dataset_sha256"):
        train("lenet", stopped, resume=True)


@pytest.mark.parametrize("content", [b"", b"damaged", b"PK\x03\x04 cut"])
def test_a_damaged_state_is_said_to_be_so(content: bytes, stopped: Path) -> None:
    state_path(stopped).write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be resumed from"):
        train("lenet", stopped, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(
    stopped: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [False]
    fsync = os.fsync

    def no_space(descriptor: int) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    def fill(epoch: Epoch) -> None:
        full[0] = epoch.epoch == 2

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ArtifactError, match="is full; free some space"):
        train("lenet", stopped, resume=True, threads=1, on_epoch=fill)
    assert len(Artifact.open(stopped).require_manifest().training["epochs"]) == 2
    full[0] = False
    train("lenet", stopped, resume=True, threads=1)
    assert _same(stopped, unbroken)


def _start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cnndeploy", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# It imports torch once. At one line of input it forks a child that trains, at the next it takes leave of that child.
# The child says when it begins to train and writes slowly, so that kills also meet half-written files.
_PARENT_OF_VICTIMS = """
import os, sys, time, traceback
from pathlib import Path
import cnndeploy.artifact as artifact
from cnndeploy.training.loop import train

def slow(self, content, write=Path.write_bytes):
    half = len(content) // 2
    with self.open("wb") as file:
        file.write(content[:half]); file.flush()
        print("writing", flush=True); time.sleep(0.02)
        file.write(content[half:])

Path.write_bytes = slow
while sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        try:
            print("training", os.getpid(), flush=True)
            train("lenet", sys.argv[1], resume=True, epochs=4, limit=601, batch_size=64, threads=1, seed=3)
            print("done", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    sys.stdin.readline()
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment(unbroken: Path, tmp_path: Path) -> None:
    """Twenty kills and more: at random moments, and in every third case while a file is being written."""
    path = tmp_path / "lenet.pt"
    draw = np.random.default_rng(0)
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT_OF_VICTIMS, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        lines = _lines(parent.stdout)
        killed = 0
        for kill in range(20):
            parent.stdin.write("train\n")
            parent.stdin.flush()
            word, pid = next(lines).split()
            assert word == "training"
            if kill % 3 == 0:
                for _ in range(draw.integers(1, 4)):
                    if next(lines, "done") == "done":
                        break
            else:
                time.sleep(draw.uniform(0, 0.5))
            os.kill(int(pid), signal.SIGKILL)  # it has ended at the latest when its parent takes leave of it
            parent.stdin.write("take leave\n")
            parent.stdin.flush()
            said = list(iter(lambda: next(lines), "ended"))
            killed += "done" not in said
            if path.exists():
                assert len(_weights(path)) == 10  # readable, whatever happened
            if path.exists() and not state_path(path).exists():
                assert path.read_bytes() == unbroken.read_bytes()
                path.unlink()  # on with another training
        _, errors = parent.communicate()
    assert "Error" not in errors, errors
    assert killed >= 10
    assert any(tmp_path.glob(".*.tmp"))  # some were killed while they wrote
    train("lenet", path, resume=True, **QUICK)  # type: ignore[arg-type]
    assert path.read_bytes() == unbroken.read_bytes()
    assert _log(path) == _log(unbroken)


def _lines(stream: Iterator[str]) -> Iterator[str]:
    return (line.strip() for line in stream)


@pytest.mark.slow
def test_ctrl_c_ends_the_step_saves_and_says_how_to_resume(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    started = _start(*COMMAND, path)
    assert started.stdout is not None
    assert "epoch 1/4" in next(started.stdout)
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert f"go on with: cnndeploy train lenet --output {path} --resume" in said
    resumed = _start("train", "lenet", "--output", path, "--resume")
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert path.read_bytes() == unbroken.read_bytes()
    for suffix in (".jsonl", ".curves.png", ".confusion.png"):
        assert Path(f"{path}{suffix}").stat().st_size > 100


def _torchrun(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    return subprocess.run(
        [*launcher, "-m", "cnndeploy", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


# Adam divides by the size of the gradient, so that where it is next to nothing rounding grows with every step.
BRIEF = {"recipe": "original", "epochs": 2, "limit": 601, "batch_size": 64, "threads": 1}
BRIEF_OPTIONS = [
    "--recipe",
    "original",
    "--epochs",
    "2",
    "--limit",
    "601",
    "--batch-size",
    "64",
    "--threads",
    "1",
    "--output",
]


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("lenet", tmp_path_factory.mktemp("one") / "lenet.pt", **BRIEF).path  # type: ignore[arg-type]


def _difference(first: Path, second: Path) -> float:
    ours, theirs = _weights(first), _weights(second)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _assert_alike(epochs: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for ours, theirs in zip(epochs, expected, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
        for name in ("train_accuracy", "test_accuracy"):
            assert ours[name] == pytest.approx(theirs[name], abs=0.01)


@pytest.mark.slow
def test_two_processes_train_as_one(in_one_process: Path, tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    done = _torchrun(2, "train", "lenet", *BRIEF_OPTIONS, path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 2/2") == 1  # rank 0 alone speaks
    ours, theirs = (Artifact.open(each).require_manifest().training for each in (path, in_one_process))
    assert (ours["processes"], theirs["processes"]) == (2, 1)
    _assert_alike(ours["epochs"], theirs["epochs"])
    assert _difference(path, in_one_process) < 1e-5


@pytest.mark.slow
def test_what_one_process_began_two_resume(in_one_process: Path, tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    steps: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        train("lenet", path, on_step=steps.append, should_stop=lambda: len(steps) == 13, **BRIEF)  # type: ignore[arg-type]
    done = _torchrun(2, "train", "lenet", "--output", path, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming from" in done.stdout
    ours, theirs = (Artifact.open(each).require_manifest().training for each in (path, in_one_process))
    _assert_alike(ours["epochs"], theirs["epochs"])
    assert _difference(path, in_one_process) < 1e-5


def test_the_recipe_of_a_checkpoint_gives_it_again(
    unbroken: Path, tmp_path: Path, cli: Callable[..., object]
) -> None:
    again = tmp_path / "again.pt"
    result = cli("train", "--from-checkpoint-recipe", unbroken, "--output", again)
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    assert again.read_bytes() == unbroken.read_bytes()
    result = cli("train", "nin", "--from-checkpoint-recipe", unbroken, "--output", again)
    assert "is a lenet, not a nin" in result.output  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_recipe_of_more_processes_says_how_to_have_as_many(
    unbroken: Path, tmp_path: Path, cli: Callable[..., object]
) -> None:
    checkpoint = Checkpoint.load(unbroken)
    facts = {**checkpoint.manifest.training, "processes": 2}
    Checkpoint.of("lenet", checkpoint.network(), facts).save(tmp_path / "two.pt")
    result = cli("train", "--from-checkpoint-recipe", tmp_path / "two.pt", "--output", tmp_path / "again.pt")
    assert "--nproc-per-node 2" in result.output  # type: ignore[attr-defined]
    result = cli("train", "--from-checkpoint-recipe", unbroken, "--output", tmp_path / "other.pt")
    assert "processes" not in result.output  # type: ignore[attr-defined]
