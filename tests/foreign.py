"""A classifier in ONNX as other tools write it: in many layouts, dtypes and manners, all computing the same.

It tells the five colours of ``helpers.COLOURS`` apart, by the squared distance of an image's mean colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from helpers import COLOURS

SIDE = 16
LABELS = tuple(COLOURS)
PREPROCESSING: Mapping[str, Any] = {"size": [SIDE, SIDE], "channels": 3, "antialias": True}
_CENTRES = np.array(list(COLOURS.values()), np.float32) / 255  # (5, 3)


def classifier(
    *,
    batch: Any = "batch",
    sides: tuple[Any, Any] = (SIDE, SIDE),
    kind: int = TensorProto.FLOAT,
    opset: int = 18,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Return the classifier, (batch, 3, height, width) to (batch, 5), float of one kind, from 0 to 1."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"w": 2 * _CENTRES[:, :, None, None], "b": -(_CENTRES**2).sum(axis=1)}
    nodes = [
        helper.make_node("Conv", ["data", "w", "b"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["fc"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("data", kind, [batch, 3, *sides])],
        [helper.make_tensor_value_info("fc", kind, [batch, 5])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def extended(
    *after: tuple[str, list[str], dict[str, Any]], shape: list[Any] | None = None, **given: Any
) -> onnx.ModelProto:
    """Return the classifier with nodes behind its logits: operator, other inputs, attributes; the last is returned."""
    model = classifier(**given)
    name = "fc"
    for number, (operator, others, attributes) in enumerate(after):
        model.graph.node.append(
            helper.make_node(operator, [name, *others], [f"behind_{number}"], **attributes)
        )
        name = f"behind_{number}"
    model.graph.output[0].name = name
    if shape is not None:
        kind = model.graph.output[0].type.tensor_type.elem_type
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(name, kind, shape))
    return model


def with_constant(model: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    """Add an initializer."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return model


def old() -> onnx.ModelProto:
    """Return it as IR 3 has it, with weights among the inputs, opset 9, and a softmax of that time."""
    model = extended(("Softmax", [], {}), opset=9, ir_version=3)
    for each in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    return model


def in_constant_nodes() -> onnx.ModelProto:
    """Return it with its weights in nodes, as Paddle writes them, and axes of -1."""
    model = classifier(batch=-1, sides=(-1, -1), opset=11)
    for number, each in enumerate(list(model.graph.initializer)):
        model.graph.node.insert(number, helper.make_node("Constant", [], [each.name], value=each))
        model.graph.initializer.remove(each)
    return model


def batch_in_a_reshape(size: int) -> onnx.ModelProto:
    """Return it with a fixed batch that is written into a reshape too, as old exports of PyTorch have it."""
    model = with_constant(classifier(batch=size), "shape", np.array([size, -1], np.int64))
    model.graph.node[2].CopyFrom(helper.make_node("Reshape", ["pooled", "shape"], ["fc"]))
    return model


def channels_last(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return it with (batch, height, width, 3), as Keras has it; of grey levels if they are uint8."""
    model = classifier()
    given = model.graph.input[0]
    given.CopyFrom(helper.make_tensor_value_info("pixels", kind, [0, SIDE, SIDE, 3]))
    name, nodes = "pixels", []
    if kind == TensorProto.UINT8:
        model = with_constant(model, "levels", np.float32(255))
        nodes = [
            helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "levels"], ["scaled"]),
        ]
        name = "scaled"
    nodes.append(helper.make_node("Transpose", [name], ["data"], perm=[0, 3, 1, 2]))
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    return model


def with_dropout(*, training: bool) -> onnx.ModelProto:
    """Return it with dropout behind its logits, which passes them on unless it is in training mode."""
    model = with_constant(extended(("Dropout", ["ratio", "mode"], {})), "ratio", np.float32(0.5))
    return with_constant(model, "mode", training)


def two_outputs() -> onnx.ModelProto:
    """Return it with probabilities before its logits."""
    model = classifier()
    model.graph.node.append(helper.make_node("Softmax", ["fc"], ["probabilities"], axis=1))
    model.graph.node.append(helper.make_node("Identity", ["fc"], ["logits"]))
    del model.graph.output[:]
    for name in ("probabilities", "logits"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5]))
    return model


def padded_before_a_maximum() -> onnx.ModelProto:
    """Return it with a padding of zeros before a max pooling of negative values, which ONNX Runtime 1.31 merges."""
    model = with_constant(classifier(), "pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    model = with_constant(model, "offset", np.float32(-100))
    nodes = [
        helper.make_node("Add", ["maps", "offset"], ["negative"]),
        helper.make_node("Pad", ["negative", "pads"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["pooled_maps"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    for place, node in enumerate(nodes, start=1):
        model.graph.node.insert(place, node)
    model.graph.node[4].input[0] = "pooled_maps"
    return model


def out_of_order() -> onnx.ModelProto:
    """Return it with the first node last, as ONNX Runtime's converter to float16 leaves its casts."""
    model = channels_last()
    first = model.graph.node.pop(0)
    model.graph.node.append(first)
    return model


def with_label() -> onnx.ModelProto:
    """Return it with the label's number before its probabilities, as tools for all kinds of models have it."""
    model = extended(("Softmax", [], {"axis": 1}))
    model.graph.node.append(helper.make_node("ArgMax", ["behind_0"], ["label"], axis=1, keepdims=0))
    model.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    return model


FORMS: dict[str, Callable[[], onnx.ModelProto]] = {
    "plain": classifier,
    "free height and width": lambda: classifier(sides=("h", "w")),
    "IR 3": old,
    "weights in nodes, axes of -1": in_constant_nodes,
    "batch of one": lambda: classifier(batch=1),
    "batch of four": lambda: classifier(batch=4),
    "batch of one in a reshape": lambda: batch_in_a_reshape(1),
    "channels last": channels_last,
    "uint8": lambda: channels_last(TensorProto.UINT8),
    "float16": lambda: classifier(kind=TensorProto.FLOAT16),
    "softmax": lambda: extended(("Softmax", [], {"axis": 1})),
    "log softmax": lambda: extended(("LogSoftmax", [], {"axis": -1})),
    "softmax of float16, cast": lambda: extended(
        ("Softmax", [], {"axis": 1}), ("Identity", [], {}), kind=TensorProto.FLOAT16
    ),
    "maps of one pixel": lambda: with_constant(
        extended(("Unsqueeze", ["axes"], {}), shape=["batch", 5, 1, 1]), "axes", np.array([2, 3], np.int64)
    ),
    "dropout": lambda: with_dropout(training=False),
    "two outputs": two_outputs,
    "nodes out of order": out_of_order,
    "batch of three in a reshape": lambda: batch_in_a_reshape(3),
    "label and softmax": with_label,
}
