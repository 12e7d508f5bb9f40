from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnndeploy
from cnndeploy import data
from cnndeploy.classifier import read_image
from cnndeploy.errors import DataError, InputMismatchError
from helpers import Trained


def test_the_classifier_is_as_accurate_as_training_said(trained: Trained) -> None:
    test = data.load("test").first(8000)
    with cnndeploy.load(trained.onnx) as model:
        logits = model.logits(test.images)
        probabilities = model.probabilities(test.images)
        expected = model.manifest.training["test_accuracy"]
    assert float((logits.argmax(axis=1) == test.labels).mean()) == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))


@pytest.mark.parametrize("model_format", ["onnx", "torchscript", "checkpoint"])
def test_one_image_many_images_and_pictures_agree(model_format: str, trained: Trained) -> None:
    images = data.load("test").images[:3]
    with cnndeploy.load(trained.file_of(model_format), threads=1) as model:
        many = model.classify(images)
        assert [prediction.label for prediction in many] == [model.classify(one)[0].label for one in images]
        pictures = [Image.fromarray(one) for one in images]
        assert [p.probability for p in model.classify(pictures)] == pytest.approx(
            [p.probability for p in many]
        )
        assert model.classify(pictures[0])[0].label == many[0].label
        assert model.classify(np.zeros((50, 40), np.uint8))[0].label in model.labels


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28)),
        np.zeros((1, 28, 28, 3), np.uint8),
        np.zeros(28, np.uint8),
        np.zeros((0, 28, 28), np.uint8),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images: np.ndarray, trained: Trained) -> None:
    with (
        cnndeploy.load(trained.onnx) as model,
        pytest.raises(InputMismatchError, match="expected uint8 images"),
    ):
        model.classify(images)


def test_image_files(tmp_path: Path) -> None:
    pixels = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28)
    clear = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    clear.putpixel((1, 0), (255, 255, 255, 255))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").tolist() == [[0, 255]]
    grey = (pixels % 256).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png"), grey)

    (tmp_path / "none.png").write_bytes(b"not an image")
    (tmp_path / "short.png").write_bytes((tmp_path / "grey.png").read_bytes()[:60])
    Image.fromarray(pixels * 80).save(tmp_path / "deep.png")
    Image.new("L", (10_001, 1)).save(tmp_path / "wide.png")
    for name, reason in {
        "none.png": "not an image",
        "short.png": "cannot be read",
        "deep.png": "more than 8 bits",
        "wide.png": "at most 8192",
        "missing.png": "no such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)
