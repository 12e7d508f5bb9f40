"""The method channels: layers of fewer channels; those that never fire go first.

A channel counts by how much it moves the layers that read it: the variance of its values over training images times the
square of their weights. Its mean goes into their biases. Without a channel that never fires they compute the same.
Source: He, Zhang, Sun: Channel pruning for accelerating very deep neural networks, 2017, that what readers lose is
what counts.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from cnndeploy.architectures._widths import can_be_resized, resized
from cnndeploy.compression.groups import Group, Kept, groups_of, kept_of, silent_inputs, without
from cnndeploy.compression.layers import Hook, evenly, hooked, work_of
from cnndeploy.compression.timing import Way, milliseconds
from cnndeploy.errors import CompressionError
from cnndeploy.progress import Deadline, Progress

_SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)  # of the channels of a group are kept


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a layer reads, of the images: the ``mean`` and the mean ``square`` of each input channel, (channels,).

    ``power`` is the variance of its outputs, summed over channels. ``shape`` is that of its input, without the batch.
    """

    mean: torch.Tensor
    square: torch.Tensor
    power: float
    shape: tuple[int, ...]


class Channels:
    """The groups of channels of a network; a size is how many are kept. It is a Reduction for the search."""

    not_faster = "no layer is faster on this machine with fewer channels"

    def __init__(
        self,
        network: nn.Module,
        image: torch.Tensor,
        known: Iterable[torch.Tensor],
        *,
        threads: int,
        int8: bool,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        """Find the groups, what their channels say, and how long their layers take with fewer.

        ``image`` is a batch of one; ``known`` are batches that say what channels do. ``int8`` says whether the network
        will be quantised.

        Raise CompressionError if there is no group, MissingDependencyError without Torch-Pruning, and Stopped if the
        deadline passed.
        """
        self._network = network
        groups = groups_of(network, image)
        if not groups:
            raise CompressionError(
                "no layer can lose channels: linear layers and convolutions can, without groups or depthwise, if what "
                "they compute is no output of the network and goes through nothing else that has weights"
            )
        self._groups = {group.root: group for group in groups}
        paths = dict.fromkeys(path for group in groups for path, _, _ in group.sides())
        layers = {path: network.get_submodule(path) for path in paths}
        multiplying = {path: one for path, one in layers.items() if isinstance(one, nn.Conv2d | nn.Linear)}
        statistics = statistics_of(network, multiplying, known)
        self._means = {path: one.mean for path, one in statistics.items()}
        self._order, sizes = dict[str, torch.Tensor](), dict[str, list[int]]()
        for group in groups:
            importance, alive = _importance(group, multiplying, statistics)
            self._order[group.root] = importance.argsort(descending=True, stable=True)
            sizes[group.root] = _sizes_to_try(group.count, alive)
        ways: dict[tuple[str, str], dict[int, Way]] = {}
        for group in groups:
            for path in dict.fromkeys(path for path, _, _ in group.sides() if path in multiplying):
                shape = statistics[path].shape
                ways[group.root, path] = {0: ([multiplying[path]], shape)} | {
                    size: _way(multiplying[path], shape, self._kept(group, size)[path])
                    for size in sizes[group.root]
                }
        named = {f"{path} in {root}": of_layer for (root, path), of_layer in ways.items()}
        measured = milliseconds(named, threads=threads, int8=int8, deadline=deadline, progress=progress)
        self.times: dict[str, dict[int, float]] = {root: {} for root in self._groups}
        for (root, _), of_layer in zip(ways, measured.values(), strict=True):
            for size, time in of_layer.items():
                self.times[root][size] = self.times[root].get(size, 0.0) + time
        self.work = sum(work_of(layer, statistics[path].shape) for path, layer in multiplying.items())

    @contextlib.contextmanager
    def tried(self, place: str, size: int) -> Iterator[None]:
        """Have the network compute what it would without a group's least channels, for as long as the block lasts."""
        with contextlib.ExitStack() as silenced:
            for path, gone in self._gone(place, size).items():
                layer = self._network.get_submodule(path)
                silenced.enter_context(silent_inputs(layer, gone, self._offset(path, layer, gone)))
            yield

    def smaller(self, sizes: Mapping[str, int]) -> nn.Module:
        """Return a copy of the network whose groups have so many channels."""
        network = copy.deepcopy(self._network)
        for root, size in sizes.items():
            for path, gone in self._gone(root, size).items():
                layer = network.get_submodule(path)
                offset = self._offset(path, layer, gone)
                if offset is not None:
                    layer.get_parameter("bias").data.add_(offset)
        for path, both in self._left(sizes).items():
            network.set_submodule(path, without(network.get_submodule(path), *both))
        return network.eval()

    def ranks(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Return no rank: fewer channels are widths, which the network shows."""
        del sizes
        return {}

    def _alive(self, group: Group, size: int) -> torch.Tensor:
        """Return which channels of a group stay, (count,), if so many do."""
        alive = torch.zeros(group.count, dtype=torch.bool)
        alive[self._order[group.root][:size]] = True
        return alive

    def _left(self, sizes: Mapping[str, int]) -> dict[str, Kept]:
        """Return what layers keep if groups keep so many channels."""
        left = dict[str, Kept]()
        for root, size in sizes.items():
            for path, both in self._kept(self._groups[root], size).items():
                earlier = left.get(path, both)
                left[path] = earlier[0] & both[0], earlier[1] & both[1]
        return left

    def _kept(self, group: Group, size: int) -> dict[str, Kept]:
        return kept_of(self._network, group, self._alive(group, size))

    def _gone(self, root: str, size: int) -> dict[str, torch.Tensor]:
        """Return which inputs of each reader go if a group keeps so many channels."""
        group = self._groups[root]
        alive = self._alive(group, size)
        return {path: one.places[~alive[one.channels]] for path, one in group.readers.items()}

    def _offset(self, path: str, layer: nn.Module, gone: torch.Tensor) -> torch.Tensor | None:
        """Return what the means of inputs add to a layer's outputs, (outputs,); None if it has no bias to take it."""
        assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101 - no other layer is a reader
        if layer.bias is None:
            return None
        weight = layer.weight.detach().double()
        weight = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        return (weight[:, gone] @ self._means[path][gone]).float()


def statistics_of(
    network: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[torch.Tensor]
) -> dict[str, Statistics]:
    """Run batches of images through a network, and return what each layer reads."""
    sums: dict[str, list[torch.Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Hook:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            values = [moment for tensor in (inputs[0], output) for moment in _moments(layers[path], tensor)]
            earlier = sums.get(path)
            sums[path] = values if earlier is None else [a + b for a, b in zip(earlier, values, strict=True)]
            shapes[path] = tuple(inputs[0].shape[1:])

        return hook

    with hooked(layers, note), torch.inference_mode():
        for batch in batches:
            network(batch)
    statistics = {}
    for path, (count, total, square, outputs, output, output_square) in sums.items():
        if not (square.isfinite().all() and output_square.isfinite().all()):
            raise CompressionError(
                f"{path} computes NaN or infinite values of training images; check the weights"
            )
        power = output_square / outputs - (output / outputs).square()
        statistics[path] = Statistics(total / count, square / count, float(power.sum()), shapes[path])
    return statistics


def _moments(layer: nn.Module, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return how many values each channel has, their sum and the sum of their squares, (channels,), in float64."""
    rows = values.movedim(1, -1) if isinstance(layer, nn.Conv2d) else values
    rows = rows.reshape(-1, rows.shape[-1])
    return (
        torch.tensor(len(rows)),
        rows.sum(0, dtype=torch.float64),
        rows.square().sum(0, dtype=torch.float64),
    )


def _importance(
    group: Group, layers: Mapping[str, nn.Module], statistics: Mapping[str, Statistics]
) -> tuple[torch.Tensor, int]:
    """Return how much each channel of a group moves its readers, (count,), and how many ever fire."""
    importance = torch.zeros(group.count, dtype=torch.float64)
    fires = torch.zeros(group.count, dtype=torch.bool)
    for path, one in group.readers.items():
        layer, read = layers[path], statistics[path]
        assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101 - no other layer is a reader
        moves = read.square if layer.bias is None else (read.square - read.mean.square()).clamp(min=0)
        moved = moves * layer.weight.detach().double().transpose(0, 1).flatten(1).square().sum(1)
        importance.index_add_(0, one.channels, moved[one.places] / max(read.power, 1e-30))
        fires[one.channels[read.square[one.places] > 0]] = True
    return importance + fires * 1e-300, int(fires.sum())  # those that never fire are the last


def _sizes_to_try(count: int, alive: int) -> list[int]:
    """Return how many of a group's channels may be kept, the most first; ``alive`` is how many ever fire."""
    sizes = {evenly(share * count) for share in _SHARES}
    if alive < count:
        step = 8 if count >= 64 else 1
        sizes.add(max(step, -(-alive // step) * step))
    return sorted((size for size in sizes if 0 < size < count), reverse=True)


def _way(layer: nn.Module, shape: tuple[int, ...], kept: Kept) -> Way:
    """Return a layer with fewer channels, and the shape of its input, to be timed."""
    assert can_be_resized(layer)  # noqa: S101 - groups_of() looked
    inputs, outputs = (int(side.sum()) for side in kept)
    shape = (inputs, *shape[1:]) if isinstance(layer, nn.Conv2d) else (*shape[:-1], inputs)
    with torch.device("meta"):  # what the weights are changes no time
        return [resized(layer, (inputs, outputs))], shape
