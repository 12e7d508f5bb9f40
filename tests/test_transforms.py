"""Preprocessing as other libraries describe it: compared with those libraries on images of random sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode, v2

import cnndeploy
from cnndeploy.errors import ArtifactError
from cnndeploy.preprocessing import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZES = 2  # of images for each preset; 40 each were tried when this was written


def _picture(draw: np.random.Generator, largest: int = 300) -> np.ndarray[Any, np.dtype[np.uint8]]:
    height, width = draw.integers(20, largest, 2)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _presets() -> dict[Preprocessing, Any]:
    """Every preset of a classifier in torchvision, one for each preprocessing; they are 115 in 0.29."""
    weights = [
        weight for name in models.list_models(module=models) for weight in models.get_model_weights(name)
    ]
    assert len(weights) >= 115
    return {cnndeploy.preprocessing_of(weight.transforms()): weight.transforms() for weight in weights}


@pytest.fixture
def width_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow resizes as it did before version 13: always width first."""
    resize = Image.Image.resize

    def in_two(
        image: Image.Image, size: tuple[int, int], resample: Any = None, **options: Any
    ) -> Image.Image:
        assert options in ({}, {"reducing_gap": None})
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", in_two)


@pytest.mark.slow
@pytest.mark.usefixtures("width_first")
def test_every_preset_of_torchvision_is_kept_bit_for_bit() -> None:
    draw = np.random.default_rng(0)
    presets = _presets()
    assert len(presets) >= 28
    for preprocessing, preset in presets.items():
        for _ in range(SIZES):
            picture = _picture(draw)
            ours, theirs = preprocessing(picture[None])[0], preset(Image.fromarray(picture)).numpy()
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{preprocessing} of {picture.shape}")


@pytest.mark.parametrize("kernel", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_width_is_resized_first_whatever_pillow_does(kernel: Image.Resampling) -> None:
    """Pillow 13 resizes the height of tall images first, which rounds to other values."""
    picture = np.random.default_rng(0).integers(0, 256, (735, 355, 3), dtype=np.uint8)
    preprocessing = Preprocessing(
        (64, 64),
        channels=3,
        resize=64,
        antialias=True,
        scale=1.0,
        interpolation=kernel.name.lower(),  # type: ignore[arg-type]
    )
    assert preprocessing.resized_size(735, 355) == (132, 64)
    resized = Image.fromarray(picture).resize((64, 735), kernel).resize((64, 132), kernel)
    expected = np.asarray(resized)[34:98].transpose(2, 0, 1)
    np.testing.assert_array_equal(preprocessing(picture[None])[0], expected)


COMPOSITIONS: list[Any] = [
    transforms.Compose(
        [
            transforms.Resize(40),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET["mean"], IMAGENET["std"]),
        ]
    ),
    transforms.Compose(
        [
            transforms.Resize((24, 48), InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    ),
    transforms.Compose([transforms.Resize(30), transforms.CenterCrop((64, 50)), transforms.ToTensor()]),
    transforms.Compose(
        [
            transforms.Resize((28, 28)),
            transforms.Grayscale(),
            transforms.ToTensor(),
            transforms.Normalize([0.3], [0.4]),
        ]
    ),
    v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=IMAGENET["mean"], std=IMAGENET["std"]),
        ]
    ),
]


@pytest.mark.usefixtures("width_first")
@pytest.mark.parametrize("compose", COMPOSITIONS[:4])
def test_a_composition_is_kept(compose: Any) -> None:
    draw = np.random.default_rng(0)
    preprocessing = cnndeploy.preprocessing_of(compose)
    for _ in range(5):
        picture = _picture(draw)
        given = picture
        if preprocessing.channels == 1:  # torchvision resizes colours and then makes grey levels of them
            given = picture = np.repeat(picture[..., :1], 3, axis=-1)
            given = given[..., 0]
        theirs = compose(Image.fromarray(picture)).numpy()
        np.testing.assert_array_equal(preprocessing(given[None])[0], theirs)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (COMPOSITIONS[4].transforms, "no Resize"),
        ([transforms.Resize(40), transforms.ToTensor()], "no step says the size"),
        ([transforms.Resize((9, 9)), v2.ToImage()], "no step scales"),
        ([transforms.Resize((9, 9)), v2.ToImage(), v2.ToDtype(torch.float32)], "ToDtype without scale=True"),
        ([transforms.Resize(40, max_size=50), transforms.CenterCrop(32), transforms.ToTensor()], "max_size"),
        ([transforms.RandomCrop(32)], "the step RandomCrop cannot be kept"),
        (
            [transforms.CenterCrop(32), transforms.Resize(40)],
            "the step Resize cannot be kept where it stands",
        ),
        (
            [
                transforms.Resize(40, InterpolationMode.NEAREST),
                transforms.CenterCrop(32),
                transforms.ToTensor(),
            ],
            "interpolation nearest",
        ),
        ([transforms.Resize((9, 9)), transforms.Grayscale(3), transforms.ToTensor()], "Grayscale to three"),
        ([transforms.Resize((9, 9)), transforms.Pad(2)], "the step Pad"),
    ],
)
def test_a_step_that_cannot_be_kept_is_named(steps: list[Any], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        cnndeploy.preprocessing_of(SimpleNamespace(transforms=steps))


TIMM = {"input_size": (3, 224, 224), "interpolation": "bicubic", **IMAGENET}
HUGGING_FACE = {
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@pytest.mark.parametrize(
    ("config", "size", "resize", "interpolation"),
    [
        (TIMM, (224, 224), 256, "bicubic"),
        (TIMM | {"crop_pct": 0.95}, (224, 224), 235, "bicubic"),
        (TIMM | {"crop_pct": 1.0, "crop_mode": "squash"}, (224, 224), (224, 224), "bicubic"),
        ({"architecture": "resnet18", "pretrained_cfg": TIMM}, (224, 224), 256, "bicubic"),
        (HUGGING_FACE, (224, 224), 256, "bicubic"),
        (
            HUGGING_FACE | {"do_center_crop": False, "size": {"height": 384, "width": 384}},
            (384, 384),
            None,
            "bicubic",
        ),
        (
            HUGGING_FACE
            | {"do_center_crop": False, "size": 224, "resample": 2, "feature_extractor_type": "ViTX"},
            (224, 224),
            None,
            "bilinear",
        ),
        (
            HUGGING_FACE | {"size": 224, "crop_size": 224, "image_processor_type": "CLIPX"},
            (224, 224),
            224,
            "bicubic",
        ),
        (
            {**HUGGING_FACE, "do_center_crop": False, "size": 224, "crop_pct": 0.875}
            | {"feature_extractor_type": "ConvNextFeatureExtractor"},
            (224, 224),
            256,
            "bicubic",
        ),
        (
            HUGGING_FACE
            | {
                "do_center_crop": False,
                "size": {"shortest_edge": 224},
                "image_processor_type": "ConvNextImageProcessor",
            },
            (224, 224),
            256,
            "bicubic",
        ),
    ],
)
def test_configurations_are_read(
    config: Any, size: Any, resize: Any, interpolation: str, tmp_path: Path
) -> None:
    preprocessing = cnndeploy.preprocessing_of(config)
    assert (preprocessing.size, preprocessing.resize, preprocessing.interpolation) == (
        size,
        resize,
        interpolation,
    )
    assert (preprocessing.channels, preprocessing.antialias) == (3, True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert cnndeploy.preprocessing_of(path) == preprocessing


def test_torchvisions_weights_are_read_by_their_own_transforms() -> None:
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    assert cnndeploy.preprocessing_of(weights) == cnndeploy.preprocessing_of(weights.transforms())


def test_json_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"size":' + "[" * 200_000)
    with pytest.raises(ArtifactError, match=r"deep.json cannot be read"):
        cnndeploy.preprocessing_of(path)


def test_its_own_fields_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "preprocessing.json"
    path.write_text(
        '{"size": [224, 224], "channels": 3, "resize": 256, "antialias": true, "mean": [0.1, 0.2, 0.3]}'
    )
    expected = Preprocessing((224, 224), channels=3, resize=256, antialias=True, mean=(0.1, 0.2, 0.3))
    assert cnndeploy.preprocessing_of(path) == cnndeploy.preprocessing_of(expected) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (TIMM | {"crop_mode": "border"}, "crop_mode border"),
        (TIMM | {"input_size": (3, 224, 192)}, "not square"),
        (TIMM | {"interpolation": "random"}, "interpolation random"),
        (TIMM | {"input_size": (4, 224, 224)}, "4 channels"),
        (HUGGING_FACE | {"do_center_crop": False}, "images have no one size"),
        (HUGGING_FACE | {"do_flip_channel_order": True}, "do_flip_channel_order"),
        (HUGGING_FACE | {"size": 256}, "shorter side or of both"),
        (HUGGING_FACE | {"size": {"shortest_edge": 9, "longest_edge": 12}}, "longest_edge"),
        (HUGGING_FACE | {"crop_pct": 0.9}, "crop_pct"),
        (HUGGING_FACE | {"image_processor_type": "LevitImageProcessor"}, "Levit.* rule of its own"),
        (HUGGING_FACE | {"do_rescale": False}, "do_rescale is off"),
        (HUGGING_FACE | {"resample": 0}, "interpolation 0"),
        ({"size": [224, 224], "colour": 3}, "a preprocessing has no colour"),
        ({"size": "large"}, "not a preprocessing|no preprocessing"),
        (42, "from int"),
        ({}, "names no size"),
        (TIMM | {"mean": 10**400}, "from dict: TypeError|OverflowError"),
        (TIMM | {"crop_pct": 1e-320}, "OverflowError"),
        (HUGGING_FACE | {"image_processor_type": 3}, "AttributeError"),
        (SimpleNamespace(crop_size=[], resize_size=[], mean=1), "no preprocessing can be read"),
        (SimpleNamespace(transforms=None), "no preprocessing can be read"),
        ("missing.json", "missing.json cannot be read"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(source: Any, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        cnndeploy.preprocessing_of(source)
