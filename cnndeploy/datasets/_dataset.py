"""What a data set is, and the registry of its kinds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from cnndeploy.progress import Progress, silent
from cnndeploy.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batch = NDArray[np.uint8] | list[NDArray[np.uint8]]
    Check = Callable[[int, int], object]
    Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]
else:
    Batch = Check = Prepare = Any

Data = str | os.PathLike[str]
"""The data set as a caller names it: ``fashion-mnist`` or a folder."""
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Damaged:
    """An image that cannot be read: its path, and why."""

    path: str
    reason: str


class Images(Protocol):
    """Images of one split, in an order in which the first so many are a fair sample.

    ``labels`` are indices into a model's labels, (n,), or None if nobody knows them. ``numbers`` are the images'
    numbers in the whole split, (n,), by which another process finds them. ``damaged`` are images that were
    left out. ``sha256`` identifies the data, by names of files or folders.
    """

    @property
    def labels(self) -> NDArray[np.integer[Any]] | None:
        """The labels, (n,)."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The numbers in the whole split, (n,)."""

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """The images that were left out."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """What identifies the data of the split."""

    def __len__(self) -> int:
        """Return how many images there are."""

    def first(self, count: int | None) -> Self:
        """Return the first ``count`` images, or all of them for None; raise DataError if there are fewer."""

    def take(self, numbers: Sequence[int] | NDArray[np.integer[Any]]) -> Self:
        """Return the images at these places, in this order."""

    def sound(self, check: Check, progress: Progress = silent) -> Self:
        """Return the images that can be used, which are all read for that; ``damaged`` lists the others.

        ``check`` gets a height and a width, and raises InputMismatchError for an image that cannot be prepared.
        """

    def read(self, places: slice | Sequence[int]) -> Batch:
        """Return the images at these places: uint8 (n, h, w) or (n, h, w, 3), or a list if their sizes may differ.

        Raise DataError if one cannot be read.
        """

    def prepared(self, places: slice | Sequence[int], prepare: Prepare) -> NDArray[Any]:
        """Return what ``prepare`` makes of these images, (n, ...).

        It maps images of one size, (m, h, w) or (m, h, w, 3), to (m, ...). No more raw images than threads are in
        memory at a time, whose sizes may differ.
        """


class Dataset(Protocol):
    """A data set that was opened.

    ``spec`` is what opens it again, in any process on this machine. ``classes`` are its own names of classes, none if
    the images have no labels. ``note`` says what a user should know of how it is split; it is often empty.
    """

    @property
    def spec(self) -> str:
        """What opens it again."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def note(self) -> str:
        """What a user should know."""

    def split(self, name: Split, channels: int, labels: Sequence[str]) -> Images:
        """Return a split, in grey for 1 channel and in RGB for 3, with labels as indices into a model's ``labels``.

        Raise DataError if there is no such split, or a class is none of the labels.
        """


class Kind(Protocol):
    """A kind of data set; the module's ``open_data`` is one."""

    def __call__(self, data: str) -> Dataset | None:
        """Open the data set of this name, or in this folder; return None if it is not of this kind."""


DATASETS: Registry[Kind] = Registry("datasets", "open_data")
