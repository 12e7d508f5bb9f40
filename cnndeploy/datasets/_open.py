"""Opening a data set: the one that the caller names, or the one that a model was made on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnndeploy.datasets._dataset import DATASETS, Check, Damaged, Data, Dataset, Images
from cnndeploy.datasets.fashion_mnist import NAME, fetch_command
from cnndeploy.errors import DataError
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.progress import Progress, silent
from cnndeploy.words import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAMED = 5  # damaged images, in a warning


def open_dataset(
    data: Data | None, recorded: str | None = None, beside: str | os.PathLike[str] | None = None
) -> Dataset:
    """Open a data set, and read no image yet.

    Args:
        data: ``fashion-mnist``, or a folder of images or with Fashion-MNIST in it; None for the recorded one.
        recorded: What the model's manifest names; None for Fashion-MNIST. A relative folder is looked for from the
            current one, then beside the model's file.
        beside: The model's file.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    if data is None and recorded is not None:
        return _recorded(recorded, beside)
    name = NAME if data is None else os.fspath(data)
    if not name:  # perhaps a variable of the shell that is not set
        raise DataError(f"the name of the data set is empty; it is a folder of images, or {NAME}")
    try:
        name = os.fspath(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError as error:
        raise DataError(f"{name} names a user that does not exist") from error
    if (opened := _opened(name)) is None:
        raise DataError(
            f"{name}: no such folder. A data set is a folder of images, or {NAME}; to fetch that into this folder: "
            f"{fetch_command(name)}"
        )
    return opened


def _recorded(recorded: str, beside: str | os.PathLike[str] | None) -> Dataset:
    places = [recorded] if beside is None else [recorded, str(Path(beside).parent / recorded)]
    if (opened := next(filter(None, map(_opened, places)), None)) is None:
        raise DataError(
            f"the model was made on the images in {recorded}, and there is no such folder here. Say where they "
            "are now, or name others: data='photos'"
        )
    return opened


def _opened(name: str) -> Dataset | None:
    kinds = (DATASETS.get(kind) for kind in DATASETS.names_in_turn("fashion_mnist"))
    return next((opened for kind in kinds if (opened := kind(name)) is not None), None)


def sound(images: Images, check: Check, progress: Progress = silent) -> Images:
    """Return the images that can be used, see :meth:`Images.sound`, and warn of others; raise DataError if none can."""
    readable = images.sound(check, progress)
    warn_of(readable.damaged)
    if not len(readable):
        raise DataError(f"no image can be used: {readable.damaged[0].reason}")
    return readable


def warn_of(damaged: Sequence[Damaged]) -> None:
    """Warn of images that were left out because they cannot be used, if there are any."""
    if damaged:
        names = ", ".join(one.path for one in damaged[:_NAMED])
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        text = f"{counted(len(damaged), 'image')} cannot be used and {'is' if len(damaged) == 1 else 'are'} left out"
        warnings.warn(f"{text}: {names}{more}", CnndeployWarning, stacklevel=2)


def require_labels(images: Images, dataset: Dataset) -> NDArray[np.integer[Any]]:
    """Return the labels of images, (n,); raise DataError if nobody knows them."""
    if images.labels is None:
        raise DataError(
            f"{dataset.spec} has images, but no folder for each class, so what they show is not known. Only verify "
            "takes such a folder"
        )
    return images.labels
