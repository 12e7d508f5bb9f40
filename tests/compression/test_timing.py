"""How long layers take: the graphs that are timed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnndeploy.compression import timing
from cnndeploy.compression.timing import milliseconds
from cnndeploy.progress import Deadline, silent
from cnndeploy.quantization.search import open_on_cpu


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(4, 6, 3, padding="same", dilation=2)],
        [nn.Conv2d(4, 6, (1, 5), padding="same")],
        [nn.Conv2d(4, 6, 3, padding="valid", stride=2)],
        [nn.Conv2d(4, 3, 5, padding=(2, 1)), nn.Conv2d(3, 6, 1)],
        [nn.Conv2d(4, 8, 3, groups=4)],
    ],
)
def test_a_graph_has_the_shapes_of_its_layers(layers: list[nn.Module], quantized: bool) -> None:
    given = torch.zeros(1, 4, 9, 8)
    session = open_on_cpu(timing._model(layers, (1, 4, 9, 8), quantized), 1)
    (output,) = session.run(None, {"x": given.numpy().astype(np.uint8 if quantized else np.float32)})
    assert output.shape == nn.Sequential(*layers)(given).shape
    assert output.dtype == (np.uint8 if quantized else np.float32)


def test_the_faster_of_float_and_int8_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both, and of all turns."""
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
