"""What other libraries say of preprocessing, as one :class:`Preprocessing`.

Read are torchvision's presets and compositions, timm's configurations, and Hugging Face's ``preprocessor_config.json``.
Nothing here imports those libraries. A step that cannot be kept exactly is refused by name.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cnndeploy.errors import ArtifactError
from cnndeploy.limits import read_json
from cnndeploy.preprocessing import Interpolation, Preprocessing
from cnndeploy.serial import structure

# By Pillow's numbers, which Hugging Face writes, and by the names that torchvision and timm use.
_FILTERS: dict[Any, Interpolation] = {
    2: "bilinear",
    3: "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
# Steps that only change how a picture is held.
_CONVERSIONS = {"ToTensor", "PILToTensor", "ToImage", "ConvertImageDtype", "ToDtype", "ToPureTensor"}
_SCALING = {"ToTensor", "ConvertImageDtype", "ToDtype"}
# Of Hugging Face: steps that are off by default, processors that resize by rules that no field of the file tells, and
# what a single number for the size means, by the beginning of the processor's name.
_UNUSUAL = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order", "do_reduce_labels"),
    *("rescale_offset", "include_top"),
)
_OWN_RULES = ("Levit", "PoolFormer")
_BOTH_SIDES, _SHORTER_SIDE = ("ViT", "DeiT", "Beit"), ("CLIP", "ConvNext")
_ORDER = ("Resize", "CenterCrop", "Grayscale", "conversion", "Normalize")


def preprocessing_of(source: Any) -> Preprocessing:
    """Return the preprocessing that another library describes, for PIL images.

    Args:
        source: A torchvision preset, as ``weights.transforms()`` returns, or a ``Compose`` of the usual steps; a timm
            configuration, as ``model.pretrained_cfg``; the dictionary of a Hugging Face ``preprocessor_config.json``;
            a dictionary with the fields of :class:`Preprocessing`; or the path of a JSON file with one of the last
            three.

    Raises:
        ArtifactError: It is none of these, or has a step that cannot be kept exactly; the message names it.

    >>> config = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875}
    >>> config |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    >>> cnndeploy.preprocessing_of(config).resize
    256
    """
    if isinstance(source, Preprocessing):
        return source
    if isinstance(source, str | os.PathLike):
        return _of_file(Path(source))
    try:
        return _of_object(source)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        said = type(error).__name__ if isinstance(error, RecursionError) else f"{error!r:.200}"
        raise ArtifactError(f"no preprocessing can be read from {type(source).__name__}: {said}") from error


def _of_object(source: Any) -> Preprocessing:
    if hasattr(source, "to_dict"):  # timm's own class
        source = source.to_dict()
    if isinstance(source, Mapping):
        return _of_mapping(source)
    if hasattr(source, "crop_size") and hasattr(source, "resize_size"):
        return _of_preset(source)
    if callable(steps := getattr(source, "transforms", None)) and not isinstance(source, type):
        return _of_object(steps())  # of torchvision's weights
    if isinstance(steps, Sequence):
        return _of_steps(steps)
    raise ArtifactError(f"no preprocessing can be read from {type(source).__name__}")


def _of_file(path: Path) -> Preprocessing:
    try:
        values = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from error
    try:
        return preprocessing_of(values)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _of_mapping(values: Any) -> Preprocessing:
    if not isinstance(values, Mapping):
        raise ArtifactError(f"expected an object with the fields of a preprocessing, got {values!r:.80}")
    if "pretrained_cfg" in values:  # timm's config.json
        return _of_timm(values["pretrained_cfg"])
    if "input_size" in values:
        return _of_timm(values)
    if {"image_mean", "do_resize", "do_normalize"} & values.keys():
        return _of_hugging_face(values)
    if "size" not in values:
        raise ArtifactError("no preprocessing can be read from it: it names no size")
    if unknown := values.keys() - Preprocessing.__dataclass_fields__.keys():
        raise ArtifactError(f"a preprocessing has no {', '.join(sorted(map(str, unknown)))}")
    return structure(Preprocessing, json.loads(json.dumps(dict(values))))


def _of_preset(preset: Any) -> Preprocessing:
    """Read torchvision's ``ImageClassification``; its ``antialias`` is for tensors, PIL images always are."""
    return Preprocessing(
        size=_square(preset.crop_size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        channels=3,
        resize=_shorter_side(preset.resize_size),
        interpolation=_filter(preset.interpolation),
        antialias=True,
    )


def _of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Read what ``timm.data.create_transform`` makes for evaluation.

    Source: timm.data.transforms_factory, transforms_imagenet_eval.
    """
    channels, height, width = config["input_size"]
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    if mode not in ("center", "squash"):
        raise ArtifactError(f"timm's crop_mode {mode} cannot be kept; center and squash can")
    if height != width:
        raise ArtifactError(
            f"timm's {height} x {width} is not square; it resizes such images by a rule of its own"
        )
    side = math.floor(height / share)
    return Preprocessing(
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        channels=_channels(channels),
        resize=side if mode == "center" else (side, side),
        interpolation=_filter(config.get("interpolation", "bilinear")),
        antialias=True,
    )


def _of_hugging_face(config: Mapping[str, Any]) -> Preprocessing:
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    unusual = [step for step in _UNUSUAL if config.get(step)]
    unusual += ["crop_pct"] * ("crop_pct" in config and not kind.startswith("ConvNext"))
    if kind.startswith(_OWN_RULES):
        raise ArtifactError(f"{kind} resizes by a rule of its own, which cannot be kept")
    if unusual:
        raise ArtifactError(f"{unusual[0]} of {kind or 'this configuration'} cannot be kept")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ArtifactError(f"{step} is off; images are always resized, scaled and normalised here")
    size, crops = config["size"], config.get("do_center_crop", False)
    resize = _hugging_face_sides(size, kind)
    final = _square_or_sides(config["crop_size"]) if crops else resize
    if kind.startswith("ConvNext"):  # it crops by a share of its own, and only what is small
        if isinstance(resize, int) and resize < 384:
            final, resize = (resize, resize), int(resize / (config.get("crop_pct") or 224 / 256))
        else:
            final = resize = (resize, resize) if isinstance(resize, int) else resize
    if isinstance(final, int):
        if not crops:
            raise ArtifactError(
                "the shorter side is resized and nothing is cropped, so images have no one size"
            )
        final = (final, final)
    return Preprocessing(
        size=final,
        scale=float(config.get("rescale_factor", 1 / 255)),
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
        channels=3,
        resize=None if resize == final else resize,
        interpolation=_filter(config.get("resample", 2)),
        antialias=True,
    )


def _hugging_face_sides(size: Any, kind: str) -> int | tuple[int, int]:
    """Return the length of the shorter side, or height and width; older files have a number, which means either."""
    if isinstance(size, Mapping):
        if "longest_edge" in size:
            raise ArtifactError("a longest_edge cannot be kept")
        return int(size["shortest_edge"]) if "shortest_edge" in size else (size["height"], size["width"])
    if kind.startswith(_BOTH_SIDES):
        return (size, size)
    if kind.startswith(_SHORTER_SIDE):
        return int(size)
    raise ArtifactError(
        f"the size {size!r} is that of the shorter side or of both; write shortest_edge, or height and width"
    )


def _square_or_sides(size: Any) -> tuple[int, int]:
    return (size["height"], size["width"]) if isinstance(size, Mapping) else (size, size)


def _of_steps(steps: Sequence[Any]) -> Preprocessing:
    """Read a ``Compose``: resize, centre crop, grey levels, conversion to float, normalisation, in this order."""
    by_name = _in_order(steps)
    if "Resize" not in by_name:
        raise ArtifactError("there is no Resize; images of different sizes need one")
    step = by_name["Resize"]
    if getattr(step, "max_size", None) is not None:
        raise ArtifactError("Resize with max_size cannot be kept")
    resize = _shorter_side(step.size)
    crop, grey, normalize = (by_name.get(name) for name in ("CenterCrop", "Grayscale", "Normalize"))
    if crop is None and isinstance(resize, int):
        raise ArtifactError("no step says the size of the input: CenterCrop or Resize((height, width)) does")
    return Preprocessing(
        size=_square(resize if crop is None else crop.size),
        mean=_values(normalize.mean) if normalize else 0.0,
        std=_values(normalize.std) if normalize else 1.0,
        channels=3 if grey is None else _channels(grey.num_output_channels),
        resize=None if crop is None else resize,
        interpolation=_filter(step.interpolation),
        antialias=True,
    )


def _in_order(steps: Sequence[Any]) -> dict[str, Any]:
    """Return steps by the names of their classes; raise ArtifactError at one that is unknown or out of order."""
    by_name: dict[str, Any] = {}
    place = 0
    for step in steps:
        name = type(step).__name__
        if name == "ToDtype" and not getattr(step, "scale", False):
            raise ArtifactError("ToDtype without scale=True cannot be kept: values stay between 0 and 255")
        kind = "conversion" if name in _CONVERSIONS else name
        if kind not in _ORDER:
            raise ArtifactError(
                f"the step {name} cannot be kept; give the transforms of evaluation, not of training"
            )
        if _ORDER.index(kind) < place:
            raise ArtifactError(
                f"the step {name} cannot be kept where it stands; the order is {', '.join(_ORDER)}"
            )
        place = _ORDER.index(kind) + (kind != "conversion")
        by_name[name] = step
    if not _SCALING & by_name.keys():
        raise ArtifactError(f"no step scales to between 0 and 1; one of {', '.join(sorted(_SCALING))} does")
    if (grey := by_name.get("Grayscale")) and grey.num_output_channels != 1:
        raise ArtifactError("Grayscale to three channels cannot be kept")
    return by_name


def _values(numbers: Iterable[float] | float) -> float | tuple[float, ...]:
    """Return one number for all channels, or one for each."""
    values = tuple(map(float, numbers)) if isinstance(numbers, Iterable) else (float(numbers),)
    return values[0] if len(values) == 1 else values


def _filter(interpolation: Any) -> Interpolation:
    name = getattr(interpolation, "value", interpolation)  # torchvision's is an enum
    if name not in _FILTERS:
        raise ArtifactError(f"interpolation {name} cannot be kept; bilinear and bicubic can")
    return _FILTERS[name]


def _channels(count: Any) -> Literal[1, 3]:
    if count == 1:
        return 1
    if count == 3:
        return 3
    raise ArtifactError(f"{count} channels; images have 1, grey levels, or 3, RGB")


def _square(size: Any) -> tuple[int, int]:
    """Return height and width; a single number stands for both."""
    sides = tuple(size) if isinstance(size, Sequence) else (size,)
    height, width = sides if len(sides) == 2 else sides * 2
    return height, width


def _shorter_side(size: Any) -> int | tuple[int, int]:
    """Return the length of the shorter side, or height and width if there are two."""
    sides = tuple(size) if isinstance(size, Sequence) else (size,)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
