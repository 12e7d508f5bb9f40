from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import ArtifactError
from cnndeploy.evaluation import Evaluation, _counted, evaluate, ranks, wilson
from cnndeploy.runtimes import open_session
from helpers import Trained


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [  # by the score equation (share - p)^2 = z^2 p (1 - p) / n, solved by hand for p
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (5, 10, 0.23659, 0.76341),
        (9050, 10_000, 0.89910, 0.91059),
    ],
)
def test_wilson_known_answers(correct: int, images: int, low: float, high: float) -> None:
    assert wilson(correct, images) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize("model_format", ["checkpoint", "onnx", "torchscript"])
def test_every_format_has_the_accuracy_that_training_found(model_format: str, trained: Trained) -> None:
    steps: list[tuple[int, int]] = []
    found = evaluate(
        trained.file_of(model_format), progress=lambda done, total, text: steps.append((done, total))
    )
    training = Artifact.open(trained.checkpoint).require_manifest().training
    assert training["test_images"] == 8000
    assert found.images == 10_000
    first = evaluate(trained.file_of(model_format), images=8000)
    assert first.accuracy == pytest.approx(
        training["test_accuracy"], abs=2 / 8000
    )  # a tie may fall either way
    assert steps[-1] == (10_000, 10_000)
    assert sum(each.images for each in found.per_class) == 10_000


def test_the_confusion_matrix_counts_what_was_said(trained: Trained) -> None:
    found = evaluate(trained.onnx, images=50, batch_size=7)
    test = fashion_mnist.load("test").first(50)
    artifact = Artifact.open(trained.onnx)
    with open_session(artifact) as session:
        image = artifact.require_manifest().preprocessing(test.images)
        said = session.run({"image": image})["logits"].argmax(axis=1)
    expected = np.zeros((10, 10), int)
    for shown, given in zip(test.labels, said, strict=True):
        expected[shown, given] += 1
    assert np.array_equal(found.confusion, expected)
    assert found.correct == (said == test.labels).sum()


def test_evaluate_writes_json(cli: Callable[..., Result], trained: Trained, tmp_path: Path) -> None:
    result = cli("evaluate", trained.onnx, "--images", 200, "--json", tmp_path / "e.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "e.json").read_text())
    assert {"accuracy", "interval", "correct", "images", "per_class"} <= found.keys()
    assert found["images"] == 200
    assert found["accuracy"] == found["correct"] / 200
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert sum(each["correct"] for each in found["per_class"]) == found["correct"]
    assert "95% interval" in result.output
    assert cli("evaluate", trained.onnx, "--json", trained.onnx).exit_code == 1


def test_nan_and_foreign_outputs_have_no_accuracy(
    trained: Trained, edited: Callable[..., Path], tmp_path: Path
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"

    with pytest.raises(ArtifactError, match="should return logits"):
        evaluate(edited(rename), images=3)
    checkpoint = Checkpoint.load(trained.checkpoint)
    weights = {name: value * float("nan") for name, value in checkpoint.weights.items()}
    with pytest.raises(ArtifactError, match="returns NaN"):
        evaluate(replace(checkpoint, weights=weights).save(tmp_path / "nan.pt").path, images=3)


def test_a_file_that_was_replaced_since_it_was_opened_has_no_accuracy(
    trained: Trained, tmp_path: Path
) -> None:
    path = Path(shutil.copy(trained.checkpoint, tmp_path / "lenet.pt"))
    opened = Artifact.open(path)
    checkpoint = Checkpoint.load(path)
    replace(checkpoint, weights={name: 2 * value for name, value in checkpoint.weights.items()}).save(path)
    with pytest.raises(ArtifactError, match="is no longer the file that was opened"):
        evaluate(opened, images=3)


def test_a_class_without_images_has_no_accuracy() -> None:
    rows = ((3, 1), (0, 0))
    found = Evaluation("f", "0", "r", "cpu", 1, ("a", "b"), rows)
    assert found.per_class[1].images == 0
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["per_class"][1]["accuracy"] is None
    assert found.accuracy == 0.75


def test_the_right_class_among_the_first_five() -> None:
    """The first of equal logits counts, as it does for the first class."""
    logits = np.array([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1]], np.float32)
    for label, expected in ((0, [0, 5, 0]), (4, [4, 1, 4]), (5, [5, 0, 5])):
        assert ranks(logits, np.full(3, label)).tolist() == expected


def test_top5_is_counted_if_there_are_more_than_five_classes(trained: Trained) -> None:
    found = evaluate(trained.onnx, images=50)
    test = fashion_mnist.load("test").first(50)
    with cnndeploy.load(trained.onnx, threads=1) as model:
        likeliest = np.argsort(-model.logits(test.images), axis=1)[:, :5]
    right = int((likeliest == test.labels[:, None]).any(axis=1).sum())
    assert (found.top5_correct, found.top5_accuracy) == (right, right / 50)
    assert found.to_dict()["top5_accuracy"] == right / 50
    few = Evaluation("f", "0", "r", "cpu", 1, ("a", "b"), ((3, 1), (0, 2)))
    assert (few.top5_accuracy, few.to_dict()["top5_accuracy"]) == (None, None)


def test_of_many_classes_only_the_right_ones_are_counted() -> None:
    """A matrix of 100,000 classes would not fit into memory."""
    labels, given = np.array([7, 7, 99_999, 3]), np.array([7, 8, 99_999, 4])
    names = tuple(map(str, range(100_000)))
    found = Evaluation("f", "0", "r", "cpu", 1, names, **_counted(labels, given, 100_000), top5_correct=4)
    assert found.confusion == ()
    assert (found.images, found.correct, found.accuracy, found.top5_accuracy) == (4, 2, 0.5, 1.0)
    assert [(one.label, one.correct, one.images) for one in found.per_class if one.images] == [
        ("3", 0, 1),
        ("7", 1, 2),
        ("99999", 1, 1),
    ]
    assert found.to_dict().keys() == Evaluation("f", "0", "r", "cpu", 1, ("a",), ((1,),)).to_dict().keys()
