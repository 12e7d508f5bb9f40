"""A training that was stopped, killed or spread over processes ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, Stopped, TrainingError
from cnndeploy.training.state import Epoch, State, state_path
from cnndeploy.training.train import train

QUICK = {"recipe": "tuned", "epochs": 4, "images": 601, "batch_size": 64, "threads": 1, "seed": 3}
COMMAND = [
    "train",
    "lenet",
    *["--epochs", "4", "--images", "601", "--batch-size", "64", "--threads", "1", "--seed", "3", "--output"],
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
    with pytest.raises(Stopped):
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
    with pytest.raises(Stopped):
        train("lenet", tmp_path / "lenet.pt", should_stop=lambda: True, **QUICK)  # type: ignore[arg-type]
    return tmp_path / "lenet.pt"


def test_an_older_state_is_gone_on_with(stopped: Path, unbroken: Path) -> None:
    state = torch.load(state_path(stopped), weights_only=True)
    facts = json.loads(state["cnndeploy.training"])
    del facts["manifest"], facts["plan"]["start"], facts["plan"]["recipe"]["crop"]
    torch.save({**state, "cnndeploy.training": json.dumps(facts)}, state_path(stopped))
    assert train("lenet", stopped, resume=True).path.read_bytes() == unbroken.read_bytes()


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
        ({"images": 500}, "images 601, not 500"),
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


# One process that has torch forks a child for each line that it reads. A child is killed at a moment of its writes:
# when half of a file is written, before and after it takes its name, and before the state is removed. Between two such
# moments nothing on the disk changes, so that they stand for all.
_FORKS_VICTIMS = """
import functools, os, signal, sys
from pathlib import Path
from cnndeploy.datasets import fashion_mnist
from cnndeploy.training.train import train

fashion_mnist.load = functools.cache(fashion_mnist.load)
train("lenet", sys.argv[1], epochs=0, threads=1)  # loads what is loaded late; autograd must not begin before a fork
left = 0

def moment():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def write(self, content):
    with self.open("wb") as file:
        file.write(content[: len(content) // 2]); file.flush()
        moment()
        file.write(content[len(content) // 2 :])

def replace(self, target, original=Path.replace):
    moment()
    original(self, target)
    moment()

def unlink(self, missing_ok=False, original=Path.unlink):
    if self.suffix == ".resume" and self.exists():
        moment()
    original(self, missing_ok)

Path.write_bytes, Path.replace, Path.unlink = write, replace, unlink
for line in sys.stdin:
    left, output = int(line.split()[0]), line.split()[1]
    if not (child := os.fork()):
        train("lenet", output, resume=True, epochs=2, images=129, batch_size=64, threads=1, seed=3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# Two epochs, each of which writes state, checkpoint and log, and at the end the state is removed.
_MOMENTS = 2 * 3 * 3 + 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork, as Linux")
def test_kill_9_at_every_write(tmp_path: Path) -> None:
    """Killed at each moment of its writes, killed once more when it is resumed, it ends as one that was not."""
    quick = {"epochs": 2, "images": 129, "batch_size": 64, "threads": 1, "seed": 3}
    whole = train("lenet", tmp_path / "whole.pt", **quick).path  # type: ignore[arg-type]
    served = subprocess.Popen(
        [sys.executable, "-c", _FORKS_VICTIMS, tmp_path / "untrained.pt"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with served:
        assert served.stdin is not None
        assert served.stdout is not None

        def victim(moment: int, path: Path) -> int:
            """Let a training be killed at the moment with this number, from 1; returns its exit code."""
            print(moment, path, file=served.stdin, flush=True)
            status = int(served.stdout.readline())  # type: ignore[union-attr]
            if path.exists():
                assert len(_weights(path)) == 10  # readable, whatever happened
            return status

        interrupted_writes = 0
        for moment in range(1, _MOMENTS + 1):
            path = tmp_path / str(moment) / "lenet.pt"
            path.parent.mkdir()
            assert victim(moment, path) == -signal.SIGKILL
            assert victim(1 + moment % 4, path) in (-signal.SIGKILL, 0)  # 0: fewer moments were left
            interrupted_writes += any(path.parent.glob(".*.tmp"))
            assert victim(_MOMENTS + 1, path) == 0  # there are no more moments than these
            assert path.read_bytes() == whole.read_bytes()
            assert _log(path) == _log(whole)
            assert not state_path(path).exists()
        assert interrupted_writes >= _MOMENTS // 3
        served.stdin.close()


@pytest.mark.slow
def test_ctrl_c_ends_the_step_saves_and_says_how_to_resume(
    unbroken: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    path = tmp_path / "lenet.pt"
    started = _start(*COMMAND, path)
    assert started.stdout is not None
    assert "epoch 1/4" in next(started.stdout)
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert f"go on with: cnndeploy train lenet --output {path} --resume" in said
    resumed = cli("train", "lenet", "--output", path, "--resume")
    assert resumed.exit_code == 0, resumed.output
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
BRIEF = {"recipe": "original", "epochs": 2, "images": 601, "batch_size": 64, "threads": 1}
BRIEF_OPTIONS = [
    "--recipe",
    "original",
    "--epochs",
    "2",
    "--images",
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
    with pytest.raises(Stopped):
        train("lenet", path, on_step=steps.append, should_stop=lambda: len(steps) == 13, **BRIEF)  # type: ignore[arg-type]
    done = _torchrun(2, "train", "lenet", "--output", path, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming from" in done.stdout
    ours, theirs = (Artifact.open(each).require_manifest().training for each in (path, in_one_process))
    _assert_alike(ours["epochs"], theirs["epochs"])
    assert _difference(path, in_one_process) < 1e-5


def test_the_recipe_of_a_checkpoint_gives_it_again(
    unbroken: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    again = tmp_path / "again.pt"
    result = cli("train", "--from-checkpoint-recipe", unbroken, "--output", again)
    assert result.exit_code == 0, result.output
    assert again.read_bytes() == unbroken.read_bytes()
    result = cli("train", "nin", "--from-checkpoint-recipe", unbroken, "--output", again)
    assert "is a lenet, not a nin" in result.output


@pytest.mark.slow
def test_a_recipe_of_more_processes_says_how_to_have_as_many(
    unbroken: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    checkpoint = Checkpoint.load(unbroken)
    facts = {**checkpoint.manifest.training, "processes": 2}
    Checkpoint.of(checkpoint.manifest, checkpoint.network(), facts).save(tmp_path / "two.pt")
    result = cli("train", "--from-checkpoint-recipe", tmp_path / "two.pt", "--output", tmp_path / "again.pt")
    assert "--nproc-per-node 2" in result.output
    result = cli("train", "--from-checkpoint-recipe", unbroken, "--output", tmp_path / "other.pt")
    assert "processes" not in result.output


def _step_far(state: dict[str, Any]) -> None:
    state["facts"]["step"] = 10**6


@pytest.mark.parametrize(
    "craft",
    [
        _step_far,
        lambda state: state["facts"].update(step=-1),
        lambda state: state["facts"].update(sums=[0, 0]),
        lambda state: state["facts"].update(sums=["a", 0, 0]),
        lambda state: state["facts"].update(epochs=[{"epoch": 1}]),
        lambda state: state["facts"].update(threads=-4),
        lambda state: state["facts"]["plan"].update(seed="x"),
        lambda state: state["facts"]["plan"]["recipe"].update(batch_size="x"),
        lambda state: state["facts"]["plan"]["recipe"].update(label_smoothing=7.0),
        lambda state: state["network"].update({next(iter(state["network"])): 3}),
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
        lambda state: state["optimizer"]["param_groups"][0].update(betas="xy"),
    ],
)
def test_a_crafted_state_is_refused_by_name(
    craft: Callable[[dict[str, Any]], None], begun: Path, tmp_path: Path
) -> None:
    content = torch.load(state_path(begun), weights_only=True)
    state = {**content, "facts": json.loads(content["cnndeploy.training"])}
    craft(state)
    state["cnndeploy.training"] = json.dumps(state.pop("facts"))
    path = tmp_path / "lenet.pt"
    torch.save(state, state_path(path))
    with pytest.raises(TrainingError):
        train("lenet", path, resume=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped after three steps."""
    path, steps = tmp_path_factory.mktemp("begun") / "lenet.pt", list[object]()
    with pytest.raises(Stopped):
        train("lenet", path, on_step=steps.append, should_stop=lambda: len(steps) == 3, **QUICK)  # type: ignore[arg-type]
    return path
