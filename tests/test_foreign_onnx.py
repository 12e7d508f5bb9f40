"""ONNX files of other tools, opened with labels and preprocessing: taken for what they are, or refused in words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign import (
    LABELS,
    SIDE,
    batch_in_a_reshape,
    classifier,
    extended,
    in_constant_nodes,
    old,
    with_dropout,
)
from onnx import helper

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError

TOLD: dict[str, Any] = {
    "labels": LABELS,
    "preprocessing": cnndeploy.Preprocessing(size=(SIDE, SIDE), channels=3, antialias=True),
    "threads": 1,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs.onnx"


def _probabilities(model: onnx.ModelProto, path: Path, runtime: str = "onnxruntime") -> np.ndarray[Any, Any]:
    onnx.save(model, path)
    with cnndeploy.load(path, runtime=runtime, **TOLD) as opened:
        found = opened.probabilities(IMAGES)
        assert np.array_equal(pickle.loads(pickle.dumps(opened)).probabilities(IMAGES), found)  # noqa: S301
    return found


def test_weights_are_no_inputs(path: Path) -> None:
    onnx.save(old(), path)
    assert [spec["name"] for spec in Artifact.open(path).describe()["inputs"]] == ["data"]


def test_probabilities_are_those_of_the_file(path: Path) -> None:
    expected = _probabilities(classifier(), path)
    softmax: tuple[str, list[str], dict[str, Any]] = ("Softmax", [], {"axis": 1})
    for model in (
        extended(softmax),
        extended(("Softmax", [], {"axis": -1}), ("Identity", [], {})),
        extended(("LogSoftmax", [], {"axis": 1})),
        old(),
    ):
        np.testing.assert_allclose(_probabilities(model, path), expected, rtol=1e-5)
    onnx.save(extended(softmax), path)
    assert Artifact.open(path).describe()["probabilities"] == ["behind_0"]
    onnx.save(extended(("Softmax", [], {"axis": 0})), path)  # of other images' logits
    assert "probabilities" not in Artifact.open(path).describe()


def _sure() -> onnx.ModelProto:
    """Return the classifier with one probability that is 0 in float32."""
    model = extended(("Mul", ["much"], {}), ("Softmax", [], {"axis": 1}))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e6, np.float32), "much"))
    return model


def test_a_probability_of_zero_is_one(path: Path) -> None:
    found = _probabilities(_sure(), path)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert found.min() < 1e-30


def _training_batch_norm(opset: int) -> onnx.ModelProto:
    model = classifier(opset=opset)
    values = {"s": np.ones(3), "o": np.zeros(3), "m": np.zeros(3), "v": np.ones(3)}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()
    )
    outputs, mode = ["n", "rm", "rv"], dict[str, Any](training_mode=1)
    if opset < 14:
        outputs, mode = [*outputs, "sm", "sv"], dict[str, Any]()
    model.graph.node.insert(0, helper.make_node("BatchNormalization", ["data", *values], outputs, **mode))
    model.graph.node[1].input[0] = "n"
    return model


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (_training_batch_norm(15), "BatchNormalization"),
        (_training_batch_norm(9), None),  # which ONNX Runtime refuses itself
        (with_dropout(training=True), "Dropout"),
    ],
)
def test_a_file_in_training_mode_is_refused(model: onnx.ModelProto, operator: str | None, path: Path) -> None:
    onnx.save(model, path)
    assert "in_training_mode" in Artifact.open(path).describe()
    reason = f"in training mode: {operator} makes.*model.eval()" if operator else "theirs.onnx"
    with pytest.raises(ArtifactError, match=reason):
        cnndeploy.load(path, **TOLD)


def test_dropout_that_passes_everything_on_is_no_training(path: Path) -> None:
    expected = _probabilities(classifier(), path)
    np.testing.assert_array_equal(_probabilities(with_dropout(training=False), path), expected)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_height_and_width_that_are_free_take_the_size_that_was_told(runtime: str, path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    expected = _probabilities(classifier(), path, runtime)
    for model in (classifier(sides=("height", "width")), in_constant_nodes()):
        np.testing.assert_allclose(_probabilities(model, path, runtime), expected, rtol=1e-5)
    for sides in ((SIDE, SIDE + 1), ("height", SIDE + 1)):
        onnx.save(classifier(sides=sides), path)
        with pytest.raises(ArtifactError, match=r"it should take float32 \(batch, 3, 16, 16\)"):
            cnndeploy.load(path, runtime=runtime, **TOLD)


def test_a_second_file_that_is_missing_is_named(path: Path) -> None:
    onnx.save(classifier(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ArtifactError, match=r"in other files\. cnndeploy import makes one file"):
        Artifact.open(path)
    path.with_name("weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"'weights\.bin' is not beside it\. Copy that there too"):
        Artifact.open(path)


def test_axes_of_minus_one_and_zero_are_of_any_length_or_refused(path: Path) -> None:
    expected = _probabilities(classifier(), path)
    for batch in (-1, 0):
        model = classifier(batch=batch)
        onnx.save(model, path)
        assert Artifact.open(path).describe()["inputs"][0]["shape"] == ("?", 3, SIDE, SIDE)
        if batch == -1:
            np.testing.assert_array_equal(_probabilities(model, path), expected)
        else:
            with pytest.raises(ArtifactError, match=r"theirs\.onnx"), cnndeploy.load(path, **TOLD) as opened:
                opened.classify(IMAGES)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_batch_of_one_inside_a_free_one_is_an_error_and_never_mixes_images(
    runtime: str, path: Path
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model = batch_in_a_reshape(1)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)
    # OpenVINO sees at once that the output does not fit
    with (
        pytest.raises(ArtifactError, match=r"theirs\.onnx"),
        cnndeploy.load(path, runtime=runtime, **TOLD) as opened,
    ):
        opened.classify(IMAGES)
