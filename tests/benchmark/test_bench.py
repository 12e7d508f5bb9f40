from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark import bench
from cnndeploy.benchmark.candidate import Candidate
from cnndeploy.benchmark.report import BenchmarkReport, summarise
from cnndeploy.errors import ArtifactError, BenchmarkError, DeviceUnavailableError
from cnndeploy.machine import busy_cpus
from helpers import Trained


def _children() -> set[int]:
    own = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()}


def test_summary_known_answer() -> None:
    candidates = [
        SimpleNamespace(artifact=SimpleNamespace(path=Path(name)), runtime=name, device="cpu", threads=1)
        for name in "ab"
    ]
    rounds = [[[4.0, 4.0, 6.0], [1.0, 2.0]], [[8.0, 8.0, 8.0], [2.0, 2.0]], [[4.0], [1.0]]]
    first, second = summarise(candidates, rounds, batch_size=3)  # type: ignore[arg-type]
    assert (first.ratio, first.calls, first.rounds, first.p50_s, first.p90_s) == (1.0, 7, 3, 6.0, 8.0)
    assert second.ratio == 4.0  # per round 4 / 1.5, 8 / 2, 4 / 1
    assert second.p50_s == 2.0
    assert second.images_per_s == 1.5


def test_every_candidate_is_measured_at_every_batch_size(trained: Trained) -> None:
    before = _children()
    targets = [trained.checkpoint, trained.onnx, trained.torchscript]
    progress: list[tuple[str, int, int]] = []
    report = bench(
        targets, batch_sizes=(1, 3), threads=1, budget_s=0.1, on_progress=lambda *at: progress.append(at)
    )
    rows = [(Path(r.target), r.runtime, r.device, r.threads, r.batch_size) for r in report.results]
    runtimes = ["eager", "onnxruntime", "torchscript"]
    assert rows == [
        (target, runtime, "cpu", 1, size)
        for size in (1, 3)
        for target, runtime in zip(targets, runtimes, strict=True)
    ]
    for result in report.results:
        assert 0 < result.p50_s <= result.p90_s
        assert result.images_per_s == pytest.approx(result.batch_size / result.p50_s)
    assert [r.ratio for r in report.results if r.runtime == "eager"] == [1.0, 1.0]
    assert {label for label, _, _ in progress} == {"batch 1", "batch 3"}
    assert "torch" in report.environment["versions"]
    assert BenchmarkReport.from_json(json.dumps(report.to_dict())) == report
    assert _children() == before


def test_other_programs_at_work_are_warned_of(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    for busy, warns in ((0.0, False), (1.5, True), (None, False)):
        monkeypatch.setattr("cnndeploy.benchmark.busy_cpus", lambda seconds, busy=busy: busy)
        report = bench([trained.onnx], budget_s=0.1)
        assert bool(report.warnings) is warns
        assert report.environment["busy_cpus"] == busy


def test_a_busy_cpu_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            assert (busy_cpus(1.0) or 0) > 0.5
        finally:
            process.kill()


def test_a_device_that_does_not_work_is_an_error(trained: Trained) -> None:
    before = _children()
    with pytest.raises(DeviceUnavailableError, match="'cuda:99' is not available"):
        bench([trained.onnx], device="cuda:99")
    assert _children() == before


def test_a_worker_that_is_killed_is_an_error(trained: Trained) -> None:
    with Candidate(Artifact.open(trained.onnx), runtime="onnxruntime", device="cpu", threads=1) as candidate:
        candidate.wait_until_open()
        os.kill(candidate._process.pid, signal.SIGKILL)
        with pytest.raises(ArtifactError, match="ended with status -9"):
            candidate.call(1, 1)


def test_what_cannot_be_opened_is_an_error(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        bench([trained.onnx, tmp_path / "none.onnx"])
    with pytest.raises(BenchmarkError, match="at least one"):
        bench([])
    with pytest.raises(BenchmarkError, match="at least 1"):
        bench([trained.onnx], batch_sizes=(0,))
