"""Preprocessing as ONNX operators, in front of a network's graph.

Images are resized as Pillow resizes them, in one of two forms. ``native`` is the operator Resize on 8-bit images, which
ONNX Runtime computes nearly as Pillow does; other runtimes ignore its ``antialias``, or refuse it. ``portable`` is the
two matrix products that any resizing is: the graph computes their weights from the image's size, in float64 and rounded
to 22 bits as Pillow does. A runtime that has float64 gets every level as Pillow does.

Images stay (batch, height, width, channels) until they have been resized: if the channels go first before Shape is
taken, ONNX Runtime 1.31 and 1.32 cannot load the graph ("Number of elements of input 'sizes'").

Source: Pillow's src/libImaging/Resample.c; ONNX operator Resize.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from cnndeploy.preprocessing import Preprocessing
from cnndeploy.specs import Manifest, TensorSpec

_PRECISION = 2.0**22  # Pillow's weights are whole numbers of so many parts
_CUBIC = -0.5  # the coefficient of Pillow's bicubic filter
_FIRST = "preprocessing"
Value = onnx_ir.Value
_INT64, _FLOAT, _DOUBLE = (
    onnx_ir.DataType.INT64.value,
    onnx_ir.DataType.FLOAT.value,
    onnx_ir.DataType.DOUBLE.value,
)


def put_in_front(model: onnx_ir.Model, manifest: Manifest) -> None:
    """Change a graph from prepared images to logits into one that does what its new ``manifest`` says."""
    graph = model.graph
    (prepared,), (logits,) = graph.inputs, graph.outputs
    steps = _Steps()
    image = _value(manifest.input)
    result = _prepared(steps, image, manifest)
    onnx_ir.convenience.replace_all_uses_with(prepared, result)
    graph.insert_before(graph[0], steps.nodes)
    graph.inputs[0] = image
    last = _Steps()
    outputs = {"probabilities": last("Softmax", logits, axis=1), "prepared": result}
    graph.extend(last.nodes)
    for spec in manifest.outputs[1:]:
        output = outputs[spec.name]
        output.name, output.dtype, output.shape = spec.name, *_type_of(spec)
        graph.outputs.append(output)
    for constant in steps.constants:
        graph.register_initializer(constant)


class _Steps:
    """Nodes in order: a call appends one and returns its output. Numbers and arrays become initializers."""

    def __init__(self) -> None:
        self.nodes: list[onnx_ir.Node] = []
        self.constants: list[Value] = []
        self._numbers = count()

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> Value:
        name = f"{_FIRST}.{next(self._numbers)}.{operator}"
        values = [self._constant(one) if isinstance(one, np.ndarray | np.generic) else one for one in inputs]
        node = onnx_ir.node(operator, values, attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, array: NDArray[Any] | np.generic) -> Value:
        name = f"{_FIRST}.constant.{len(self.constants)}"
        self.constants.append(Value(name=name, const_value=onnx_ir.tensor(np.asarray(array), name=name)))
        return self.constants[-1]


def _prepared(steps: _Steps, image: Value, manifest: Manifest) -> Value:
    """Return the network's input, float32 (batch, channels, *size)."""
    own = manifest.preprocessing
    sides = steps("Shape", image, start=1, end=3)  # height and width
    target = _target(steps, sides, own)
    pixels = steps("Unsqueeze", image, _whole(3)) if own.channels == 1 else image
    if manifest.resizing == "portable":
        resized = _as_products(steps, pixels, sides, target, own)
    elif manifest.resizing == "native":
        resized = _as_operator(steps, pixels, target, own)
    else:  # as torch resizes, after scaling
        scaled = steps("Mul", steps("Cast", pixels, to=_FLOAT), np.float32(own.scale))
        options: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        resized = steps("Resize", scaled, None, None, target, axes=[1, 2], **options)
    cropped = _cropped(steps, resized, target, own)
    channels_first = steps("Transpose", cropped, perm=[0, 3, 1, 2])
    result = steps("Reshape", channels_first, _whole(-1, *own.shape))  # so that every runtime knows the size
    if own.antialias and own.scale == 1 / 255:  # as Preprocessing does it, to the last bit
        result = steps("Div", result, np.float32(255))
    elif own.antialias:
        result = steps("Mul", result, np.float32(own.scale))
    if own.mean != 0.0 or own.std != 1.0:
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (own.means, own.stds))
        result = steps("Div", steps("Sub", result, mean), std)
    return result


def _target(steps: _Steps, sides: Value, own: Preprocessing) -> Any:
    """Return the height and width that images are resized to, as Preprocessing.resized_size() does."""
    if not isinstance(own.resize, int):
        return _whole(*(own.resize or own.size))
    shorter = steps("ReduceMin", sides, _whole(0), keepdims=1)
    return steps("Div", steps("Mul", sides, _whole(own.resize)), shorter)


def _as_operator(steps: _Steps, pixels: Value, target: Any, own: Preprocessing) -> Value:
    options: dict[str, Any] = {"coordinate_transformation_mode": "half_pixel", "axes": [1, 2]}
    # at an image's edges Pillow drops the weights beyond, which is not the operator's default
    options |= {"antialias": 1, "exclude_outside": 1, "mode": "linear"}
    if own.interpolation == "bicubic":
        options |= {"mode": "cubic", "cubic_coeff_a": _CUBIC}
    return steps("Cast", steps("Resize", pixels, None, None, target, **options), to=_FLOAT)


def _as_products(steps: _Steps, pixels: Value, sides: Value, target: Any, own: Preprocessing) -> Value:
    """Resize the width, then the height, each by one matrix product, and round to 8 bits after each."""
    channels_first = steps("Cast", steps("Transpose", pixels, perm=[0, 3, 1, 2]), to=_DOUBLE)
    rows, columns = (_weights(steps, sides, target, axis, own) for axis in (0, 1))
    across = _to_levels(steps, steps("MatMul", channels_first, steps("Transpose", columns, perm=[1, 0])))
    down = _to_levels(steps, steps("MatMul", rows, across))  # (batch, channels, *target)
    return steps("Cast", steps("Transpose", down, perm=[0, 2, 3, 1]), to=_FLOAT)


def _to_levels(steps: _Steps, sums: Value) -> Value:
    halves = steps("Add", sums, np.float64(_PRECISION / 2))
    floored = steps("Floor", steps("Mul", halves, np.float64(1 / _PRECISION)))
    return steps("Clip", floored, np.float64(0), np.float64(255))


def _weights(steps: _Steps, sides: Value, target: Any, axis: int, own: Preprocessing) -> Value:
    """Return the weight of each of the image's rows, or columns, in each of the result's, (new, old).

    As Pillow computes them: a pixel's weight falls with its distance from the new pixel's centre, in units that grow
    with the ratio if images shrink; each row is divided by its sum, and rounded to whole parts.
    """

    def length(of: Any) -> tuple[Value, Value]:
        whole = steps("Squeeze", steps("Gather", of, _whole(axis), axis=0))
        return whole, steps("Cast", whole, to=_DOUBLE)

    def number(value: float) -> np.float64:
        return np.float64(value)

    def pixels(count: Value, axis: int) -> Value:
        numbers = steps("Range", np.int64(0), count, np.int64(1))
        return steps("Unsqueeze", steps("Cast", numbers, to=_DOUBLE), _whole(axis))

    (old, old_length), (new, new_length) = length(sides), length(target)
    ratio = steps("Div", old_length, new_length)
    unit = steps("Max", ratio, number(1))
    reach = steps("Mul", unit, number(1 if own.interpolation == "bilinear" else 2))
    centres = steps("Mul", steps("Add", pixels(new, 1), number(0.5)), ratio)  # (new, 1)
    edges = [
        steps("Floor", steps("Add", steps(side, centres, reach), number(0.5))) for side in ("Sub", "Add")
    ]
    low, high = steps("Max", edges[0], number(0)), steps("Min", edges[1], old_length)
    places = pixels(old, 0)  # (1, old)
    offset = steps("Add", steps("Sub", places, centres), number(0.5))
    distance = steps("Abs", steps("Mul", offset, steps("Div", number(1), unit)))  # (new, old)
    within = steps("And", steps("GreaterOrEqual", places, low), steps("Less", places, high))
    kernel = _bilinear if own.interpolation == "bilinear" else _bicubic
    weights = steps("Where", within, kernel(steps, distance), number(0))
    sums = steps("ReduceSum", weights, _whole(1), keepdims=1)
    parts = steps("Mul", steps("Div", weights, sums), number(_PRECISION))
    rounded = steps("Floor", steps("Add", steps("Abs", parts), number(0.5)))  # away from zero
    return steps("Mul", steps("Sign", parts), rounded)


def _bilinear(steps: _Steps, distance: Value) -> Value:
    return steps("Max", steps("Sub", np.float64(1), distance), np.float64(0))


def _bicubic(steps: _Steps, x: Value) -> Value:
    """Keys' cubic convolution."""

    def number(value: float) -> np.float64:
        return np.float64(value)

    # ((a + 2) x - (a + 3)) x x + 1
    near = steps("Sub", steps("Mul", x, number(_CUBIC + 2)), number(_CUBIC + 3))
    near = steps("Add", steps("Mul", steps("Mul", near, x), x), number(1))
    # (((x - 5) x + 8) x - 4) a
    far = steps("Add", steps("Mul", steps("Sub", x, number(5)), x), number(8))
    far = steps("Mul", steps("Sub", steps("Mul", far, x), number(4)), number(_CUBIC))
    beyond_one = steps("Where", steps("Less", x, number(2)), far, number(0))
    return steps("Where", steps("Less", x, number(1)), near, beyond_one)


def _cropped(steps: _Steps, images: Value, target: Any, own: Preprocessing) -> Value:
    """Cut images (batch, height, width, channels) around their centre; black goes where they are too small."""
    if own.resize is None:
        return images
    size = _whole(*own.size)
    if min(own.resize if isinstance(own.resize, tuple) else (own.resize,)) < max(own.size):
        lacking = steps("Max", steps("Sub", size, target), _whole(0))
        before = steps("Div", lacking, _whole(2))
        ends = (before, steps("Sub", lacking, before))
        zero = _whole(
            0
        )  # of the other axes: with Pad's input axes, ONNX Runtime's optimiser breaks the graph
        pads = steps("Concat", *(part for end in ends for part in (zero, end, zero)), axis=0)
        images = steps("Pad", images, pads, np.float32(0))
        target = steps("Add", target, lacking)
    spare = steps("Cast", steps("Sub", target, size), to=_FLOAT)
    start = steps("Cast", steps("Round", steps("Mul", spare, np.float32(0.5))), to=_INT64)  # ties to even
    return steps("Slice", images, start, steps("Add", start, size), _whole(1, 2))


def _whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _value(spec: TensorSpec) -> Value:
    dtype, shape = _type_of(spec)
    return Value(name=spec.name, type=onnx_ir.TensorType(dtype), shape=shape)


def _type_of(spec: TensorSpec) -> tuple[onnx_ir.DataType, onnx_ir.Shape]:
    return onnx_ir.DataType.from_numpy(np.dtype(spec.dtype)), onnx_ir.Shape(spec.shape)
