"""The workers of the tests come from the nurseries; else the tests pass too, and take twice as long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from nursery import Forked

from cnndeploy.exporters import export
from cnndeploy.process import WorkerProcess
from helpers import Trained


def _worker(path: Path) -> WorkerProcess:
    return WorkerProcess("cnndeploy.verification.worker", str(path), subject=path.name)


def test_workers_are_forked_also_once_this_process_has_exported(trained: Trained, tmp_path: Path) -> None:
    """An export leaves variables of torch in the environment."""
    export(trained.checkpoint, "onnx", tmp_path / "lenet.onnx")
    for path in (trained.checkpoint, trained.onnx, trained.torchscript):
        with _worker(path) as worker:
            assert isinstance(worker._process, Forked)


def test_a_variable_that_is_read_when_a_library_is_loaded_reaches_the_worker(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for path in (trained.checkpoint, trained.onnx):
        with _worker(path) as worker:
            assert not isinstance(worker._process, Forked)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")
def test_a_worker_of_an_onnx_file_has_no_torch(trained: Trained) -> None:
    for path, has_torch in ((trained.onnx, False), (trained.checkpoint, True)):
        with _worker(path) as worker:
            assert isinstance(worker._process, Forked)
            assert ("libtorch" in Path(f"/proc/{worker._process.pid}/maps").read_text()) is has_torch
