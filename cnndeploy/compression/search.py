"""The search for smaller networks: which layers to make smaller and how far, by milliseconds saved for what is lost.

It sees training images only: some tell a method what layers compute, others, which these did not see, judge. First each
layer is tried alone at each size, for its time and for how much it changes what the network says. Then sizes are
lowered one by one, each time where most time is saved for the change. That is a way from the whole network to the
smallest; along it networks are judged by the labels that they lose.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnndeploy.architectures._widths import widths_beside
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression.material import Material
from cnndeploy.errors import ArtifactError, CompressionError, Stopped
from cnndeploy.sources import build
from cnndeploy.verification.paired import paired_counts

Sizes = Mapping[str, int]
Steps = list[tuple[int, float, float]]
# Multiply-adds that trying each layer alone may take; fewer images for larger networks.
_TO_TRY, _FEWEST_TO_TRY, _MOST_TO_TRY = 4e12, 32, 256
_LEAST_SAVED = 0.03  # of a layer's time, from one size to the next; less is noise
_LEAST_CHANGE = 1e-7  # of the divergence: what rounding makes
_Z = 1.96  # of a 95% interval
_SURELY = 3.0  # standard errors


class Reduction(Protocol):
    """A way to make layers smaller: places in a network, each of several sizes.

    ``times`` are the milliseconds of a place at each size; size 0 is the place as it is. ``work`` is the number of
    multiply-adds of all places for an image. ``not_faster`` says in a sentence that no size saves time.
    """

    @property
    def not_faster(self) -> str: ...

    @property
    def times(self) -> Mapping[str, Mapping[int, float]]: ...

    @property
    def work(self) -> int: ...

    def tried(self, place: str, size: int) -> AbstractContextManager[None]:
        """Have the network compute what it would with one place of a size, for as long as the block lasts."""

    def smaller(self, sizes: Sizes) -> nn.Module:
        """Return a copy of the network with places of these sizes."""

    def ranks(self, sizes: Sizes) -> Mapping[str, int]:
        """Return the ranks by which the code of the network is changed, by the path of the layer."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a smaller network cost on training images.

    ``predicted_high_points`` is the upper end of the interval of the loss, in percentage points, that the test images
    would give. It was judged until it surely lost too much, so ``images`` may be fewer than there are.
    """

    images: int
    loss_points: float
    predicted_high_points: float


def judged(
    network: nn.Module, material: Material, points: float, *, tests: int, text: str = "Judging"
) -> Judged:
    """Run a network on the images that judge, until it surely loses more than so many points.

    ``tests`` is how many test images will measure it.
    """
    truth = material.judging.labels
    assert truth is not None  # noqa: S101 - compress() has looked
    count = lost = gained = 0
    for logits in material.run(network, material.tensors(material.judging, text)):
        places = slice(count, count + len(logits))
        count += len(logits)
        pair = logits.argmax(1), material.expected[places].argmax(1)
        lost, gained = map(operator.add, (lost, gained), paired_counts(*pair, truth[places]))
        if 100 * (lost - gained - _SURELY * math.sqrt(lost + gained)) > points * count:
            break
    discordant = max(1, lost + gained) / count
    loss = (lost - gained) / count
    return Judged(count, 100 * loss, 100 * (loss + _Z * math.sqrt(discordant / tests)))


class Search:
    """The way on which a method makes a checkpoint's network smaller; ``judged`` are networks by their place on it."""

    def __init__(
        self, checkpoint: Checkpoint, network: nn.Module, method: Reduction, material: Material, *, tests: int
    ) -> None:
        """Try each place of a method alone.

        Args:
            checkpoint: What is made smaller.
            network: The network of it that the method works on.
            method: How.
            material: The images, and what the original says of them.
            tests: How many test images will measure what comes of it.

        Raises:
            CompressionError: No place is faster at a smaller size.
            Stopped: The material's deadline passed.
        """
        self._checkpoint, self._network, self._method, self._tests = checkpoint, network, method, tests
        self.judged: dict[int, Judged] = {}
        self._way = self._found_way(material)

    def within(self, material: Material, points: float) -> tuple[Sizes, nn.Module] | None:
        """Return the smallest network on the way that is predicted to keep a budget; None if there is none.

        ``material`` is that of the search, perhaps with another deadline. If it has passed, the network is the smallest
        of those that were judged until then; raise Stopped if none of them keeps the budget.
        """
        low, high = 0, len(self._way)  # that before the first step is the whole network
        try:
            while low < high:
                middle = (low + high + 1) // 2
                if self._judged(material, middle, points).predicted_high_points <= points:
                    low = middle
                else:
                    high = middle - 1
        except Stopped:
            judging = len(material.judging)
            done = {place: one for place, one in self.judged.items() if one.images == judging}
            low = max((at for at, one in done.items() if one.predicted_high_points <= points), default=0)
            if not low:
                raise
        return (self._way[low - 1], self._smaller(low)) if low else None

    def checkpoint_of(self, network: nn.Module, sizes: Sizes) -> Checkpoint:
        """Return the checkpoint of a smaller network, which can build it again."""
        manifest = self._checkpoint.manifest
        source = manifest.source
        inside = "network." if source.output is not None else ""
        ranks = {path.removeprefix(inside): rank for path, rank in self._method.ranks(sizes).items()}
        source = replace(source, ranks={**source.ranks, **ranks}, widths={})
        settings = manifest.architecture, source, self._checkpoint.path or "the checkpoint"
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):  # the weights do not matter
                    whole = build(*settings)
            except ArtifactError:  # its code cannot
                whole = build(*settings)
        widths = widths_beside(network, whole)
        source = replace(source, widths={path.removeprefix(inside): two for path, two in widths.items()})
        made = Checkpoint.of(manifest, network, manifest.training)
        return replace(made, manifest=replace(made.manifest, source=source))

    def _judged(self, material: Material, place: int, points: float) -> Judged:
        known = self.judged.get(place)
        judging = len(material.judging)
        if known is None or (known.images < judging and known.predicted_high_points <= points):
            text = f"Judging {place} of {len(self._way)} networks"
            known = judged(self._smaller(place), material, points, tests=self._tests, text=text)
            self.judged[place] = known
        return known

    def _smaller(self, place: int) -> nn.Module:
        return self._method.smaller(self._way[place - 1])

    def _found_way(self, material: Material) -> list[Sizes]:
        """Return networks, each with one place of a smaller size than the one before, as time is saved for change."""
        steps = self._steps(material)
        sizes: dict[str, int] = {}
        at = {path: (0.0, self._method.times[path][0]) for path in steps}  # change and milliseconds
        way = list[Sizes]()
        while True:
            best, value = None, 0.0
            for path, options in steps.items():
                change, milliseconds = at[path]
                for size, new_change, new_milliseconds in options:
                    saved = milliseconds - new_milliseconds
                    worth = saved / max(new_change - change, _LEAST_CHANGE)
                    if saved > 0 and worth > value:
                        best, value = (path, size, new_change, new_milliseconds), worth
            if best is None:
                return way
            path, size, *reached = best
            sizes[path], at[path] = size, (reached[0], reached[1])
            way.append(dict(sizes))

    def _steps(self, material: Material) -> dict[str, Steps]:
        """Return for each place the sizes that save time, largest first, with the change that each makes, and its time.

        The change is the mean Kullback-Leibler divergence of the classes' probabilities, of the place alone.
        """
        useful = {path: _useful(times) for path, times in self._method.times.items()}
        count = sum(map(len, useful.values()))
        if not count:
            raise CompressionError(self._method.not_faster)
        images = int(min(_MOST_TO_TRY, max(_FEWEST_TO_TRY, _TO_TRY // (self._method.work * count))))
        few = material.judging.first(min(images, len(material.judging)))
        held = list(material.tensors(few, ""))
        expected = np.concatenate(list(material.run(self._network, held)))
        done, steps = 0, dict[str, Steps]()
        for path, sizes in useful.items():
            steps[path] = []
            for size in sizes:
                material.progress(done, count, f"Trying {path} of size {size}")
                done += 1
                with self._method.tried(path, size):
                    logits = np.concatenate(list(material.run(self._network, held)))
                change = _divergence(expected, logits)
                steps[path].append((size, change, self._method.times[path][size]))
        return steps


def _useful(times: Mapping[int, float]) -> list[int]:
    """Return the sizes that save time, largest first; each is faster than those before it."""
    fastest, kept = times[0], list[int]()
    for size in sorted(times.keys() - {0}, reverse=True):
        if times[size] < fastest - _LEAST_SAVED * times[0]:
            kept.append(size)
            fastest = times[size]
    return kept


def _divergence(expected: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Return the mean Kullback-Leibler divergence of the softmax of logits (images, classes) from the expected ones."""
    own, other = (torch.from_numpy(one).double().log_softmax(1) for one in (expected, logits))
    return float((own.exp() * (own - other)).sum(1).mean())
