from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnndeploy.errors import QuantizationError
from cnndeploy.exporters import export
from cnndeploy.quantization.graph import Network, in_float16, quantised, with_manifest
from helpers import Trained

RANDOM = np.random.default_rng(0)


def _network(
    *nodes: onnx.NodeProto, output: tuple[str, list[Any]], **weights: tuple[int, ...]
) -> onnx.ModelProto:
    """A graph of float32 (batch, 3, 8, 8) with random weights."""
    tensors = [
        numpy_helper.from_array(RANDOM.normal(size=shape).astype(np.float32), name.replace("_", "."))
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["batch", *output[1]])],
        [*tensors, numpy_helper.from_array(np.array([0, -1]), "flat")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _branched() -> onnx.ModelProto:
    """As an Inception block: two branches, joined, pooled, and a last layer."""
    make = helper.make_node
    return _network(
        make("Conv", ["image", "a.weight"], ["a"], name="first"),
        make("Relu", ["a"], ["b"]),
        make("Conv", ["b", "c.weight"], ["c"]),
        make("Sigmoid", ["c"], ["d"]),
        make("MaxPool", ["b"], ["e"], kernel_shape=[1, 1]),
        make("Concat", ["d", "e"], ["f"], axis=1),
        make("GlobalAveragePool", ["f"], ["g"]),
        make("Reshape", ["g", "flat"], ["h"]),
        make("Gemm", ["h", "i.weight"], ["logits"]),
        output=("logits", [10]),
        a_weight=(4, 3, 1, 1),
        c_weight=(4, 4, 1, 1),
        i_weight=(8, 10),
    )


def _ranges(network: Network) -> dict[str, tuple[float, float]]:
    return {name: (0.0, 1.0) if name in ("b", "image") else (-4.0, 4.0) for name in network.measured()}


def _optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(with_manifest(model, "{}"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def test_every_operator_between_layers_becomes_an_integer_one(tmp_path: Path) -> None:
    network = Network(_branched())
    assert network.layers == {"a": "first", "c": "node_2", "i": "node_8"}
    found = _optimised(quantised(network, _ranges(network), []), tmp_path)
    assert (found["QLinearConv"], found["QGemm"], found["QLinearConcat"]) == (2, 1, 1)
    assert (found["QLinearSigmoid"], found["QLinearGlobalAveragePool"]) == (1, 1)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 0)  # of images, once
    assert not found.keys() & {"Conv", "Gemm", "Relu", "Sigmoid", "Concat"}


def test_a_relu_behind_a_pool_is_folded_into_the_layer_too(tmp_path: Path) -> None:
    make = helper.make_node
    network = Network(
        _network(
            make("Conv", ["image", "a.weight"], ["a"]),
            make("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
            make("Relu", ["b"], ["c"]),
            make("Conv", ["c", "d.weight"], ["d"]),
            make("Relu", ["d"], ["y"]),
            output=("y", [4, 4, 4]),
            a_weight=(4, 3, 1, 1),
            d_weight=(4, 4, 1, 1),
        )
    )
    assert network.measured() == ["image", "c", "y"]
    ranges = {"image": (0.0, 1.0), "c": (0.0, 4.0), "y": (0.0, 4.0)}
    found = _optimised(quantised(network, ranges, []), tmp_path)
    assert found["QLinearConv"] == 2
    assert not found.keys() & {"Conv", "Relu"}
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)  # of the image and of the output


def test_logits_have_more_than_256_values() -> None:
    network = Network(_branched())
    model = quantised(network, _ranges(network), [])
    last = next(node for node in model.graph.node if "logits" in node.output)
    assert last.op_type == "Gemm"


def test_what_a_float_layer_feeds_alone_stays_in_float_too() -> None:
    network = Network(_branched())
    left = network.float_nodes(["c"])
    kinds = {node.name: node.op_type for node in network.model.graph.node}
    assert [kinds[name] for name in left] == ["Conv", "Sigmoid"]


def test_what_comes_behind_the_last_layer_stays_in_float_but_its_relu_is_folded() -> None:
    make = helper.make_node
    network = Network(
        _network(
            make("Conv", ["image", "a.weight"], ["a"]),
            make("Relu", ["a"], ["b"]),
            make("GlobalAveragePool", ["b"], ["c"]),
            make("Reshape", ["c", "flat"], ["logits"]),
            output=("logits", [4]),
            a_weight=(4, 3, 1, 1),
        )
    )
    model = quantised(network, _ranges(network), [])
    assert network.measured()[:2] == ["image", "b"]
    assert [node.op_type for node in model.graph.node][-3:] == [
        "DequantizeLinear",
        "GlobalAveragePool",
        "Reshape",
    ]
    assert "Relu" not in {node.op_type for node in model.graph.node}


def test_work_counts_multiply_adds() -> None:
    assert Network(_branched()).work() == 64 * 4 * 3 + 64 * 4 * 4 + 8 * 10


def test_a_network_without_a_layer_is_refused_by_what_it_has() -> None:
    model = _network(helper.make_node("Tanh", ["image"], ["y"]), output=("y", [3, 8, 8]))
    with pytest.raises(QuantizationError, match="it has Tanh, and those that can"):
        Network(model)


def test_an_operator_that_cannot_be_quantised_stays_in_float(tmp_path: Path) -> None:
    make = helper.make_node
    network = Network(
        _network(
            make("Conv", ["image", "a.weight"], ["a"]),
            make("Tanh", ["a"], ["b"]),
            make("Conv", ["b", "c.weight"], ["c"]),
            make("Relu", ["c"], ["y"]),
            output=("y", [4, 8, 8]),
            a_weight=(4, 3, 1, 1),
            c_weight=(4, 4, 1, 1),
        )
    )
    found = _optimised(quantised(network, _ranges(network), []), tmp_path)
    assert (found["Tanh"], found["QLinearConv"]) == (1, 2)


def test_a_product_of_activations_stays_in_float() -> None:
    make = helper.make_node
    network = Network(
        _network(
            make("Conv", ["image", "a.weight"], ["a"]),
            make("MatMul", ["a", "a"], ["y"]),
            output=("y", [4, 8, 8]),
            a_weight=(4, 3, 1, 1),
        )
    )
    assert network.measured() == ["image", "a"]
    ranges = {"image": (0.0, 1.0), "a": (-4.0, 4.0)}
    assert (
        quantised(network, ranges, []).graph.node[-1].op_type == "MatMul"
    )  # its output is not rounded to 8 bits


def test_what_the_tool_cannot_do_is_said() -> None:
    network = Network(_branched())
    with pytest.raises(QuantizationError, match="cannot quantise this network"):
        quantised(network, {"image": (float("nan"), float("nan"))}, [])


def test_float16_takes_and_gives_float32(trained: Trained) -> None:
    model = onnx.load(trained.onnx)
    half = in_float16(model)
    kinds = {tensor.data_type for tensor in half.graph.initializer if tensor.name.endswith("weight")}
    assert kinds == {TensorProto.FLOAT16}
    for values in (half.graph.input, half.graph.output):
        assert values[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert model == onnx.load(trained.onnx)


def test_probabilities_of_a_float16_file_are_computed_in_float32(trained: Trained, tmp_path: Path) -> None:
    path = export(trained.checkpoint, "onnx", tmp_path / "raw.onnx", input="image").path
    graph = in_float16(onnx.load(path)).graph
    producers = {name: node for node in graph.node for name in node.output}
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    widening = producers[softmax.input[0]]
    assert softmax.output[0] in {output.name for output in graph.output}  # with no rounding behind it
    assert (widening.op_type, widening.attribute[0].i) == ("Cast", TensorProto.FLOAT)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert all(node.input[1] in halves for node in convolutions)
