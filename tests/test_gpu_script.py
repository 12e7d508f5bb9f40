"""benchmarks/gpu.py, which tests the CUDA path on a machine with a GPU: its stages on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cnndeploy.machine import cuda_driver

pytestmark = pytest.mark.field  # it takes minutes
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_stage_on_the_cpu(tmp_path: Path) -> None:
    done = _run("--dry", "--minutes", 15, "--output", tmp_path)
    assert done.returncode == 0, (tmp_path / "gpu.md").read_text()
    outcomes = json.loads((tmp_path / "gpu.json").read_text())
    assert len({outcome["stage"] for outcome in outcomes}) == 14
    assert all(outcome["ok"] and outcome["exit"] == 0 for outcome in outcomes)
    page = (tmp_path / "gpu.md").read_text()
    for told in (
        "## lenet",
        "## googlenet",
        "## variants",
        "| nin: all of it |",
        "float32, bound",
        "equivalent",
    ):
        assert told in page
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md", "details.json", "log.txt"}
    assert "lenet.bench.json" in json.loads((tmp_path / "details.json").read_text())


def test_what_fails_and_what_has_no_time_is_said(tmp_path: Path) -> None:
    done = _run("--dry", "--minutes", 0.05, "--output", tmp_path)
    assert done.returncode == 1
    outcomes = json.loads((tmp_path / "gpu.json").read_text())
    assert not outcomes[-1]["ok"]
    assert outcomes[-1]["said"] == ["not run: the time was over"]
    assert "**no**" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(bool(cuda_driver().gpus), reason="cuda works on this machine")
def test_without_a_gpu_it_says_so_in_a_line(tmp_path: Path) -> None:
    done = _run("--output", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "There is no NVIDIA GPU that works here; --dry runs the stages on the CPU.\n"
    assert not (tmp_path / "none").exists()
