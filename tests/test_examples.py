"""The examples run as a reader would run them."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

EDGE_DETECTOR = Path(__file__).parents[1] / "examples" / "edge_detector.py"


def test_edge_detector_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, str(EDGE_DETECTOR), "edges.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *steps, kernel, compared = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in steps] == [f"step {step:2}" for step in range(2, 21, 2)]
    losses = [float(line.rpartition(" ")[2]) for line in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1
    assert kernel.startswith("kernel learned: [[")
    assert compared.startswith("edges.onnx: ONNX Runtime differs from the definition by at most ")
    assert [path.name for path in tmp_path.iterdir()] == ["edges.onnx"]


def test_edge_detector_learns_the_kernel_and_exports_it(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("edge_detector", EDGE_DETECTOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "edges.onnx"
    loss, kernel, difference = module.main(path)
    assert loss < 0.1
    np.testing.assert_allclose(kernel, [[1, -1]], atol=0.1)
    assert difference < 1e-6
    (image,) = onnx.load(path).graph.input
    shape = [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]
    assert shape == ["batch", 1, 6, 8]


@pytest.mark.parametrize("wrong", [1e-3, np.nan])
def test_edge_detector_fails_where_the_file_disagrees(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(ort.InferenceSession):  # type: ignore[misc]
        def run(self, *arguments: Any) -> list[Any]:
            return [output + np.float32(wrong) for output in super().run(*arguments)]

    monkeypatch.setattr(ort, "InferenceSession", Wrong)
    monkeypatch.setattr(sys, "argv", [str(EDGE_DETECTOR), str(tmp_path / "edges.onnx")])
    with pytest.raises(SystemExit, match="disagree"):
        runpy.run_path(str(EDGE_DETECTOR), run_name="__main__")


def test_edge_detector_says_where_it_cannot_write(tmp_path: Path) -> None:
    command = [sys.executable, str(EDGE_DETECTOR), str(tmp_path / "missing" / "edges.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr
