"""How long a layer takes on ONNX Runtime, as it is and smaller."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array
from torch import nn

from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.search import open_on_cpu

_ROUNDS, _SECONDS = 3, 0.01  # that each layer is timed for, in each round
Constants = dict[str, NDArray[Any]]
Way = tuple[
    Sequence[nn.Module], tuple[int, ...]
]  # layers in a row, and the shape of their input, without the batch


def milliseconds(
    layers: Mapping[str, Mapping[int, Way]],
    *,
    threads: int,
    int8: bool,
    deadline: Deadline,
    progress: Progress,
) -> dict[str, dict[int, float]]:
    """Return for each layer the milliseconds of a call for one image, by its size; that of 0 is the layer as it is.

    With ``int8`` each is timed in float32 and in int8, and the faster counts: what saves time in float32 may save none
    in int8. Sizes of a layer are timed in turns, and of the turns the fastest counts: other programs only slow down.
    """
    times: dict[str, dict[int, float]] = {}
    for done, (path, ways) in enumerate(layers.items()):
        progress(done, len(layers), f"Timing {path}")
        deadline.check()
        times[path] = _fastest(ways, threads, int8)
    return times


def _fastest(ways: Mapping[int, Way], threads: int, int8: bool) -> dict[int, float]:
    opened = [
        (size, open_on_cpu(_model(modules, (1, *shape), quantized), threads), _image(shape, quantized))
        for size, (modules, shape) in ways.items()
        for quantized in (False, True)[: 1 + int8]
    ]
    times = dict.fromkeys(ways, math.inf)
    for size, session, image in opened * _ROUNDS:
        times[size] = min(times[size], 1000 * _once(session, image))
    return times


def _image(shape: tuple[int, ...], quantized: bool) -> Any:
    values = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    return (32 * values + 128).clip(0, 255).astype(np.uint8) if quantized else values


def _once(session: Any, image: Any) -> float:
    """Return the median seconds of a call."""
    session.run(None, {"x": image})
    samples, ends = list[float](), time.perf_counter() + _SECONDS
    while not samples or time.perf_counter() < ends:
        started = time.perf_counter()
        session.run(None, {"x": image})
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def _model(modules: Sequence[nn.Module], shape: tuple[int, ...], quantized: bool) -> onnx.ModelProto:
    """Return a graph of layers in a row, with weights that mean nothing; quantised, both ends are uint8."""
    nodes, constants, name = list[onnx.NodeProto](), Constants(), "x"
    for number, module in enumerate(modules):
        assert isinstance(module, nn.Conv2d | nn.Linear)  # noqa: S101 - split() makes nothing else
        more, name = (_in_int8 if quantized else _in_float)(module, number, name, constants)
        nodes += more
    given = helper.make_tensor_value_info("x", TensorProto.UINT8 if quantized else TensorProto.FLOAT, shape)
    weights = [from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layers", [given], [onnx.ValueInfoProto(name=name)], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _in_float(
    module: nn.Conv2d | nn.Linear, number: int, given: str, constants: Constants
) -> tuple[list[onnx.NodeProto], str]:
    """Return the node of a layer, and its output; add its weights."""
    weight, output = f"w{number}", f"y{number}"
    constants[weight] = np.full(_weight(module).shape, 0.01, np.float32)
    return [_node(module, [given, weight], output)], output


def _in_int8(
    module: nn.Conv2d | nn.Linear, number: int, given: str, constants: Constants
) -> tuple[list[onnx.NodeProto], str]:
    """Return the same in int8, with a scale for each output, as quantize() has it."""
    shape, axis = _weight(module).shape, 0 if isinstance(module, nn.Conv2d) else 1
    weights, activations = [f"w{number}", f"scale{number}", f"zero{number}"], ["scale", "zero"]
    constants[weights[0]] = np.ones(shape, np.int8)
    constants[weights[1]] = np.full(shape[axis], 0.01, np.float32)
    constants[weights[2]] = np.zeros(shape[axis], np.int8)
    constants["scale"], constants["zero"] = np.array(0.05, np.float32), np.array(128, np.uint8)
    inputs, output, quantized = [f"x{number}", f"v{number}"], f"y{number}", f"q{number}"
    nodes = [
        helper.make_node("DequantizeLinear", [given, *activations], inputs[:1]),
        helper.make_node("DequantizeLinear", weights, inputs[1:], axis=axis),
        _node(module, inputs, output),
        helper.make_node("QuantizeLinear", [output, *activations], [quantized]),
    ]
    return nodes, quantized


def _weight(module: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """Return a layer's weight as ONNX has it: a linear layer's is (inputs, outputs)."""
    return module.weight if isinstance(module, nn.Conv2d) else module.weight.T


def _node(module: nn.Conv2d | nn.Linear, inputs: list[str], output: str) -> onnx.NodeProto:
    if isinstance(module, nn.Linear):
        return helper.make_node("MatMul", inputs, [output])
    attributes: dict[str, Any] = {
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "pads": _pads(module),
    }
    return helper.make_node("Conv", inputs, [output], group=module.groups, **attributes)


def _pads(module: nn.Conv2d) -> list[int]:
    """Return the padding before each axis, then after it; ONNX Runtime takes no auto_pad with dilation."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    if module.padding == "same":
        missing = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
        before = [number // 2 for number in missing]
        return [*before, *(number - start for number, start in zip(missing, before, strict=True))]
    return [*module.padding, *module.padding]
