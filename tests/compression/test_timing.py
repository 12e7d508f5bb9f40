"""How long layers take: the graphs that are timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cnndeploy.compression import timing
from cnndeploy.compression.timing import milliseconds
from cnndeploy.progress import Deadline, silent
from cnndeploy.quantization.search import open_on_cpu

IMAGE, VECTOR = (1, 4, 9, 8), (1, 8)
Case = tuple[list[nn.Module], tuple[int, ...]]
CASES: list[Case] = [
    ([nn.Conv2d(4, 6, 3, padding="same", dilation=2)], IMAGE),
    ([nn.Conv2d(4, 6, (1, 5), padding="same")], IMAGE),
    ([nn.Conv2d(4, 6, 3, padding="valid", stride=2)], IMAGE),
    ([nn.Conv2d(4, 3, 5, padding=(2, 1)), nn.Conv2d(3, 6, 1)], IMAGE),
    ([nn.Conv2d(4, 4, 3, groups=4)], IMAGE),
    ([nn.Linear(8, 3), nn.Linear(3, 5)], VECTOR),
]


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_has_the_shapes_of_its_layers(case: Case, quantized: bool) -> None:
    layers, shape = case
    session = open_on_cpu(timing._model(layers, shape, quantized), 1)
    kind = np.uint8 if quantized else np.float32
    (output,) = session.run(None, {"x": np.zeros(shape, kind)})
    assert output.shape == nn.Sequential(*layers)(torch.zeros(shape)).shape
    assert output.dtype == kind


@pytest.mark.parametrize("case", CASES)
def test_int8_is_computed_in_int8(case: Case, tmp_path: Path) -> None:
    """ONNX Runtime puts one operator in the place of three; else the time would be that of float32."""
    layers, shape = case
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    content = timing._model(layers, shape, quantized=True).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    wanted = "QLinearConv" if isinstance(layers[0], nn.Conv2d) else "QLinearMatMul"
    assert [kind for kind in found if kind != "Transpose"] == [wanted] * len(layers)


def test_the_faster_of_float_and_int8_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of both counts, and of all turns."""
    figures = {
        ("float", 8): [3.0, 2.0, 4.0],
        ("int8", 8): [5.0] * 3,
        ("float", 4): [3.0] * 3,
        ("int8", 4): [1.0] * 3,
    }
    monkeypatch.setattr(timing, "open_on_cpu", lambda model, threads: (model, threads))
    monkeypatch.setattr(timing, "_model", lambda modules, shape, quantized: (len(modules), quantized))

    def once(session: tuple[tuple[int, bool], int], image: object) -> float:
        (size, quantized), threads = session
        assert threads == 2
        return figures["int8" if quantized else "float", size].pop(0) / 1000

    monkeypatch.setattr(timing, "_once", once)
    layer = nn.Linear(3, 3)
    ways = {"a": {0: ([layer] * 8, (3,)), 1: ([layer] * 4, (3,))}}
    times = milliseconds(ways, threads=2, int8=True, deadline=Deadline(), progress=silent)
    assert times == {"a": {0: pytest.approx(2), 1: pytest.approx(1)}}
