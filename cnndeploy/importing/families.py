"""What torchvision and timm know of their networks beside the code: preprocessing, labels, where the weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.errors import ArtifactError, UnknownNameError, missing_dependency
from cnndeploy.importing.labels import labels_from_json
from cnndeploy.limits import read_json
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.transforms import preprocessing_of

if TYPE_CHECKING:
    import torch

_IMAGENET = 1000
_USUAL = Preprocessing(
    size=(224, 224),
    resize=256,
    antialias=True,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pth")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a source by its name: ``name`` as a checkpoint records it, and defaults for what comes with it.

    ``weights`` is a file, or a function that downloads them.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    weights: Path | Callable[[], Mapping[str, torch.Tensor]] | None = None


def known_of(name: str) -> Known:
    """Return what is known of a source by its name alone.

    Raise UnknownNameError or MissingDependencyError if torchvision or timm has no such network or weights.
    """
    library, _, model = name.partition(":")
    try:
        if library == "torchvision" and model:
            return _of_torchvision(*model.partition("@")[::2])
        if library == "timm" and model:
            return _of_timm(model) if _is_timms(model) else _of_timm_folder(Path(model))
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    if name in ARCHITECTURES.names():
        return Known(name, preprocessing=ARCHITECTURES.get(name).preprocessing)
    return Known(name)


def usual_preprocessing(known: Known) -> Preprocessing:
    """Return how images are prepared to train a network: what comes with its name, else ImageNet's usual way.

    For a network of torchvision that is the way of its default weights. Raise MissingDependencyError if it needs a
    package.
    """
    library, _, model = known.name.partition(":")
    if known.preprocessing is not None:
        return known.preprocessing
    if library == "torchvision":
        from torchvision import models

        return preprocessing_of(models.get_model_weights(model).DEFAULT.transforms())
    return _USUAL


def _of_torchvision(model: str, tag: str) -> Known:
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise UnknownNameError(
            "architecture", f"torchvision:{model}", [f"torchvision:{one}" for one in known]
        )
    if not tag:
        return Known(f"torchvision:{model}")
    tags = models.get_model_weights(model)
    if tag not in tags.__members__:
        raise UnknownNameError("weights", tag, list(tags.__members__))
    weights = tags[tag]
    arguments = {}
    # what its builders change for weights that were trained elsewhere
    if model in ("googlenet", "inception_v3"):
        arguments["transform_input"] = True
    elif model.startswith("vit_"):
        arguments["image_size"] = weights.meta["min_size"][0]
    return Known(
        f"torchvision:{model}",
        arguments,
        preprocessing_of(weights.transforms()),
        tuple(weights.meta["categories"]),
        lambda: weights.get_state_dict(progress=False, check_hash=True),
    )


def _is_timms(model: str) -> bool:
    """Return whether this is a network's name and not a folder; raise UnknownNameError if it is neither."""
    import timm

    if not timm.is_model(model) and not Path(model, "config.json").is_file():
        raise UnknownNameError("architecture", f"timm:{model}", [f"timm:{one}" for one in timm.list_models()])
    return bool(timm.is_model(model))


def _of_timm(model: str) -> Known:
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None:
        return Known(f"timm:{model}")
    values: dict[str, Any] = asdict(config)
    return Known(f"timm:{model}", {}, preprocessing_of(values), timm_labels(values))


def _of_timm_folder(folder: Path) -> Known:
    """Read a folder as timm saves one for sharing: ``config.json`` and the weights."""
    try:
        values = read_json(folder / "config.json")
        configuration = {**values["pretrained_cfg"], "num_classes": values["num_classes"]}
        arguments = values.get("model_args") or {}
        labels = timm_labels({**configuration, **values})
        known = Known(f"timm:{values['architecture']}", arguments, preprocessing_of(configuration), labels)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{folder}/config.json is not as timm writes it: {error!r}") from error
    weights = next((folder / one for one in _FOLDER_WEIGHTS if (folder / one).is_file()), None)
    if weights is None:
        raise ArtifactError(f"{folder} holds no weights; expected one of {', '.join(_FOLDER_WEIGHTS)}")
    return Known(known.name, known.arguments, known.preprocessing, known.labels, weights)


def timm_labels(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the labels of a configuration; its own, or ImageNet's if it has a thousand classes."""
    names, descriptions = values.get("label_names"), values.get("label_descriptions") or {}
    if names:
        if not isinstance(descriptions, Mapping):
            raise ArtifactError("label_descriptions are not texts by label")
        labels = labels_from_json(list(names) if isinstance(names, tuple) else names, "label_names")
        return tuple(str(descriptions.get(label, label)) for label in labels)
    if values.get("num_classes") != _IMAGENET:
        return None
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(number) for number in range(_IMAGENET))
