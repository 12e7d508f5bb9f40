"""What every import does and returns, whatever it imports."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Dataset, Images
from cnndeploy.errors import ArtifactError
from cnndeploy.evaluation import Evaluation
from cnndeploy.files import check_writable
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.serial import jsonable

_LOOKED_AT = 256  # images on which doubts are examined


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made: the checkpoint or ONNX file, and sentences on the way there.

    ``parameters`` counts the numbers in its weights. ``notes`` say what was changed, ``shown`` what was shown of the
    network, and ``doubts`` what looks wrong on the images. ``evaluation`` is on the test images of the data, None if
    there are none.

    >>> made = cnndeploy.import_model("lenet", "again.pt", weights="lenet.pt", overwrite=True)
    >>> made.parameters, made.doubts
    (44426, ())
    """

    artifact: Artifact
    classes: int
    parameters: int
    notes: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    evaluation: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return dict(jsonable(self))


def check_output(path: Path, inputs: Iterable[str | os.PathLike[str]], *, overwrite: bool) -> None:
    """Raise ArtifactError if the output cannot be written, is one of the inputs, or is there and not to be replaced."""
    check_writable(path, *inputs)
    if path.exists() and path.stat().st_size and not overwrite:
        raise ArtifactError(
            f"{path} exists. Import with overwrite=True to replace it, or choose another output."
        )


def looked_at(
    dataset: Dataset, preprocessing: Preprocessing, labels: tuple[str, ...], images: int | None
) -> Images:
    """Return up to 256 test images that can be read, from the first ``images`` if only these are measured."""
    test = dataset.split("test", preprocessing.channels, labels)
    test = test.first(min(_LOOKED_AT, len(test) if images is None else images))
    return test.sound(preprocessing.resized_size)
