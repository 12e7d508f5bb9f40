from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.serial import structure
from cnndeploy.specs import Manifest, TensorSpec
from cnndeploy.torch_preprocessing import TorchPreprocessing

IMAGE = TensorSpec("image", "float32", ("batch", 1, 28, 28))


@pytest.mark.parametrize(
    ("shape", "dtype", "accepted"),
    [
        ((5, 1, 28, 28), "float32", True),
        ((1, 1, 28, 28), "float32", True),
        ((5, 1, 28, 28), "float64", False),
        ((5, 3, 28, 28), "float32", False),
        ((1, 28, 28), "float32", False),
    ],
)
def test_spec_accepts(shape: tuple[int, ...], dtype: str, accepted: bool) -> None:
    assert IMAGE.accepts(np.zeros(shape, dtype)) is accepted


def test_batch_of_a_spec() -> None:
    assert IMAGE.with_batch(7) == (7, 1, 28, 28)
    with pytest.raises(ValueError, match="fixed to 1"):
        TensorSpec("image", "float32", (1, 1, 28, 28)).with_batch(2)
    with pytest.raises(ValueError, match="other than the first"):
        TensorSpec("image", "float32", ("batch", 1, "height", 28)).with_batch(2)


@pytest.mark.parametrize("size", [(28, 28), (96, 96), (224, 224), (20, 31)])
@pytest.mark.parametrize("raw", [(28, 28), (1, 1), (64, 48), (31, 200), (300, 7), (1000, 777)])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.286, 0.353)])
def test_preprocessing_is_the_same_in_numpy_and_torch(
    size: tuple[int, int], raw: tuple[int, int], mean: float, std: float
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *raw), dtype=np.uint8)
    preprocessing = Preprocessing(size, mean=mean, std=std)
    ours = preprocessing(images)
    assert ours.shape == (3, 1, *size)
    assert ours.dtype == np.float32
    for source in (None, raw):  # of any size, as in a file, and of one, as in training
        prepared = TorchPreprocessing(preprocessing, source)(torch.from_numpy(images))
        np.testing.assert_allclose(ours, prepared.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 28},
        {"size": (28,)},
        {"size": (28, 0)},
        {"size": (28, True)},
        {"size": (28, 28), "resize": True},
        {"size": (28, 28), "resize": 32.0},
        {"size": (28.0, 28)},
        {"size": (9000, 28)},
        {"size": (28, 28), "std": 0},
        {"size": (28, 28), "scale": float("nan")},
        {"size": (28, 28), "mean": "a"},
    ],
)
def test_what_is_no_preprocessing_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="not a "):
        Preprocessing(**settings)  # type: ignore[arg-type]


def test_numbers_of_numpy_do_not_change_the_dtype() -> None:
    preprocessing = Preprocessing((28, 28), np.float64(1 / 255), np.float64(0.5), np.float64(2))
    assert preprocessing(np.zeros((1, 28, 28), np.uint8)).dtype == np.float32


def test_whole_numbers_of_numpy_are_sizes() -> None:
    for resize, plain in ((np.int64(32), 32), (np.array([32, 40]), (32, 40))):
        given = Preprocessing(tuple(np.array([28, 28])), resize=resize)  # type: ignore[arg-type]
        assert given == Preprocessing((28, 28), resize=plain)
        assert (type(given.size[0]), type(given.resize)) == (int, type(plain))


def test_preprocessing_known_answer() -> None:
    doubled = Preprocessing((2, 4), scale=1.0)(np.array([[[0, 100], [200, 100]]], np.uint8))
    np.testing.assert_allclose(doubled[0, 0], [[0, 25, 75, 100], [200, 175, 125, 100]])


def test_manifest_survives_json() -> None:
    manifest = Manifest(
        architecture="lenet",
        input=IMAGE,
        output=TensorSpec("logits", "float32", ("batch", 2)),
        preprocessing=Preprocessing((28, 28), mean=0.5),
        labels=("a", "b"),
        training={"recipe": {"epochs": 5}},
        versions={"torch": "2"},
        checkpoint_sha256="0" * 64,
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    raw = manifest.taking_images()
    assert Manifest.from_json(raw.to_json()) == raw
    assert (raw.takes_images, manifest.takes_images) == (True, False)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": None},
        {"labels": ["a"]},
        {"labels": [1, 2]},
        {"training": []},
        {"versions": {"torch": 2}},
        {"checkpoint_sha256": 5},
        {"input": {"name": "image", "dtype": "float32", "shape": []}},
        {"output": {"name": ["x"], "dtype": "float32", "shape": ["batch", 2]}},
        {"preprocessing": {"size": [28, 28], "scale": 1, "mean": 0, "std": 0}},
        {"preprocessing": {"size": [28, 28], "scale": "x", "mean": 0, "std": 1}},
        {"preprocessing": {"size": [10**6, 10**6], "scale": 1, "mean": 0, "std": 1}},
        {"preprocessing": {"size": [29, 29], "scale": 1, "mean": 0, "std": 1}},
        {"input": {"name": "image", "dtype": "float32", "shape": ["batch", 3, 28, 28]}},
        {"input": {"name": "image", "dtype": "uint8", "shape": ["batch", 28, 28]}},
        {"probabilities": {"name": "probabilities", "dtype": "float32", "shape": ["batch", 3]}},
    ],
)
def test_a_manifest_with_values_that_nothing_can_use_is_refused(change: dict[str, object]) -> None:
    output = TensorSpec("logits", "float32", ("batch", 2))
    good = Manifest("lenet", IMAGE, output, Preprocessing((28, 28)), ("a", "b")).to_dict()
    Manifest.from_json(json.dumps(good))
    with pytest.raises(ValueError, match=r"."):
        Manifest.from_json(json.dumps(good | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"input": 1}', json.dumps({"x": 1})])
def test_junk_is_no_manifest(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own errors are ValueErrors too
        Manifest.from_json(text)


def test_colours_known_answer() -> None:
    """The shorter side to 2, a crop of 2 x 2, and a mean for each channel."""
    image = np.zeros((1, 4, 8, 3), np.uint8)
    image[:, :, 2:6] = (255, 51, 102)
    preprocessing = Preprocessing(
        (2, 2), channels=3, resize=2, antialias=True, mean=(1.0, 0.0, 0.0), std=(1.0, 0.5, 2.0)
    )
    assert preprocessing.resized_size(4, 8) == (2, 4)
    prepared = preprocessing(image)
    assert prepared.shape == (1, 3, 2, 2)
    bright = np.asarray(Image.fromarray(image[0]).resize((4, 4), 2).resize((4, 2), 2))[:, 1:3] / np.float32(
        255
    )
    np.testing.assert_allclose(prepared[0, 0], bright[..., 0] - 1, atol=1e-7)
    np.testing.assert_allclose(prepared[0, 1], bright[..., 1] / 0.5, atol=1e-7)
    np.testing.assert_allclose(prepared[0, 2], bright[..., 2] / 2, atol=1e-7)


def test_a_resize_is_not_left_out_for_images_of_the_right_size() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype=np.uint8)
    colours = np.repeat(grey[..., None], 3, axis=-1)
    for antialias in (False, True):
        enlarged, same = (
            Preprocessing((28, 28), resize=32, antialias=antialias, channels=channels)(images)  # type: ignore[arg-type]
            for channels, images in ((1, grey), (3, colours))
        )
        np.testing.assert_allclose(enlarged[0, 0], same[0, 1], atol=1e-6)
        assert np.abs(enlarged - Preprocessing((28, 28))(grey)).max() > 0.1


def test_a_crop_beyond_the_edge_is_black() -> None:
    prepared = Preprocessing((3, 5), resize=(1, 2), scale=1.0)(np.full((1, 1, 2), 9, np.uint8))
    assert prepared[0, 0].tolist() == [[0, 0, 0, 0, 0], [0, 9, 9, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 2},
        {"mean": (1.0, 2.0)},
        {"channels": 3, "mean": (1.0, 2.0)},
        {"channels": 3, "std": (1.0, 2.0, 0.0)},
        {"resize": 0},
        {"resize": (28, 9000)},
        {"interpolation": "nearest", "antialias": True},
    ],
)
def test_what_colours_cannot_be_prepared_by_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="not a "):
        Preprocessing((28, 28), **settings)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="antialias only"):
        Preprocessing((28, 28), interpolation="bicubic")


def test_a_manifest_of_colours_survives_json() -> None:
    preprocessing = Preprocessing(
        (8, 9), channels=3, resize=(10, 12), antialias=True, mean=(0.1, 0.2, 0.3), std=0.5
    )
    image = TensorSpec("image", "float32", ("batch", 3, 8, 9))
    manifest = Manifest(
        "theirs", image, TensorSpec("logits", "float32", ("batch", 2)), preprocessing, ("a", "b")
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    old = manifest.to_dict()
    assert structure(
        Preprocessing, {"size": [28, 28], "scale": 1 / 255, "mean": 0.0, "std": 1.0}
    ) == Preprocessing((28, 28))
    with pytest.raises(ValueError, match="input"):
        Manifest.from_json(json.dumps({**old, "input": {**old["input"], "shape": ["batch", 1, 8, 9]}}))


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 0},
        {"scale": 1e300},
        {"scale": 10**400},
        {"mean": 1e300},
        {"std": 1e-45},
        {"channels": True},
        {"channels": np.array([1, 3])},
        {"antialias": "no"},
        {"interpolation": np.array(["bilinear", "x"])},
    ],
)
def test_what_no_network_can_be_given_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="not a preprocessing"):
        Preprocessing((28, 28), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("channels", "images", "reason"),
    [
        (1, np.zeros((64, 48), np.uint8), r"expected uint8 \(batch, height, width\), got uint8 \(64, 48\)"),
        (1, np.zeros((1, 28, 28)), "got float64"),
        (3, np.zeros((1, 28, 28), np.uint8), r"expected uint8 \(batch, height, width, 3\)"),
        (1, np.zeros((1, 1, 8192), np.uint8), "would be resized to 67108864 on its longer side"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(channels: Any, images: Any, reason: str) -> None:
    with pytest.raises(InputMismatchError, match=reason):
        Preprocessing((28, 28), resize=8192, channels=channels, antialias=True)(images)
