"""What other tools say of preprocessing and labels, in an ONNX file or beside it.

These are ultralytics' metadata, timm's ``config.json``, and the ``config.json`` and ``preprocessor_config.json`` of
Hugging Face, which optimum copies beside what it exports.

Source: ultralytics 8.4, engine/exporter.py, and classify_transforms in data/augment.py: images are resized by their
shorter side, bilinearly, cropped around the centre and scaled to between 0 and 1.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError
from cnndeploy.importing.families import timm_labels
from cnndeploy.importing.labels import labels_from_json
from cnndeploy.limits import read_json
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.transforms import preprocessing_of

_CONFIGURATION, _PREPROCESSOR = "config.json", "preprocessor_config.json"


def preprocessing_beside(path: Path, metadata: Mapping[str, str]) -> tuple[Preprocessing | None, str]:
    """Return the preprocessing of an ONNX file, None if nothing says it, and where it was found.

    Raise ArtifactError if it is said and cannot be kept, or if the file is no classifier's.
    """
    if (own := _of_ultralytics(metadata)) is not None:
        return own, f"{path.name}, as ultralytics writes it"
    for name in (_CONFIGURATION, _PREPROCESSOR):
        for file, values in _beside(path, name):
            if name == _PREPROCESSOR or "pretrained_cfg" in values:
                try:
                    return preprocessing_of(values), str(file)
                except ArtifactError as error:
                    raise ArtifactError(f"{file}: {error}") from error
    return None, ""


def labels_beside(path: Path, metadata: Mapping[str, str]) -> tuple[tuple[str, ...] | None, str]:
    """Return the labels of an ONNX file, None if nothing says them, and where they were found."""
    if (names := _literal(metadata.get("names"))) is not None:
        return labels_from_json(names, f"names in {path.name}"), f"{path.name}, as ultralytics writes them"
    for file, values in _beside(path, _CONFIGURATION):
        if isinstance(values.get("id2label"), Mapping):
            return labels_from_json(values["id2label"], str(file)), str(file)
        if isinstance(config := values.get("pretrained_cfg"), Mapping):
            try:
                labels = timm_labels({**config, **values})
            except ModuleNotFoundError:  # timm has ImageNet's labels
                labels = None
            if labels:
                return labels, str(file)
    return None, ""


def _of_ultralytics(metadata: Mapping[str, str]) -> Preprocessing | None:
    task = metadata.get("task")
    sides = _literal(metadata.get("imgsz"))
    if task is None or sides is None:
        return None
    if task != "classify":
        raise ArtifactError(f"it was made for the task {task}; expected classify")
    sides = [sides] * 2 if isinstance(sides, int) else sides
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise ArtifactError(f"its metadata has imgsz {metadata['imgsz']}; expected a height and a width")
    height, width = sides
    channels = _literal(metadata.get("channels", "3"))
    return Preprocessing(
        size=(height, width),
        resize=height if height == width else None,
        channels=channels if channels in (1, 3) else 3,
        antialias=True,
    )


def _literal(text: str | None) -> Any:
    """Read a Python literal, such as ``{0: 'cat'}``; return None for anything else."""
    try:
        return ast.literal_eval(text or "None")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _beside(path: Path, name: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield a JSON object beside the file, or in the folder above one called onnx; none if it is something else."""
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    for folder in folders:
        try:
            values = read_json(folder / name)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, Mapping):
            yield folder / name, values
