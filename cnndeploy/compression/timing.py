"""How long a layer takes on ONNX Runtime, as it is and smaller."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.search import open_on_cpu

_ROUNDS, _SECONDS = 3, 0.01  # that each layer is timed for, in each round
Way = tuple[
    Sequence[nn.Module], tuple[int, ...]
]  # layers in a row, and the shape of their input, without the batch


def milliseconds(
    layers: Mapping[str, Mapping[int, Way]], *, threads: int, deadline: Deadline, progress: Progress
) -> dict[str, dict[int, float]]:
    """Return for each layer the milliseconds of a call for one image, by its size; that of 0 is the layer as it is.

    Sizes of a layer are timed in turns, and of the turns the fastest counts: other programs only slow down.
    """
    times: dict[str, dict[int, float]] = {}
    for done, (path, ways) in enumerate(layers.items()):
        progress(done, len(layers), f"Timing {path}")
        deadline.check()
        sessions = {}
        for size, (modules, shape) in ways.items():
            image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
            sessions[size] = open_on_cpu(_model(modules, image.shape), threads), image
        rounds = [{size: _once(*session) for size, session in sessions.items()} for _ in range(_ROUNDS)]
        times[path] = {size: 1000 * min(one[size] for one in rounds) for size in sessions}
    return times


def _once(session: Any, image: Any) -> float:
    """Return the median seconds of a call."""
    session.run(None, {"x": image})
    samples, ends = list[float](), time.perf_counter() + _SECONDS
    while not samples or time.perf_counter() < ends:
        started = time.perf_counter()
        session.run(None, {"x": image})
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def _model(modules: Sequence[nn.Module], shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return a graph of layers in a row, with weights that mean nothing."""
    nodes, weights, name = [], [], "x"
    for number, module in enumerate(modules):
        output = f"y{number}"
        node, values = _node(module, f"w{number}", name, output)
        nodes.append(node)
        weights.append(values)
        name = output
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "layers", [given], [onnx.ValueInfoProto(name=name)], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _node(module: nn.Module, weight: str, given: str, output: str) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    assert isinstance(module, nn.Conv2d | nn.Linear)  # noqa: S101 - split() makes nothing else
    shape = module.weight.shape if isinstance(module, nn.Conv2d) else module.weight.T.shape
    values = np.full(shape, 0.01, np.float32)
    tensor = onnx.numpy_helper.from_array(values, weight)
    if isinstance(module, nn.Linear):
        return helper.make_node("MatMul", [given, weight], [output]), tensor
    padding: dict[str, Any] = {}
    if module.padding == "same":
        padding["auto_pad"] = "SAME_UPPER"
    elif module.padding != "valid":
        padding["pads"] = [*module.padding, *module.padding]
    attributes = {"strides": list(module.stride), "dilations": list(module.dilation), **padding}
    attributes["group"] = module.groups
    return helper.make_node("Conv", [given, weight], [output], **attributes), tensor
