"""Broken artifacts that take raw images; they join those of broken.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from broken import DEFECTS, Attempt, Defect, _insert_before, _node, _saved
from onnx import helper, numpy_helper

from cnndeploy.exporters import export
from helpers import Trained


@cache
def _exported(checkpoint: Path, simplify: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.onnx"
        return export(checkpoint, "onnx", path, input="image", simplify=simplify).path.read_bytes()


def image_defect(
    name: str, reason: str, simplify: bool = True
) -> Callable[[Callable[[onnx.ModelProto], None]], None]:
    def register(edit: Callable[[onnx.ModelProto], None]) -> None:
        def make(good: Trained, folder: Path) -> Attempt:
            model = onnx.load_from_string(_exported(good.checkpoint, simplify))
            edit(model)
            return Attempt(_saved(model, folder))

        DEFECTS.append(Defect(f"{name} (image)", "onnx", reason, make, ("lenet", "vgg11_small")))

    return register


def _set_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


@image_defect("scale of 255 forgotten", r"departs first in features\.0\S* \(Conv2d\)", simplify=False)
def scale_of_255_forgotten(model: onnx.ModelProto) -> None:
    _set_constant(model, _node(model, "Mul").input[1], np.array(1, np.float32))


@image_defect("scale left to the graph too", r"departs first in features\.0\S* \(Conv2d\)")
def scale_left_to_the_graph_too(model: onnx.ModelProto) -> None:
    """The graph divides by 255 although its first weights have been."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    at = next(place for place, node in enumerate(model.graph.node) if node.op_type == "Resize")
    _insert_before(model, at, helper.make_node("Mul", ["scale"], []))


@image_defect("height and width exchanged", r"departs first in features\.0\S* \(Conv2d\)")
def height_and_width_exchanged(model: onnx.ModelProto) -> None:
    _insert_before(model, 0, helper.make_node("Transpose", [], [], perm=[0, 2, 1]))


@image_defect("resized with aligned corners", r"departs first in features\.0|^on images of 45 x 33: 7 of 7")
def resized_with_aligned_corners(model: onnx.ModelProto) -> None:
    """Which for LeNet shows on images of other sizes alone."""
    attributes = _node(model, "Resize").attribute
    mode = next(each for each in attributes if each.name == "coordinate_transformation_mode")
    mode.s = b"align_corners"


@image_defect("resized by a fixed factor", r"^on images of 45 x 33: it fails on a batch of 7")
def resized_by_a_fixed_factor(model: onnx.ModelProto) -> None:
    node = _node(model, "Resize")
    size = next(each for each in model.graph.initializer if each.name == node.input[3])
    factor = numpy_helper.to_array(size)[0] / 28
    model.graph.initializer.append(numpy_helper.from_array(np.array([factor] * 2, np.float32), "factors"))
    node.input[:] = [node.input[0], "", "factors"]


@image_defect("probabilities of other logits", "are not the softmax of its logits")
def probabilities_of_other_logits(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.01, np.float32), "temperature"))
    at = next(place for place, node in enumerate(model.graph.node) if node.op_type == "Softmax")
    _insert_before(model, at, helper.make_node("Mul", ["temperature"], []))


@image_defect("weights nan", r"departs first in \S+ \((Conv2d|Linear)\): it gives NaN or infinite values")
def weights_nan(model: onnx.ModelProto) -> None:
    bias = next(each for each in model.graph.initializer if tuple(each.dims) == (10,))
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))


@image_defect("it takes one image only", "the batch axis is fixed")
def it_takes_one_image_only(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
