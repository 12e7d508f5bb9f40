"""What goes wrong in one use of a shared reference does no harm to the next."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cnndeploy.artifact import Artifact
from cnndeploy.deployment import PLAN_FILE, Plan, resolve
from cnndeploy.errors import ArtifactError, Stopped
from cnndeploy.machine import environment
from cnndeploy.progress import Deadline
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.run import Run
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.reference import Computation, Reference, Runner
from cnndeploy.verification.verify import verify
from helpers import Trained


@pytest.fixture
def other(edited: Callable[..., Path]) -> Path:
    """An exported file whose first convolution has other weights, so that verification looks inside it."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))

    return edited(change)


@pytest.mark.slow
def test_a_reference_whose_worker_died_is_started_again(
    trained: Trained, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = Runner.activations

    def die(self: Runner, batch: list[int], folder: Path, computation: Computation) -> Any:
        if self.candidate.artifact.path == trained.checkpoint:
            os.kill(self._process.pid, signal.SIGKILL)
        return activations(self, batch, folder, computation)

    with Reference(trained.checkpoint) as reference:
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "activations", die)
            report = verify(other, reference, images=5)
        assert not report.equivalent
        assert report.divergence is not None
        assert "which module departs is not known" in report.divergence.description
        assert verify(trained.onnx, reference, images=7).equivalent


@pytest.mark.slow
def test_a_worker_that_has_ended_is_an_error_each_time(trained: Trained) -> None:
    with Reference(trained.checkpoint) as reference:
        runner = reference.start().opened()
        os.kill(runner._process.pid, signal.SIGKILL)
        for reason in ("ended with status -9", "ended before, with status -9"):
            with pytest.raises(ArtifactError, match=reason):
                runner.receive()


@pytest.mark.slow
def test_a_stop_while_it_looks_inside_is_a_stop(
    trained: Trained, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking: list[bool] = []
    activations = Runner.activations

    def look(self: Runner, *arguments: Any) -> Any:
        looking.append(True)
        return activations(self, *arguments)

    monkeypatch.setattr(Runner, "activations", look)
    with pytest.raises(Stopped):
        verify(other, trained.checkpoint, images=5, deadline=Deadline(should_stop=lambda: bool(looking)))
    assert len(looking) == 3


def test_the_reference_is_eager_whatever_a_plan_says(trained: Trained, tmp_path: Path) -> None:
    shutil.copy(trained.checkpoint, tmp_path)
    plan = Plan(
        "lenet.pt", Artifact.open(trained.checkpoint).sha256, Run("compiled", "cpu", 1), environment()
    )
    (tmp_path / PLAN_FILE).write_text(plan.to_json())
    assert resolve(tmp_path).run.runtime == "compiled"
    with Reference(tmp_path) as reference:
        assert reference.candidate.run.runtime == "eager"


@pytest.mark.slow
def test_a_checkpoint_that_gives_nan_keeps_no_budget(
    trained: Trained, int8: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Reference, "logits", lambda *_arguments, **_more: np.full((64, 10), np.nan, np.float32)
    )
    report = verify_budget(int8.artifact.path, trained.checkpoint, budget=5, images=64)
    assert not report.passed
    assert any("checkpoint gives NaN" in reason for reason in report.reasons)
