from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from foreign import (
    FORMS,
    LABELS,
    PREPROCESSING,
    SIDE,
    channels_last,
    classifier,
    extended,
    padded_before_a_maximum,
    two_outputs,
    with_constant,
    with_dropout,
)
from onnx import TensorProto, helper

import cnndeploy
from cnndeploy.certificate import certificate_path
from cnndeploy.datasets import open_dataset
from cnndeploy.errors import ArtifactError, CheckpointError, QuantizationError
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from helpers import COLOURS


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _imported(model: onnx.ModelProto, **given: Any) -> Any:
    onnx.save(model, "theirs.onnx")
    settings: dict[str, Any] = {"preprocessing": PREPROCESSING, "labels": LABELS, "overwrite": True}
    return cnndeploy.import_model("theirs.onnx", "ours.onnx", **settings | given)


def _logits(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    artifact = cnndeploy.Artifact.open(path)
    manifest = artifact.require_manifest()
    with open_session(artifact, Run("onnxruntime", "cpu")) as session:
        prepared = manifest.preprocessing(images)
        logits: np.ndarray[Any, Any] = session.run({manifest.input.name: prepared})[manifest.output.name]
        return logits


def _expected(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the classifier computes, by its definition, without what all classes have in common."""
    means = images.mean(axis=(1, 2)) / 255  # (batch, 3)
    centres = np.array(list(COLOURS.values())) / 255
    logits: np.ndarray[Any, Any] = 2 * means @ centres.T - (centres**2).sum(axis=1)
    return logits


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_one_that_takes_prepared_images_and_returns_logits(form: str) -> None:
    made = _imported(FORMS[form]())
    images = np.random.default_rng(0).integers(256, size=(5, SIDE, SIDE, 3), dtype=np.uint8)
    logits, expected = _logits(made.artifact.path, images), _expected(images)
    if "log softmax" in form or "softmax" in form:
        assert any("was removed" in note for note in made.notes)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < (2e-3 if "float16" in form else 2e-6)
    manifest = made.artifact.require_manifest()
    assert manifest.input.shape == ("batch", 3, SIDE, SIDE)
    assert manifest.output.shape == ("batch", 5)
    assert manifest.labels == LABELS
    assert made.artifact.is_reference
    assert made.parameters >= 20
    assert any("computes what theirs.onnx computes" in one for one in made.shown)


def test_a_graph_that_needs_no_change_keeps_its_nodes_weights_and_names() -> None:
    made = _imported(classifier())
    ours, theirs = onnx.load("ours.onnx").graph, classifier().graph
    assert list(ours.node) == list(theirs.node)
    assert list(ours.initializer) == list(theirs.initializer)
    assert (ours.input[0].name, ours.output[0].name) == ("data", "fc")
    assert made.notes == ()
    assert made.shown[0].endswith("bit for bit")


def test_the_same_file_gives_the_same_bytes() -> None:
    assert _imported(classifier()).artifact.sha256 == _imported(classifier()).artifact.sha256


def test_weights_in_a_second_file_are_joined() -> None:
    model = classifier()
    onnx.save(model, "theirs.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    given: dict[str, Any] = {"preprocessing": PREPROCESSING, "labels": LABELS}
    cnndeploy.import_model("theirs.onnx", "ours.onnx", **given)
    Path("weights.bin").unlink()
    images = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
    assert np.allclose(_logits(Path("ours.onnx"), images), _expected(images), atol=1e-6)
    with pytest.raises(ArtifactError, match=r"second file, put that beside it"):
        cnndeploy.import_model("theirs.onnx", "more.onnx", **given)
    assert not Path("more.onnx").exists()


def _normalised_by_batch() -> onnx.ModelProto:
    model = classifier()
    for name in ("scale", "shift", "mean", "var"):
        with_constant(model, name, np.ones(5, np.float32))
    names = ["pooled", "scale", "shift", "mean", "var"]
    node = helper.make_node("BatchNormalization", names, ["n", "m", "v"], training_mode=1)
    model.graph.node.insert(2, node)
    model.graph.node[3].input[0] = "n"
    return model


def _across_the_batch() -> onnx.ModelProto:
    model = extended(("Sub", ["average"], {}))
    node = helper.make_node("ReduceMean", ["fc", "zero"], ["average"], keepdims=1)
    model.graph.node.insert(3, node)
    return with_constant(model, "zero", np.array([0], np.int64))


def _of_noise() -> onnx.ModelProto:
    model = extended(("Add", ["noise"], {}))
    model.graph.node.insert(0, helper.make_node("RandomNormal", [], ["noise"], shape=[1, 5]))
    return model


def _of_the_manifest() -> onnx.ModelProto:
    model = classifier()
    helper.set_model_props(model, {MANIFEST_KEY: "{}"})
    return model


def _of_whole_numbers() -> onnx.ModelProto:
    model = classifier()
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("pixels", TensorProto.INT64, [1, 3, SIDE, SIDE])
    )
    model.graph.node.insert(0, helper.make_node("Cast", ["pixels"], ["data"], to=TensorProto.FLOAT))
    return model


def _quantised_softmax() -> onnx.ModelProto:
    quantised: list[tuple[str, list[str], dict[str, Any]]] = [
        ("QuantizeLinear", ["s", "z"], {}),
        ("DequantizeLinear", ["s", "z"], {}),
    ]
    model = extended(("Softmax", [], {"axis": 1}), *quantised)
    return with_constant(with_constant(model, "s", np.float32(1 / 256)), "z", np.uint8(0))


def _quantised_dynamically() -> onnx.ModelProto:
    model = classifier()
    model.graph.node.insert(0, helper.make_node("DynamicQuantizeLinear", ["data"], ["q", "s", "z"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["near"]))
    model.graph.node[2].input[0] = "near"
    return model


def _sliced_to_the_batch() -> onnx.ModelProto:
    model = extended(("Slice", ["start", "end", "axis"], {}), batch=4)
    for name, value in {"start": 0, "end": 4, "axis": 0}.items():
        with_constant(model, name, np.array([value], np.int64))
    return model


def _of_maps() -> onnx.ModelProto:
    """Return a list of mappings from label to probability, as converters of scikit-learn do."""
    model = extended(("Softmax", [], {"axis": 1}))
    zipped = helper.make_node(
        "ZipMap", ["behind_0"], ["maps_"], domain="ai.onnx.ml", classlabels_strings=LABELS
    )
    model.graph.node.append(zipped)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    probability = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, probability))
    model.graph.output[0].CopyFrom(helper.make_value_info("maps_", kind))
    return model


def _summed_over_the_batch() -> onnx.ModelProto:
    model = with_constant(extended(("ReduceSum", ["axis"], {"keepdims": 0}), batch=4), "axis", np.array([0]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("behind_0", TensorProto.FLOAT, [5]))
    return model


def _without_outputs() -> onnx.ModelProto:
    model = classifier()
    del model.graph.output[:]
    return model


def _with_a_constant_of_no_name() -> onnx.ModelProto:
    model = classifier()
    model.graph.node.append(helper.make_node("Constant", [], [], value=model.graph.initializer[0]))
    return model


def _with_a_function_of_itself() -> onnx.ModelProto:
    model = classifier()
    call = helper.make_node("Net", ["a"], ["r"], domain="my")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    model.functions.append(helper.make_function("my", "Net", ["a"], ["r"], [call], opsets))
    model.opset_import.append(opsets[1])
    return model


def _that_returns_what_it_takes() -> onnx.ModelProto:
    model = classifier()
    model.graph.output[0].CopyFrom(model.graph.input[0])
    return model


def _of_two_inputs() -> onnx.ModelProto:
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.FLOAT, [2]))
    return model


@pytest.mark.parametrize(
    ("model", "given", "reason"),
    [
        (lambda: with_dropout(training=True), {}, "dropout is in training mode"),
        (_normalised_by_batch, {}, "BatchNormalization is in training mode"),
        (_of_noise, {}, "RandomNormal is random"),
        (_across_the_batch, {}, "on a batch of 3 it computes something else than the original on each image"),
        (_of_the_manifest, {}, "was written by cnndeploy"),
        (lambda: extended(("Sigmoid", [], {})), {}, "returns probabilities, by Sigmoid"),
        (_quantised_softmax, {}, "returns probabilities, by Softmax"),
        (_quantised_dynamically, {}, "it is quantised dynamically"),
        (_sliced_to_the_batch, {}, r"on a batch of 5 it returns float32 \(4, 5\)"),
        (lambda: classifier(batch=10**9), {}, "its batch axis is fixed to 1000000000"),
        (_of_maps, {}, "its output maps_ is not logits"),
        (_summed_over_the_batch, {}, "its output behind_0 is not logits"),
        (_without_outputs, {}, "it returns nothing"),
        (_with_a_constant_of_no_name, {}, r"ONNX Runtime cannot open theirs\.onnx"),
        (_with_a_function_of_itself, {}, "recursive"),
        (_that_returns_what_it_takes, {}, r"shows no part of theirs\.onnx"),
        (_of_two_inputs, {}, "it takes data, size; a classifier of images takes one input"),
        (classifier, {"labels": LABELS[:4]}, "tells 5 classes apart, and there are 4 labels"),
        (
            classifier,
            {"labels": None},
            "the labels of theirs.onnx, which tells 5 classes apart, are not known",
        ),
        (classifier, {"preprocessing": None}, "how images are prepared for theirs.onnx is not known"),
        (
            classifier,
            {"preprocessing": {**PREPROCESSING, "size": [32, 32]}},
            r"its input data is \(\?, 3, 16, 16\), and the preprocessing makes images of 3 channels, 32 x 32",
        ),
        (
            lambda: channels_last(TensorProto.UINT8),
            {"preprocessing": {**PREPROCESSING, "mean": 0.5}},
            "leave mean and std out",
        ),
        (_of_whole_numbers, {}, r"its input pixels is int64"),
        (two_outputs, {"output_name": "scores"}, "it has no output scores; it has probabilities, logits"),
        (classifier, {"weights": "w.pth"}, "an ONNX file holds its network and weights; leave out weights"),
        (classifier, {"overwrite": False}, "ours.onnx exists"),
    ],
)
def test_what_is_no_classifier_or_is_described_wrongly_is_refused_and_nothing_is_written(
    model: Callable[[], onnx.ModelProto], given: Mapping[str, Any], reason: str
) -> None:
    Path("ours.onnx").write_text("as it was")
    with pytest.raises(ArtifactError, match=reason):
        _imported(model(), **given)
    assert Path("ours.onnx").read_text() == "as it was"


def test_weights_of_more_than_one_file_can_hold_are_refused_before_they_are_read() -> None:
    model = classifier()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    with Path("weights.bin").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no place on the disk
    with pytest.raises(ArtifactError, match="larger than the 2 GB"):
        _imported(model)


def _rounding_by_batch(kind: int) -> onnx.ModelProto:
    """Return the classifier with an error of 1e-4 for each image in the batch, computed in one kind of float."""
    model = extended(("Add", ["error"], {}))
    steps = [
        helper.make_node("Shape", ["data"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["size"], to=kind),
        helper.make_node("Mul", ["size", "tiny"], ["small"]),
        helper.make_node("Cast", ["small"], ["error"], to=TensorProto.FLOAT),
    ]
    for place, node in enumerate(steps):
        model.graph.node.insert(place, node)
    return with_constant(model, "tiny", helper.tensor_dtype_to_np_dtype(kind).type(1e-4))


def test_float16_inside_a_file_that_takes_and_returns_float32_may_round() -> None:
    with pytest.raises(ArtifactError, match="computes something else than the original"):
        _imported(_rounding_by_batch(TensorProto.FLOAT))
    assert _imported(_rounding_by_batch(TensorProto.FLOAT16)).shown[0].startswith("computes what")


def test_probabilities_of_another_kind_are_refused() -> None:
    model = extended(("Softmax", [], {"axis": 1}), ("Mul", ["one"], {}))
    with pytest.raises(ArtifactError, match="returns probabilities"):
        _imported(with_constant(model, "one", np.float32(1)))


def test_the_output_is_an_onnx_file_and_the_input_is_there() -> None:
    onnx.save(classifier(), "theirs.onnx")
    with pytest.raises(ArtifactError, match=r"name the output ours\.onnx"):
        cnndeploy.import_model("theirs.onnx", "ours.pt")
    with pytest.raises(ArtifactError, match=r"nowhere\.onnx: no such file"):
        cnndeploy.import_model("nowhere.onnx", "ours.onnx")
    Path("text.onnx").write_text("not a model")
    with pytest.raises(ArtifactError, match=r"text\.onnx cannot be read as ONNX"):
        cnndeploy.import_model("text.onnx", "ours.onnx")


def _as_ultralytics(task: str = "classify") -> onnx.ModelProto:
    """Write metadata as ultralytics' exporter does: text of Python literals; it leaves the softmax in."""
    model = extended(("Softmax", [], {"axis": 1}), batch=1)
    names = dict(enumerate(LABELS))
    facts = {"names": names, "imgsz": [SIDE, SIDE], "channels": 3, "task": task, "stride": 1, "batch": 1}
    helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    return model


def _beside(**files: Any) -> None:
    for name, values in files.items():
        Path(f"{name}.json").write_text(json.dumps(values))


def test_what_ultralytics_writes_into_a_file_is_read() -> None:
    made = _imported(_as_ultralytics(), preprocessing=None, labels=None)
    manifest = made.artifact.require_manifest()
    assert manifest.labels == LABELS
    expected = cnndeploy.Preprocessing(size=(SIDE, SIDE), resize=SIDE, antialias=True, channels=3)
    assert manifest.preprocessing == expected
    assert "the labels are those of theirs.onnx, as ultralytics writes them" in made.notes
    with pytest.raises(ArtifactError, match="made for the task detect"):
        _imported(_as_ultralytics("detect"), preprocessing=None, labels=None)


def test_what_timm_writes_beside_a_file_is_read() -> None:
    config = {
        "input_size": [3, SIDE, SIDE],
        "interpolation": "bicubic",
        "crop_pct": 0.5,
        "crop_mode": "center",
    }
    config |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "num_classes": 5}
    _beside(config={"architecture": "x", "num_classes": 5, "label_names": LABELS, "pretrained_cfg": config})
    manifest = _imported(classifier(), preprocessing=None, labels=None).artifact.require_manifest()
    assert manifest.labels == LABELS
    assert (manifest.preprocessing.resize, manifest.preprocessing.interpolation) == (2 * SIDE, "bicubic")
    assert manifest.preprocessing.means == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("folder", ["theirs", "theirs/onnx"])
def test_what_optimum_copies_beside_a_file_is_read(folder: str) -> None:
    processor = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2}
    processor |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    processor |= {"do_rescale": True, "rescale_factor": 1 / 255, "image_processor_type": "ViTImageProcessor"}
    Path(folder).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("theirs")
        _beside(config={"id2label": {str(n): label for n, label in enumerate(LABELS)}})
        _beside(preprocessor_config=processor)
    onnx.save(classifier(), f"{folder}/model.onnx")
    made = cnndeploy.import_model(f"{folder}/model.onnx", "ours.onnx")
    manifest = made.artifact.require_manifest()
    assert manifest.labels == LABELS
    assert manifest.preprocessing.size == (SIDE, SIDE)
    assert manifest.preprocessing.stds == (0.25,) * 3
    assert [note.rpartition("/")[2] for note in made.notes] == ["preprocessor_config.json", "config.json"]


def test_labels_that_are_not_those_of_the_file_are_refused_with_where_they_were_found() -> None:
    _beside(config={"id2label": {str(n): f"label {n}" for n in range(7)}})
    with pytest.raises(ArtifactError, match=r"tells 5 classes apart, and config\.json has 7 labels"):
        _imported(classifier(), labels=None)
    model = classifier()
    helper.set_model_props(model, {"names": "{1e999: 'a', 0: 'b'}"})
    with pytest.raises(ArtifactError, match=r"names in theirs\.onnx: no labels: .*infinity"):
        _imported(model, labels=None)


def test_what_is_said_wins_over_what_lies_beside() -> None:
    _beside(config={"id2label": {str(n): "other" for n in range(5)}}, preprocessor_config={"do_pad": True})
    assert _imported(classifier()).artifact.require_manifest().labels == LABELS
    with pytest.raises(ArtifactError, match=r"preprocessor_config\.json: "):
        _imported(classifier(), preprocessing=None)


def test_an_imported_file_is_its_own_reference(cli: Callable[..., Result], photos: Path) -> None:
    onnx.save(extended(("Softmax", [], {"axis": 1}), batch=1), "theirs.onnx")
    Path("prep.json").write_text(json.dumps(PREPROCESSING))
    described = ["--preprocessing", "prep.json", "--data", photos]
    result = cli("import", "theirs.onnx", *described, "--output", "ours.onnx")
    assert result.exit_code == 0, result.output
    assert "accuracy: 1.0000" in result.output
    assert "the labels are those of the data's folders" in result.output
    assert "Next: cnndeploy bench ours.onnx" in result.output
    assert cli("evaluate", "ours.onnx").exit_code == 0
    shown = cli("predict", "ours.onnx", photos / "val/plum/00.jpg")
    assert "plum" in shown.output
    itself = cli("verify", "ours.onnx", "--against", "ours.onnx")
    assert itself.exit_code == 2
    assert "compared with itself" in itself.output
    verdict = cnndeploy.verify("ours.onnx", "ours.onnx", run=Run("openvino"))
    verdict.require()
    assert verdict.oracle is not None
    assert (verdict.oracle.images, verdict.images, verdict.against_runtime) == (16, 30, "onnxruntime")
    assert 0 < verdict.oracle.ratio < verdict.oracle.limit
    with pytest.raises(
        ArtifactError, match="It was imported, so it is what other files are verified against"
    ):
        cnndeploy.load("ours.onnx", require_verified=True)
    with pytest.raises(QuantizationError, match="takes prepared images only"):
        cnndeploy.quantize("ours.onnx", budget=20, input="image", seconds=0)
    small = cnndeploy.quantize("ours.onnx", budget=20, seconds=0)
    assert small.artifact.require_manifest().checkpoint_sha256 == cnndeploy.Artifact.open("ours.onnx").sha256
    assert not small.artifact.is_reference
    with cnndeploy.load(small.artifact.path, require_verified=True) as model:
        (answer,) = model.classify(cnndeploy.read_image(photos / "val/lime/01.jpg", channels=3))
    assert answer.label == "lime"
    with pytest.raises(QuantizationError, match=r"or import it first"):
        cnndeploy.quantize("theirs.onnx", budget=20)
    refused = cli("evaluate", "theirs.onnx")
    assert refused.exit_code == 1
    assert "give an ONNX file of another tool a manifest with cnndeploy import" in refused.output
    with pytest.raises(CheckpointError, match=r"not a checkpoint\. It was imported, so there is no network"):
        cnndeploy.export("ours.onnx", "onnx", "again.onnx")


def test_what_openvino_makes_of_another_file_is_rejected(photos: Path) -> None:
    _imported(classifier(), data=photos)
    other = classifier()
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(1.001 * onnx.numpy_helper.to_array(other.graph.initializer[0]), "w")
    )
    ours = cnndeploy.Artifact.open("ours.onnx")
    manifest = replace(ours.require_manifest(), checkpoint_sha256=ours.sha256)
    helper.set_model_props(other, {MANIFEST_KEY: manifest.to_json()})
    onnx.save(other, "other.onnx")
    report = cnndeploy.verify("other.onnx", "ours.onnx")
    assert not report.equivalent
    assert "beyond the tolerance" in report.reasons[0]
    assert report.divergence is None


def test_a_runtime_that_computes_something_else_than_is_defined_is_doubted() -> None:
    assert _imported(classifier()).doubts == ()
    assert _imported(FORMS["float16"]()).doubts == ()
    (doubt,) = _imported(padded_before_a_maximum()).doubts
    assert "one of the two is wrong" in doubt


def test_what_float64_cannot_say_of_a_file_is_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _imported(FORMS["float16"](), data=photos)
    report = cnndeploy.verify("ours.onnx", "ours.onnx", images=7)
    assert (report.equivalent, report.oracle) == (True, None)
    assert report.tolerance.relative == pytest.approx(3e-5)
    _imported(classifier(), data=photos)
    report = cnndeploy.verify("ours.onnx", "ours.onnx", images=7)
    assert report.oracle is not None
    monkeypatch.setattr("cnndeploy.verification.verify._FLOAT32_ERROR", 0.0)  # as if the two disagreed
    report = cnndeploy.verify("ours.onnx", "ours.onnx", images=7)
    assert (report.equivalent, report.oracle) == (True, None)


def test_a_foreign_file_is_compared_with_a_checkpoint_whatever_its_inputs_are_called(
    trained_resnet: Any, photos: Path, cli: Callable[..., Result]
) -> None:
    model = onnx.load(trained_resnet.onnx)
    del model.metadata_props[:]
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = {"image": "pixel_values", "logits": "output0"}.get(name, name)
    model.graph.input[0].name, model.graph.output[0].name = "pixel_values", "output0"
    onnx.save(model, "theirs.onnx")
    result = cli("verify", "theirs.onnx", "--against", trained_resnet.checkpoint, "--data", photos)
    assert result.exit_code == 0, result.output
    assert "theirs.onnx has no manifest" in result.output
    assert not certificate_path("theirs.onnx").exists()
    manifest = cnndeploy.Artifact.open(trained_resnet.checkpoint).require_manifest()
    described: dict[str, Any] = {"preprocessing": manifest.preprocessing, "labels": manifest.labels}
    cnndeploy.import_model("theirs.onnx", "ours.onnx", **described)
    cnndeploy.verify("ours.onnx", trained_resnet.checkpoint, data=photos).require()
    described["labels"] = manifest.labels[::-1]
    cnndeploy.import_model("theirs.onnx", "ours.onnx", overwrite=True, **described)
    report = cnndeploy.verify("ours.onnx", trained_resnet.checkpoint, data=photos)
    assert report.reasons[0].startswith("the manifests differ: labels[0]")


def test_an_imported_file_is_an_image_data_sets(photos: Path) -> None:
    made = _imported(classifier(), labels=None, data=photos)
    assert made.evaluation.accuracy == 1.0
    assert made.doubts == ()
    assert open_dataset(made.artifact.require_manifest().data).classes == LABELS
    wrong = _imported(classifier(), labels=LABELS[::-1], data=photos)
    assert "the labels seem to be in another order" in wrong.doubts[1]
