"""The way from a data set's names of classes to a model's labels."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnndeploy.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAMED = 5
_NOT_IN_FOLDERS = dict.fromkeys(map(ord, '/\\:*?"<>|'), "_")  # on one system or another


def indices_of(classes: Sequence[str], labels: Sequence[str], origin: str) -> NDArray[np.int64]:
    """Return each class's index among a model's labels, (classes,).

    Classes are found by name; ``_`` may stand for a character that no folder's name can have, such as ``/``. If all are
    whole numbers, they are indices. Raise DataError, which names the data set's ``origin``, if one is none of the
    labels, or is several of them.
    """
    import numpy as np

    names, wanted = [_composed(name) for name in classes], [_composed(label) for label in labels]
    place, times = {label: number for number, label in enumerate(wanted)}, Counter(wanted)
    as_folders = [(label.translate(_NOT_IN_FOLDERS), number) for number, label in enumerate(wanted)]
    others = [(name, number) for name, number in as_folders if name not in times]
    place.update(others)
    times.update(name for name, _ in others)
    unfit = [name for name in names if times[name] != 1]
    if not unfit:
        return np.array([place[name] for name in names], np.int64)
    if all(
        name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(labels) for name in names
    ):
        numbers = [int(name) for name in names]
        number, times_here = Counter(numbers).most_common(1)[0]
        if times_here > 1:
            both = " and ".join(name for name in names if int(name) == number)
            raise DataError(f"{origin} has the classes {both}, and both are label number {number}; join them")
        return np.array(numbers, np.int64)
    listed = ", ".join(unfit[:_NAMED]) + (f" and {len(unfit) - _NAMED} more" if len(unfit) > _NAMED else "")
    expected = ", ".join(labels[:_NAMED]) + (", ..." if len(labels) > _NAMED else "")
    so = " with _ for /" if any("/" in label for label in labels) else ""
    raise DataError(
        f"{origin} has classes that are none of the model's labels, or are several of them: {listed}. The model has "
        f"{len(labels):,} labels: {expected}. Name each folder of images by its label{so}, or all by the labels' "
        f"numbers, 0 to {len(labels) - 1}; or name a data set that the model is for: data='PATH'"
    )


def _composed(name: str) -> str:
    """Return a name as everybody but the macOS file system writes it."""
    return unicodedata.normalize("NFC", name)
