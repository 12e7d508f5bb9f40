"""How often a training waits for its GPU; on the CPU, as if that were one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cnndeploy.architectures._recipe import Recipe
from cnndeploy.datasets.fashion_mnist import Images
from cnndeploy.errors import Stopped, TrainingError
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.training import loop
from cnndeploy.training.batches import Batches
from cnndeploy.training.distributed import Processes
from cnndeploy.training.loop import Loop, Sums, steps_between_reads
from cnndeploy.training.state import Step, state_path
from cnndeploy.training.train import train

QUICK: dict[str, Any] = {"epochs": 2, "images": 601, "batch_size": 64, "threads": 1}  # ten steps in an epoch
Calls = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]


class Noted(TorchDispatchMode):
    """Every operator that torch runs, with what it is called with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Calls = []

    def __torch_dispatch__(
        self, operator: Any, _: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls.append((operator, args, kwargs or {}))
        return operator(*args, **(kwargs or {}))


@contextmanager
def reading_every(steps: int) -> Iterator[list[object]]:
    """Read as seldom as on a GPU; yield a list that gets an entry for each read."""
    reads: list[object] = []
    read = Sums.read

    def noted(self: Sums) -> tuple[float, float, float]:
        reads.append(self)
        return read(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "steps_between_reads", lambda *_: steps)
        patch.setattr(Sums, "read", noted)
        yield reads


def _log(path: Path) -> list[dict[str, object]]:
    lines = map(json.loads, Path(f"{path}.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line if key != "seconds"} for line in lines]


def test_a_gpu_of_one_process_is_read_seldom() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert [steps_between_reads(device, Processes()) for device in (cpu, gpu)] == [1, 50]
    assert steps_between_reads(gpu, Processes(0, 2)) == 1


def test_how_often_sums_are_read_changes_no_weight_and_no_figure(tmp_path: Path) -> None:
    whole = train("lenet", tmp_path / "whole.pt", **QUICK).path
    steps: list[Step] = []
    with reading_every(4) as reads:
        seldom = train("lenet", tmp_path / "seldom.pt", on_step=steps.append, **QUICK).path
    assert len(reads) == 2 * len([1, 4, 8, 10])
    assert [step.step for step in steps] == [*range(1, 11)] * 2
    changed = [step.step for before, step in pairwise(steps[:10]) if step.loss != before.loss]
    assert changed == [4, 8, 10]
    assert seldom.read_bytes() == whole.read_bytes()
    assert _log(seldom) == _log(whole)


def test_a_training_that_stops_between_reads_is_gone_on_with(tmp_path: Path) -> None:
    whole = train("lenet", tmp_path / "whole.pt", **QUICK).path
    path, steps = tmp_path / "stopped.pt", list[Step]()
    with reading_every(4):
        with pytest.raises(Stopped, match="at step 6 of epoch 1"):
            train("lenet", path, on_step=steps.append, should_stop=lambda: len(steps) == 6, **QUICK)
        train("lenet", path, resume=True)
    assert path.read_bytes() == whole.read_bytes()
    assert _log(path) == _log(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("at", range(1, 11))
def test_a_loss_is_found_out_before_anything_is_written(
    at: int, stops: bool, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the loss is not finite; weights that are not finite would show it too."""
    step, steps = Loop._step, list[Step]()

    def broken(self: Loop, network: Any, batch: Any, number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        loss, right, images = step(self, network, batch, number)
        return loss + (value if number == at - 1 else 0), right, images

    monkeypatch.setattr(Loop, "_step", broken)
    read = at if stops else next(one for one in (1, 4, 8, 10) if one >= at)
    with (
        reading_every(4),
        pytest.raises(TrainingError, match=f"The loss is {value} at step {read} of epoch 1"),
    ):
        train(
            "lenet",
            tmp_path / "lenet.pt",
            on_step=steps.append,
            should_stop=lambda: stops and len(steps) == at,
            **QUICK,
        )
    assert not (tmp_path / "lenet.pt").exists()
    assert not state_path(tmp_path / "lenet.pt").exists()


def test_a_step_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To turn a tensor on a GPU into a Python number, torch waits for the GPU."""
    noted: Calls = []

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any) -> Any:
            with Noted() as operators:
                result = step(*arguments)
            noted.extend(operators.calls)
            return result

        return inner

    monkeypatch.setattr(Loop, "_step", watched(Loop._step))
    monkeypatch.setattr(Sums, "add", watched(Sums.add))
    train("lenet", tmp_path / "lenet.pt", **QUICK | {"epochs": 1})
    names = [str(operator) for operator, _, _ in noted]
    assert names.count("aten._fused_adamw_.default") == 10
    assert "aten._local_scalar_dense.default" not in names


def test_batches_are_copied_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pinned memory, and without blocking; the GPU is torch's device that computes nothing."""
    pinned: list[torch.Tensor] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append(self.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    images = Images(np.ones((20, 28, 28), np.uint8), np.zeros(20, np.uint8), {"file": "0"})
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.001, flip=True, shift=2)
    batches = Batches(images, Preprocessing(size=(32, 32)), recipe, 0, torch.device("meta"), Processes())
    with Noted() as operators:
        shapes = [tuple(images.shape) for images, _, _ in batches.epoch(1)]
    assert shapes == [(8, 1, 32, 32), (8, 1, 32, 32), (4, 1, 32, 32)]
    copies = [
        (args[0], kwargs.get("non_blocking"))
        for operator, args, kwargs in operators.calls
        if operator is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "meta"
        if args[0].device.type == "cpu"
    ]
    assert len(copies) == 3 * 4  # images, labels, flips and shifts
    assert all(is_without_wait and any(one is source for one in pinned) for source, is_without_wait in copies)
