"""Resource bombs: small files that ask for memory, time or files that no classifier needs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_pb import ModelProto, NodeProto

node = helper.make_node
_BIG = 2**32


def _constant(name: str, *values: float, dtype: type[np.generic] = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def _scalar(name: str, value: float, dtype: type[np.generic] = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def _model(
    nodes: list[NodeProto],
    constants: list[onnx.TensorProto],
    functions: list[onnx.FunctionProto] | None = None,
) -> ModelProto:
    """Return a classifier, float32 (batch, 1, 28, 28) to (batch, 10), that adds the value ``big`` to its logits."""
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
    returned = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    nodes = [
        node("GlobalAveragePool", ["image"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        *nodes,
        node("ReduceMax", ["big"], ["small"], keepdims=0),
        node("Add", ["flat", "ten"], ["wide"]),
        node("Add", ["wide", "small"], ["logits"]),
    ]
    constants = [_scalar("ten", 0, np.float32), *constants]
    constants[0] = _constant("ten", *range(10), dtype=np.float32)
    graph = helper.make_graph(nodes, "bomb", [given], [returned], constants)
    opsets = [helper.make_opsetid("", 17)]
    if functions:
        opsets.append(helper.make_opsetid("own", 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions or [])


def range_() -> ModelProto:
    return _model(
        [node("Range", ["start", "end", "step"], ["big"])],
        [_scalar(name, value, np.float32) for name, value in (("start", 0), ("end", _BIG), ("step", 1))],
    )


def constant_of_shape() -> ModelProto:
    return _model([node("ConstantOfShape", ["shape"], ["big"])], [_constant("shape", _BIG)])


def expand() -> ModelProto:
    return _model([node("Expand", ["mean", "shape"], ["big"])], [_constant("shape", 1, _BIG, 1, 1)])


def expand_constant() -> ModelProto:
    return _model(
        [node("Expand", ["one", "shape"], ["big"])],
        [_constant("shape", _BIG), _constant("one", 1, dtype=np.float32)],
    )


def tile() -> ModelProto:
    return _model([node("Tile", ["flat", "times"], ["big"])], [_constant("times", 1, _BIG)])


def resize() -> ModelProto:
    return _model(
        [node("Resize", ["mean", "", "", "sizes"], ["big"])], [_constant("sizes", 1, 1, 2**16, 2**16)]
    )


def resize_scales() -> ModelProto:
    return _model(
        [node("Resize", ["mean", "", "scales"], ["big"])],
        [_constant("scales", 1, 1, 2**16, 2**16, dtype=np.float32)],
    )


def pad() -> ModelProto:
    return _model([node("Pad", ["flat", "pads"], ["big"])], [_constant("pads", 0, 0, 0, _BIG)])


def one_hot() -> ModelProto:
    constants = [_constant("where", 0), _constant("depth", _BIG), _constant("values", 0, 1, dtype=np.float32)]
    return _model([node("OneHot", ["where", "depth", "values"], ["big"])], constants)


def random() -> ModelProto:
    return _model([node("RandomNormal", [], ["big"], shape=[_BIG])], [])


def outer_product() -> ModelProto:
    """Two vectors of 2**16 numbers each, of no bytes of weights."""
    nodes = [
        node("Tile", ["flat", "times"], ["row"]),
        node("Transpose", ["row"], ["column"]),
        node("MatMul", ["column", "row"], ["big"]),
    ]
    return _model(nodes, [_constant("times", 1, 2**16)])


def doubling() -> ModelProto:
    """A value that is joined to itself 32 times."""
    nodes = [node("Concat", [f"x{n}", f"x{n}"], [f"x{n + 1}"], axis=1) for n in range(32)]
    return _model([node("Identity", ["flat"], ["x0"]), *nodes, node("Identity", ["x32"], ["big"])], [])


def computed() -> ModelProto:
    """A size that the graph computes from its input."""
    nodes = [
        node("Shape", ["image"], ["shape"]),
        node("Gather", ["shape", "two"], ["side"]),
        node("Pow", ["side", "seven"], ["huge"]),
        node("ConstantOfShape", ["huge"], ["big"]),
    ]
    return _model(nodes, [_constant("two", 2), _constant("seven", 7)])


def computed_of_constants() -> ModelProto:
    nodes = [node("Mul", ["a", "a"], ["huge"]), node("ConstantOfShape", ["huge"], ["big"])]
    return _model(nodes, [_constant("a", 2**16)])


def loop() -> ModelProto:
    """A loop of 2**62 rounds."""
    kinds = (("round", TensorProto.INT64), ("on", TensorProto.BOOL), ("state", TensorProto.FLOAT))
    body = helper.make_graph(
        [node("Identity", ["on"], ["still"]), node("Add", ["state", "one"], ["next"])],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in kinds],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
        [_scalar("one", 1, np.float32)],
    )
    constants = [
        _scalar("rounds", 2**62),
        numpy_helper.from_array(np.array(True), "go"),
        _scalar("zero", 0, np.float32),
    ]
    return _model([node("Loop", ["rounds", "go", "zero"], ["big"], body=body)], constants)


def chain(length: int = 1_000_000) -> bytes:
    """A million nodes, each after the other; written by hand, for onnx would take long."""
    whole = _model([node("Identity", [f"y{length}"], ["big"]), node("Identity", ["flat"], ["y0"])], [])
    nodes = b"".join(
        b"\x0a%c%s" % (len(one), one)
        for one in (
            b"\x0a%c%s\x12%c%s\x22\x03Neg" % (len(a), a, len(b), b)
            for a, b in ((b"y%d" % n, b"y%d" % (n + 1)) for n in range(length))
        )
    )
    # protobuf joins a message that comes twice
    return whole.SerializeToString() + b"\x3a" + _varint(len(nodes)) + nodes


def _varint(number: int) -> bytes:
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def nested(depth: int = 10_000) -> bytes:
    """If in If in If."""

    def field(number: int, content: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    graph = field(12, field(1, b"x"))
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        inner = field(1, b"on") + field(2, b"x") + field(4, b"If") + field(5, attribute)
        graph = field(1, inner) + field(2, b"g")
    whole = _model([node("Identity", ["flat"], ["big"])], [numpy_helper.from_array(np.array(True), "on")])
    return whole.SerializeToString() + field(7, graph)


def nested_few() -> bytes:
    return nested(90)


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes = [node(call, ["x"], ["y"], domain="own") for call in calls[-1:]]
    if len(calls) > 1:
        nodes = [
            node(
                call, ["x" if not n else f"t{n}"], ["y" if n == len(calls) - 1 else f"t{n + 1}"], domain="own"
            )
            for n, call in enumerate(calls)
        ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["x"], ["y"], nodes or [node("Neg", ["x"], ["y"])], opsets)


def functions_in_a_circle() -> ModelProto:
    return _model(
        [node("a", ["flat"], ["big"], domain="own")], [], [_function("a", "b"), _function("b", "a")]
    )


def functions_in_powers() -> ModelProto:
    """32 functions, each of which calls the next one twice: four thousand million nodes."""
    last = [_function("f32")]
    return _model(
        [node("f0", ["flat"], ["big"], domain="own")],
        [],
        [*(_function(f"f{n}", f"f{n + 1}", f"f{n + 1}") for n in range(32)), *last],
    )


def outside(location: str) -> ModelProto:
    """Weights in another file."""
    model = _model([node("Identity", ["w"], ["big"])], [_constant("w", *range(16), dtype=np.float32)])
    tensor = next(each for each in model.graph.initializer if each.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return model


def huge_initializer() -> ModelProto:
    """A constant of 2**32 numbers of which the file holds none."""
    model = _model([node("Identity", ["w"], ["big"])], [_constant("w", 1, dtype=np.float32)])
    tensor = next(each for each in model.graph.initializer if each.name == "w")
    tensor.ClearField("raw_data")
    tensor.dims[:] = [_BIG]
    return model


def sparse() -> ModelProto:
    """A sparse constant of 2**32 numbers, of which one is not 0."""
    model = _model([node("Identity", ["w"], ["big"])], [])
    values = _constant("w", 1, dtype=np.float32)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, _constant("i", 0), [_BIG]))
    return model
