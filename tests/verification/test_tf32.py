"""Verification in TF32, by a runtime that says it is a GPU and computes on the CPU as one would."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from broken import importable, install_runtime

from cnndeploy.errors import DeviceUnavailableError
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes.eager import _to_tf32
from cnndeploy.verification.reference import Computation
from cnndeploy.verification.verify import _Evidence, verify
from helpers import Trained

EMULATED_GPU = """
from dataclasses import replace

from cnndeploy.devices import DeviceStatus
from cnndeploy.runtimes.eager import RUNTIME as EAGER

class _Runtime:
    formats = ("checkpoint",)
    package = "torch"
    options = {"precision": ("tf32",)}

    def devices(self):
        return {"cpu": DeviceStatus(True), "cuda:0": DeviceStatus(True)}

    def open(self, artifact, run):
        session = EAGER.open(artifact, replace(run, device="cpu", options=None)).computed("tf32")
        session.device, session.options, session.placed_on = "cuda:0", run.choices, "cuda:0"
        session.placement = lambda: {"all": "cuda:0"}
        return session

RUNTIME = _Runtime()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_no_fault_where_it_was_allowed(tf32: bool, trained: Trained, tmp_path: Path) -> None:
    install_runtime(tmp_path, EMULATED_GPU)
    with importable(tmp_path):
        options = RuntimeOptions(precision="tf32" if tf32 else "float32")
        run = Run("broken", "cuda", options=options)
        report = verify(trained.checkpoint, trained.checkpoint, run=run, images=20)
    assert report.equivalent is tf32, report.reasons
    assert report.oracle is not None
    assert report.artifact_side is not None
    assert report.artifact_side.settings["tf32"] is tf32
    if tf32:
        assert report.tolerance.relative == 1e-2
        assert report.oracle.ratio == pytest.approx(1)
        assert report.oracle.eager_max > 1e-5  # the yardstick is TF32's error, not float32's
    else:
        assert report.oracle.ratio > 100


def test_tf32_keeps_ten_bits_rounded_to_even() -> None:
    one_step = 2.0**-10
    values = np.array(
        [1, 1 + one_step, 1 + one_step / 2, 1 + 1.5 * one_step, -1 - 0.6 * one_step, 3.3, 0], "f4"
    )
    expected = [1, 1 + one_step, 1, 1 + 2 * one_step, -1 - one_step, 3.30078125, 0]
    assert _to_tf32(torch.tensor(values)).tolist() == expected


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [1, 2, 3, 7, 64, 3]), ("cuda:0", [1, 2, 3, 3, 7, 64])])
def test_on_a_gpu_batches_of_one_size_run_together(device: str, sizes: list[int]) -> None:
    """ONNX Runtime plans its convolutions again whenever the size changes."""
    batches: list[list[int]] = []

    def logits(some: list[list[int]], _computation: Computation) -> np.ndarray:
        batches.extend(some)
        return np.array([[place] for batch in some for place in batch], np.float32)

    opened = SimpleNamespace(runner=SimpleNamespace(device=device), logits=logits)
    evidence: Any = SimpleNamespace(_opened=opened, _test=range(80))
    found = _Evidence._artifact_logits(evidence, Computation())
    assert [len(batch) for batch in batches] == sizes
    assert found[:, 0].tolist() == list(range(80))


FAILING_GPU = EMULATED_GPU.replace(
    "        return session",
    """        def fail(feeds):
            raise RuntimeError("CUDA failure 2: out of memory")
        session._run = fail
        return session""",
)


@pytest.mark.slow
def test_a_gpu_that_fails_is_no_verdict_on_the_file(trained: Trained, tmp_path: Path) -> None:
    install_runtime(tmp_path, FAILING_GPU)
    with importable(tmp_path), pytest.raises(DeviceUnavailableError, match="out of memory"):
        verify(trained.checkpoint, trained.checkpoint, run=Run("broken", "cuda"), images=20)
