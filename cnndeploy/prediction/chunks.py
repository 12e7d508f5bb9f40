"""Classification in chunks, which do not depend on the number of processes: so results are the same bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnndeploy.errors import DataError
from cnndeploy.images import read_image
from cnndeploy.prediction.files import is_folder, is_pattern
from cnndeploy.progress import ShouldStop, never

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cnndeploy.classifier import Classifier, Prediction

# So many images, and values of their pixels, are held at once.
MOST_IMAGES, _MOST_VALUES = 64, 2**24


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for a file: its classes, the likeliest first, or why it could not be read."""

    image: str
    ranked: tuple[Prediction, ...] = ()
    error: str = ""


Chunk = list[tuple[str, "NDArray[np.uint8] | str"]]
"""Files by name, each with its pixels or what is wrong with it."""


def column_names(top: int) -> list[str]:
    """Return the names of a table's columns with ``top`` classes for each image."""
    numbers = ["", *(f"_{number}" for number in range(2, top + 1))]
    return ["image", *(f"{name}{number}" for number in numbers for name in ("label", "probability")), "error"]


def chunks(files: Sequence[str], channels: int, should_stop: ShouldStop = never) -> Iterator[Chunk]:
    """Read files one by one, and yield a few at a time; ask ``should_stop`` before each.

    A new chunk starts at every 64th file. So a part that starts there has the same chunks as the whole list.
    """
    chunk, values = Chunk(), 0
    for number, file in enumerate(files):
        if should_stop():
            break
        if chunk and (number % MOST_IMAGES == 0 or values >= _MOST_VALUES):
            yield chunk
            chunk, values = Chunk(), 0
        chunk.append((file, _read(file, channels)))
        values += getattr(chunk[-1][1], "size", 0)
    if chunk:
        yield chunk


def outcomes(classifier: Classifier, chunk: Chunk, top: int) -> list[Outcome]:
    """Return what comes of each file of a chunk, in their order, with ``top`` classes of those that were read."""
    readable = [image for _, image in chunk if not isinstance(image, str)]
    predictions = iter(classifier.classify(readable, top) if readable else ())
    found = []
    for file, image in chunk:
        if isinstance(image, str):
            found.append(Outcome(file, error=image))
        else:
            first = next(predictions)
            found.append(Outcome(file, (first._replace(runners_up=()), *first.runners_up)))
    return found


def _read(file: str, channels: int) -> NDArray[np.uint8] | str:
    if not file:
        return "an empty name"
    if is_folder(file):
        readable = os.access(file, os.R_OK | os.X_OK)
        return f"{file}: {'there are no image files in this folder' if readable else 'this folder may not be read'}"
    if is_pattern(file):
        return f"{file}: no file matches"
    try:
        return read_image(file, channels)
    except DataError as error:
        return str(error)
