"""Images in colours, for networks of grey images and of RGB."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from PIL import Image
from torchvision.transforms._presets import ImageClassification

import cnndeploy
from cnndeploy.errors import InputMismatchError
from cnndeploy.images import read_image
from cnndeploy.quantization.graph import with_manifest
from helpers import Trained


def test_a_network_of_grey_images_takes_colours_as_pil_makes_them_grey(trained: Trained) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    with cnndeploy.load(trained.onnx, threads=1) as model:
        expected = model.logits(grey)
        for images in (colours, list(colours), [Image.fromarray(image) for image in colours]):
            np.testing.assert_array_equal(model.logits(images), expected)
        np.testing.assert_array_equal(model.logits(colours[0]), expected[:1])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A network of RGB images that cnndeploy knows nothing of, as an ONNX file and in PyTorch."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten()
    ).append(torch.nn.Linear(72, 5))
    path = tmp_path_factory.mktemp("foreign") / "foreign.onnx"
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        network.eval(), (torch.zeros(2, 3, 64, 64),), path, dynamic_shapes=(batch,), external_data=False
    )
    return path, network


@pytest.mark.slow
def test_a_foreign_network_of_colours_gets_what_its_own_transform_gives(
    foreign: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    """From JPEG files of odd sizes to probabilities, beside torchvision and PyTorch."""
    path, network = foreign
    preset = ImageClassification(crop_size=64, resize_size=72)
    draw = np.random.default_rng(0)
    with cnndeploy.load(
        path, labels=list("abcde"), preprocessing=cnndeploy.preprocessing_of(preset), threads=1
    ) as model:
        for number, (height, width) in enumerate(((75, 91), (130, 70), (64, 64))):
            file = tmp_path / f"{number}.jpg"
            Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
            with Image.open(file) as picture, torch.no_grad():
                expected = network(preset(picture)[None]).softmax(1).numpy()
                np.testing.assert_allclose(model.probabilities(picture), expected, atol=1e-6)
            pixels = read_image(file, channels=3)
            assert pixels.shape == (height, width, 3)
            np.testing.assert_allclose(model.probabilities(pixels), expected, atol=1e-6)
            np.testing.assert_allclose(model.probabilities([pixels, pixels]), [expected[0]] * 2, atol=1e-6)
        grey = draw.integers(0, 256, (2, 70, 80), dtype=np.uint8)
        as_colours = np.repeat(grey[..., None], 3, axis=-1)
        for images in (grey, grey[0]):
            with pytest.warns(
                UserWarning, match=r"gets grey levels.*read_image\(path, channels=3\)"
            ) as warned:
                logits = model.logits(images)
            np.testing.assert_array_equal(logits, model.logits(as_colours[: len(logits)]))
            assert [one.filename for one in warned] == [__file__], "it is said where they came from"
        with pytest.raises(InputMismatchError, match=r"channels first; use image.transpose\(1, 2, 0\)"):
            model.classify(as_colours[0].transpose(2, 0, 1))
        with pytest.raises(
            InputMismatchError, match=r"read it with cnndeploy.read_image\(path, channels=3\)"
        ):
            model.classify("shoe.png")  # type: ignore[arg-type]
        with pytest.raises(InputMismatchError, match=r"expected uint8 images \(n, height, width, 3\)"):
            model.classify(np.zeros((2, 3, 64, 64), np.uint8))


@pytest.mark.slow
def test_a_file_of_colours_with_a_manifest_is_inspected_and_predicts(
    foreign: tuple[Path, torch.nn.Module], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    path, _ = foreign
    preprocessing = cnndeploy.preprocessing_of(ImageClassification(crop_size=64, resize_size=72))
    with cnndeploy.load(path, labels=list("abcde"), preprocessing=preprocessing) as model:
        manifest = model.manifest
    ours = tmp_path / "ours.onnx"
    ours.write_bytes(with_manifest(onnx.load(path), manifest.to_json()))
    inspected = cli("inspect", ours)
    assert inspected.exit_code == 0, inspected.output
    shown = " ".join(inspected.output.replace("│", " ").split())
    assert (
        "RGB, uint8 times 0.00392157, resized to a shorter side of 72 (bilinear, antialiased, width first)"
        in shown
    )
    assert "cropped to 64 x 64, minus 0.485, 0.456, 0.406, divided by 0.229, 0.224, 0.225" in shown
    pixels = np.zeros((80, 90, 3), np.uint8)
    pixels[..., 0] = 250  # its grey levels are not it
    Image.fromarray(pixels).save(tmp_path / "red.png")
    with warnings.catch_warnings(), cnndeploy.load(ours) as model:
        warnings.simplefilter("error")
        (expected,) = model.classify(pixels)
    predicted = json.loads(cli("predict", ours, tmp_path / "red.png", "--json").stdout)
    (first,) = predicted["predictions"][0]["classes"][:1]
    assert first["label"] == expected.label
    assert first["probability"] == pytest.approx(expected.probability)
