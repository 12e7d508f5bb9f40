"""JSON on standard output stays JSON, whatever a runtime prints there, from Python or C, and whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

from cnndeploy.errors import BudgetError, CompressionError
from cnndeploy.verification.budget import verify_budget
from helpers import Trained

# Python imports it when it starts, in workers too.
_NOISE = """
import ctypes
import cnndeploy.runtimes.onnxruntime as runtime

def noisy(function):
    def call(*arguments, **keywords):
        ctypes.CDLL(None).puts(b"C prints this")
        print("Python prints this")
        return function(*arguments, **keywords)
    return call

runtime.OnnxRuntimeRuntime.open = noisy(runtime.OnnxRuntimeRuntime.open)
runtime.OnnxRuntimeSession._run = noisy(runtime.OnnxRuntimeSession._run)
runtime.OnnxRuntimeSession._release = noisy(runtime.OnnxRuntimeSession._release)
"""


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A network, its checkpoint, images that are sound, damaged and in no folder, and a runtime that prints."""
    for source in (trained.onnx, trained.checkpoint):
        shutil.copy(source, tmp_path)
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "sitecustomize.py").write_text(_NOISE)
    Image.new("L", (28, 28)).save(tmp_path / "image.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "image.png").read_bytes()[:40])
    return tmp_path


def _run(folder: Path, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder / "noise")}
    program = [sys.executable, "-m", "cnndeploy", *arguments]
    return subprocess.run(
        program, stdout=stdout, stderr=subprocess.PIPE, cwd=folder, env=environment, text=True, check=False
    )


def test_what_a_runtime_prints_is_not_among_the_predictions(folder: Path) -> None:
    images = ("image.png", "half.png", "none.png", ".")
    done = _run(folder, "predict", "lenet.onnx", *images, "--json", "--threads", "1")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (len(found["predictions"]), len(found["failures"])) == (2, 3)  # the folder has the first two again
    assert "C prints this" in done.stderr
    assert "Python prints this" in done.stderr
    done = _run(folder, "predict", "lenet.onnx", *images, "--csv", "--threads", "1")
    assert len(done.stdout.splitlines()) == 6, done.stdout


@pytest.mark.slow
def test_what_a_runtime_prints_in_a_worker_is_not_among_the_results(folder: Path) -> None:
    done = _run(folder, "verify", "lenet.onnx", "--against", "lenet.pt", "--images", "3", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["equivalent"] is True
    assert "C prints this" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_standard_output_that_is_full_is_an_error(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = _run(folder, "predict", "lenet.onnx", "image.png", "--json", stdout=full.fileno())
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("predict", "none.onnx", "image.png", "--json"), 1, "no such file"),
        (("predict", "half.png", "image.png", "--json"), 2, "is an image"),
        (("predict", "text.onnx", "image.png", "--json"), 1, "damaged or not a model file"),
        (("predict", ".", "image.png", "--json"), 1, "is a folder"),
        (("predict", f"{'n' * 300}.onnx", "image.png", "--json"), 1, "name is too long"),
        (("predict", "lenet.onnx", "image.png", "--json", "--csv"), 2, "choose one"),
        (("predict", "lenet.onnx", "image.png", "--json", "--output", "no/x"), 1, "does not exist"),
        (("inspect", "none.onnx", "--json"), 1, "no such file"),
        (("data", "info", "--data", "none", "--json"), 1, "no such folder"),
        (("evaluate", "none.onnx", "--json", "-"), 1, "no such file"),
        (("bench", "none.onnx", "--json", "-"), 1, "no such file"),
        (("quantize", "none.pt", "--json", "-"), 1, "no such file"),
        (("tune", "none.pt", "--json", "-"), 1, "no such file"),
        (("import", "none.onnx", "--output", "x.onnx", "--json", "-"), 1, "no such file"),
    ],
)
def test_an_error_is_json_too(
    arguments: tuple[str, ...],
    code: int,
    error: str,
    cli: Callable[..., Result],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    Path("text.onnx").write_text("no model")
    result = cli(*arguments)
    assert (result.exit_code, error in json.loads(result.stdout)["error"]) == (code, True), result.output
    assert error in result.stderr


def test_a_verification_that_cannot_be_done_prints_one_document(
    cli: Callable[..., Result], folder: Path
) -> None:
    result = cli("verify", folder / "none.onnx", "--against", folder / "lenet.pt", "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["equivalent"] is False


def test_the_best_that_was_tried_is_in_the_file_under_the_name_that_it_would_have_had(
    trained: Trained, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(*arguments: Any, **settings: Any) -> Any:
        return replace(verify_budget(*arguments, **settings), reasons=("it loses 30.00 percentage points",))

    monkeypatch.setattr("cnndeploy.quantization.quantize.verify_budget", worse)
    target, report = tmp_path / "a.onnx", tmp_path / "r.json"
    few = ("--calibration", 16, "--images", 320, "--budget", 20, "--threads", 1)
    done = cli("quantize", trained.checkpoint, "--output", target, *few, "--json", report)
    assert done.exit_code == 5, done.output
    told = json.loads(report.read_text())
    assert "it loses 30.00 percentage points" in told["error"]
    assert told["report"]["artifact"]["path"] == str(target)
    assert told["report"]["files_measured"] == 2
    assert not target.exists()


@pytest.mark.parametrize("stops", [False, True])
def test_what_was_found_out_is_in_the_file_although_nothing_was_made(
    stops: bool, trained: Trained, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another error says nothing that is worth an earlier report."""
    reasons = {"low-rank": "no layer can be smaller"}
    error = CompressionError("the file is gone") if stops else BudgetError("nothing keeps it", None, reasons)

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cnndeploy.compression.compress.compress", fails)
    report = tmp_path / "r.json"
    report.write_text("{}")
    done = cli("compress", trained.checkpoint, "--output", tmp_path / "a.onnx", "--json", report)
    assert done.exit_code == (1 if stops else 5)
    told = {} if stops else {"error": "nothing keeps it", "reasons": reasons}
    assert json.loads(report.read_text()) == told
