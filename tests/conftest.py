"""Fixtures that many tests share: the data set, and one trained network with its exported files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# No test measures time, and beside other programs torch's spinning threads make training many times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import onnx
import pytest
from click.testing import CliRunner, Result

from cnndeploy import data
from cnndeploy.benchmark.timer import Timer
from cnndeploy.cli import main
from cnndeploy.exporters import export
from cnndeploy.quantization.quantize import Quantized, quantize
from cnndeploy.training.loop import train
from helpers import Trained

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _data_set() -> None:
    """The tests run on the real data set; the first run on a machine fetches it."""
    data.fetch()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, _data_set: None) -> Trained:
    checkpoint = tmp_path_factory.mktemp("trained") / "lenet.pt"
    train("lenet", checkpoint, recipe="original", epochs=2, limit=8000, batch_size=32, learning_rate=0.003)
    files = Trained(checkpoint, export(checkpoint, "onnx").path, export(checkpoint, "torchscript").path)
    export(checkpoint, "onnx", files.onnx_image, input="image")
    export(checkpoint, "torchscript", files.torchscript_image, input="image")
    return files


@pytest.fixture(scope="session")
def int8(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The same LeNet in int8, measured on few images; read only."""
    path = tmp_path_factory.mktemp("int8") / "lenet.int8.onnx"
    return quantize(trained.checkpoint, path, budget=20, calibration=64, images=320, bench_s=0)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, because setuptools leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("cnndeploy", "exporters", "runtimes"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    options = ["--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", "build", *options], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """Run the command line in this process; gives click's Result."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def raw_onnxruntime_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a benchmark, the process of every candidate that is run by raw-onnxruntime is killed at its first call."""
    call = Timer.call

    def crash(self: Timer, *request: int) -> dict[str, Any]:
        if self.candidate.run.runtime == "raw-onnxruntime":
            os.kill(self._process.pid, signal.SIGKILL)
        return call(self, *request)

    monkeypatch.setattr(Timer, "call", crash)


@pytest.fixture
def edited(trained: Trained, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """Save a copy of the trained ONNX file after an edit."""

    def edit_and_save(edit: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(trained.onnx)
        edit(model)
        path = tmp_path / "edited.onnx"
        onnx.save(model, path)
        return path

    return edit_and_save
