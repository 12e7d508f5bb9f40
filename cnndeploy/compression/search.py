"""The search for ranks: which layers to split and how far, by milliseconds saved for what is lost.

It sees training images only: some give the components, others, which these did not see, judge. First each layer and
rank is tried alone, for its time and for how much it changes what the network says. Then ranks are lowered one by one,
each time where most time is saved for the change. That is a way from the whole network to the smallest; along it
networks are judged by the labels that they lose.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnndeploy.architectures._low_rank import Layer
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression.low_rank import components_of, projected, ranks_to_try, replaceable, split_weights
from cnndeploy.compression.timing import milliseconds
from cnndeploy.datasets import Images
from cnndeploy.errors import CompressionError, OutOfTime
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.search import batches
from cnndeploy.simplification import simplify
from cnndeploy.verification.checks import paired_counts

Ranks = Mapping[str, int]
Steps = list[tuple[int, float, float]]
# Multiply-adds that trying each layer alone may take, and judging one network; fewer images for larger networks.
_TO_TRY, _FEWEST_TO_TRY, _MOST_TO_TRY = 4e12, 32, 256
_TO_JUDGE, _FEWEST_TO_JUDGE, _MOST_TO_JUDGE = 1e12, 256, 2000
_LEAST_SAVED = 0.03  # of a layer's time, from one rank to the next; less is noise
_LEAST_CHANGE = 1e-7  # of the divergence: what rounding makes
_Z = 1.96  # of a 95% interval
_SURELY = 3.0  # standard errors


@dataclass(frozen=True, slots=True)
class Trial:
    """A network of low ranks and what it cost on training images.

    ``share`` is the time of its layers as a share of that of the whole network's. ``predicted_high_points`` is the
    upper end of the interval of the loss, in percentage points, that the test images would give. ``taught`` is the
    number of images on which it was repaired, 0 if it was not.
    """

    ranks: Ranks
    share: float
    images: int
    loss_points: float
    predicted_high_points: float
    taught: int = 0


def judged_by(work: int) -> int:
    """Return how many images judge a network whose layers take ``work`` multiply-adds an image."""
    return int(min(_MOST_TO_JUDGE, max(_FEWEST_TO_JUDGE, _TO_JUDGE // max(1, work))))


class Search:
    """The ways to make a checkpoint's network smaller; ``trials`` are those that were judged."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        original: nn.Module,
        known: Images,
        judging: Images,
        *,
        tests: int,
        threads: int,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        """Try each layer alone.

        Args:
            checkpoint: What is made smaller.
            original: The network whose labels count; another one if the checkpoint was compressed before.
            known: Images that the components are taken from.
            judging: Others, with labels.
            tests: How many test images will measure what comes of it.
            threads: Of ONNX Runtime, when layers are timed.
            deadline: Checked after every batch.
            progress: Called with what is done, of how much, and at what.

        Raises:
            CompressionError: No layer can be split so that it is faster.
            Stopped: The deadline passed.
        """
        self._checkpoint, self._judging, self._tests = checkpoint, judging, tests
        self._deadline, self._progress = deadline, progress
        self.trials: dict[int, Trial] = {}
        self._network = checkpoint.network()
        first = next(self._tensors(judging.first(1), ""))
        self._layers = _alone(self._network, replaceable(self._network, first))
        if not self._layers:
            raise CompressionError(
                "no layer can be made smaller: a convolution without groups, or a linear layer, that runs once and "
                "shares its weights with no other is needed"
            )
        self._components = components_of(
            self._network, self._layers, self._tensors(known, "Looking at what layers compute")
        )
        shapes = {path: one.shape for path, one in self._components.items()}
        ranks = {
            path: ranks_to_try(layer, self._components[path].directions.shape[1])
            for path, layer in self._layers.items()
        }
        self._times = milliseconds(
            self._layers, shapes, ranks, threads=threads, deadline=deadline, progress=progress
        )
        self._original = original.eval()
        self._expected = self.what_it_says(judging)
        self._way = self._found_way()

    def within(self, points: float) -> tuple[Trial, nn.Module] | None:
        """Return the smallest network on the way that is predicted to keep a budget; None if there is none.

        Raise Stopped if the time is over before one was found.
        """
        low, high = 0, len(self._way)  # that before the first step is the whole network
        try:
            while low < high:
                middle = (low + high + 1) // 2
                if self._trial(middle, points).predicted_high_points <= points:
                    low = middle
                else:
                    high = middle - 1
        except OutOfTime:
            if not low:
                raise  # else the best so far will do
        return (self._trial(low, points), self._smaller(low)) if low else None

    def judge(
        self, network: nn.Module, ranks: Ranks, points: float, taught: int = 0, text: str = "Judging"
    ) -> Trial:
        """Run a smaller network on the images that judge, until it surely loses more than so many points."""
        truth = self._judging.labels
        assert truth is not None  # noqa: S101 - compress() has looked
        count = lost = gained = 0
        for logits in self._run(network, self._tensors(self._judging, text)):
            places = slice(count, count + len(logits))
            count += len(logits)
            pair = logits.argmax(1), self._expected[places].argmax(1)
            lost, gained = map(operator.add, (lost, gained), paired_counts(*pair, truth[places]))
            if 100 * (lost - gained - _SURELY * math.sqrt(lost + gained)) > points * count:
                break
        discordant = max(1, lost + gained) / count
        loss = (lost - gained) / count
        high = loss + _Z * math.sqrt(discordant / self._tests)
        return Trial(ranks, self._time(ranks) / self._time({}), count, 100 * loss, 100 * high, taught)

    def what_it_says(self, images: Images) -> NDArray[np.float32]:
        """Return the original's logits of images, (images, classes)."""
        batches = self._tensors(images, "Asking the whole network")
        return np.concatenate(list(self._run(self._original, batches)))

    def checkpoint_of(self, network: nn.Module, ranks: Ranks) -> Checkpoint:
        """Return the checkpoint of a smaller network, which can build it again."""
        manifest = self._checkpoint.manifest
        inside = "network." if manifest.source.output is not None else ""
        named = {path.removeprefix(inside): rank for path, rank in ranks.items()}
        source = replace(manifest.source, ranks={**manifest.source.ranks, **named})
        made = Checkpoint.of(manifest, network, manifest.training)
        return replace(made, manifest=replace(made.manifest, source=source))

    def _trial(self, place: int, points: float) -> Trial:
        known = self.trials.get(place)
        if known is None or (known.images < len(self._judging) and known.predicted_high_points <= points):
            text = f"Judging {place} of {len(self._way)} networks"
            known = self.judge(self._smaller(place), self._way[place - 1], points, text=text)
            self.trials[place] = known
        return known

    def _smaller(self, place: int) -> nn.Module:
        return _split(self._network, self._layers, self._components, self._way[place - 1])

    def _time(self, ranks: Ranks) -> float:
        return sum(times[ranks.get(path, 0)] for path, times in self._times.items())

    def _found_way(self) -> list[Ranks]:
        """Return networks, each with one layer of a lower rank than the one before, as time is saved for change."""
        steps = self._steps()
        ranks: dict[str, int] = {}
        at = {path: (0.0, self._times[path][0]) for path in steps}  # change and milliseconds
        way = list[Ranks]()
        while True:
            best, value = None, 0.0
            for path, options in steps.items():
                change, milliseconds = at[path]
                for rank, new_change, new_milliseconds in options:
                    saved = milliseconds - new_milliseconds
                    worth = saved / max(new_change - change, _LEAST_CHANGE)
                    if saved > 0 and worth > value:
                        best, value = (path, rank, new_change, new_milliseconds), worth
            if best is None:
                return way
            path, rank, *reached = best
            ranks[path], at[path] = rank, (reached[0], reached[1])
            way.append(dict(ranks))

    def _steps(self) -> dict[str, Steps]:
        """Return for each layer the ranks that save time, highest first, with the change that each makes, and its time.

        The change is the mean Kullback-Leibler divergence of the classes' probabilities, of the layer alone.
        """
        useful: dict[str, list[int]] = {}
        for path, times in self._times.items():
            whole, fastest, kept = times[0], times[0], list[int]()
            for rank in sorted(times.keys() - {0}, reverse=True):
                if times[rank] < fastest - _LEAST_SAVED * whole:
                    kept.append(rank)
                    fastest = times[rank]
            useful[path] = kept
        count = sum(map(len, useful.values()))
        if not count:
            raise CompressionError("no layer is faster on this machine as two layers of lower rank")
        work = sum(_work(layer, self._components[path].shape) for path, layer in self._layers.items())
        images = int(min(_MOST_TO_TRY, max(_FEWEST_TO_TRY, _TO_TRY // (work * count))))
        few = self._judging.first(min(images, len(self._judging)))
        held = list(self._tensors(few, ""))
        expected, done, steps = self._expected[: len(few)], 0, dict[str, Steps]()
        for path, ranks in useful.items():
            steps[path] = []
            for rank in ranks:
                self._progress(done, count, f"Trying {path} of rank {rank}")
                done += 1
                with projected(self._layers[path], self._components[path], rank):
                    logits = np.concatenate(list(self._run(self._network, held)))
                steps[path].append((rank, _divergence(expected, logits), self._times[path][rank]))
        return steps

    def _run(self, network: nn.Module, tensors: Iterable[torch.Tensor]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of each batch, (batch, classes)."""
        for batch in tensors:
            self._deadline.check()
            with torch.inference_mode():
                logits = network(batch)
            yield logits.numpy()

    def _tensors(self, images: Images, text: str) -> Iterator[torch.Tensor]:
        for places, batch in batches(images, self._checkpoint.manifest):
            if text:
                self._progress(places[0], len(images), text)
            self._deadline.check()
            yield torch.from_numpy(np.ascontiguousarray(batch))


def _alone(network: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Return the layers without those that exporters merge with others anyway."""
    _, rewrites = simplify(network)
    merged = {path for one in rewrites if one.name.startswith("merge_") for path in one.modules}
    return {path: layer for path, layer in layers.items() if path not in merged}


def _split(
    network: nn.Module, layers: Mapping[str, Layer], components: Mapping[str, Any], ranks: Ranks
) -> nn.Module:
    """Return a copy of a network in which two layers are in the place of each that has a rank."""
    without = {id(layers[path]): nn.Identity() for path in ranks}
    smaller = copy.deepcopy(network, dict(without))  # without a copy of what is replaced
    for path, rank in ranks.items():
        smaller.set_submodule(path, split_weights(layers[path], components[path], rank))
    return smaller.eval()


def _work(layer: Layer, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of a layer for an image, as if its output had the places of its input over strides."""
    places = math.prod(shape[1:]) if isinstance(layer, nn.Conv2d) else math.prod(shape[:-1])
    strides = math.prod(layer.stride) if isinstance(layer, nn.Conv2d) else 1
    return max(1, layer.weight.numel() * places // strides)


def _divergence(expected: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Return the mean Kullback-Leibler divergence of the softmax of logits (images, classes) from the expected ones."""
    own, other = (torch.from_numpy(one).double().log_softmax(1) for one in (expected, logits))
    return float((own.exp() * (own - other)).sum(1).mean())
