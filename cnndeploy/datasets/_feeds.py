"""The way from images of a data set to what a file takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cnndeploy.datasets._dataset import Images, Prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Raw images of different sizes are collected until there are so many values, and read in portions.
_MOST_VALUES, _PORTION = 2**26, 16


def feeds(
    images: Images, places: Sequence[int], prepare: Prepare | None
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Yield a batch as a file takes it: arrays, and for each which of the ``places`` are in it, from 0.

    It is one array, (n, ...), of what ``prepare`` makes of the images. For a file that takes raw images ``prepare`` is
    None: then each size that occurs is an array, so that the caller runs several and puts the answers in order.
    """
    if prepare is not None:
        yield list(range(len(places))), images.prepared(places, prepare)
        return
    groups: dict[tuple[int, ...], tuple[list[int], list[NDArray[np.uint8]]]] = {}
    values = 0
    for start in range(0, len(places), _PORTION):
        for place, image in enumerate(images.read(places[start : start + _PORTION]), start):
            group = groups.setdefault(image.shape, ([], []))
            group[0].append(place)
            group[1].append(image)
            values += image.size
        if values > _MOST_VALUES:
            yield from _stacked(groups)
            groups, values = {}, 0
    yield from _stacked(groups)


def _stacked(
    groups: dict[tuple[int, ...], tuple[list[int], list[NDArray[np.uint8]]]],
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    import numpy as np

    while groups:  # each is freed before the next is stacked
        _, (positions, stack) = groups.popitem()
        yield positions, np.stack(stack)
