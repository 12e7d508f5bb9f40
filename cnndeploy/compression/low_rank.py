"""The method low-rank: two layers in the place of one, with few channels between them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from cnndeploy.architectures._low_rank import Layer, can_be_split, full_rank, split
from cnndeploy.compression.components import components_of, projected, split_weights
from cnndeploy.compression.layers import evenly, merged_layers, sole_layers, work_of
from cnndeploy.compression.timing import milliseconds
from cnndeploy.errors import CompressionError
from cnndeploy.progress import Deadline, Progress

_NEXT = 0.75  # of a rank is the next one to try


class LowRank:
    """The layers of a network that two can take the place of; a size is a rank. It is a Reduction for the search."""

    not_faster = "no layer is faster on this machine as two layers of lower rank"

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
        """Find the components of each layer, and time it at each rank.

        ``image`` is a batch of one; ``known`` are batches that the components are taken from. ``int8`` says
        whether the network will be quantised.

        Raise CompressionError if there is no such layer, and Stopped if the deadline passed.
        """
        self._network = network
        merged = merged_layers(network)
        self._layers = {
            path: layer for path, layer in replaceable(network, image).items() if path not in merged
        }
        if not self._layers:
            raise CompressionError(
                "no layer can be made smaller: a convolution without groups, or a linear layer, that runs once and "
                "shares its weights with no other is needed"
            )
        self._components = components_of(network, self._layers, known)
        ways = {}
        for path, layer in self._layers.items():
            shape = self._components[path].shape
            ranks = ranks_to_try(layer, self._components[path].directions.shape[1])
            with torch.device("meta"):  # what the weights are changes no time
                ways[path] = {rank: (list(split(layer, rank)), shape) for rank in ranks}
            ways[path][0] = [layer], shape
        self.times = milliseconds(ways, threads=threads, int8=int8, deadline=deadline, progress=progress)
        self.work = sum(work_of(layer, self._components[path].shape) for path, layer in self._layers.items())

    def tried(self, place: str, size: int) -> AbstractContextManager[None]:
        """Have the network compute what it would with one layer of a rank, for as long as the block lasts."""
        return projected(self._layers[place], self._components[place], size)

    def smaller(self, sizes: Mapping[str, int]) -> nn.Module:
        """Return a copy of the network in which two layers are in the place of each that has a rank."""
        without: dict[int, Any] = {id(self._layers[path]): nn.Identity() for path in sizes}
        smaller = copy.deepcopy(self._network, without)  # without a copy of what is replaced
        for path, rank in sizes.items():
            smaller.set_submodule(path, split_weights(self._layers[path], self._components[path], rank))
        return smaller.eval()

    def ranks(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Return the ranks by which the code of the network is changed."""
        return sizes


def replaceable(network: nn.Module, image: torch.Tensor) -> dict[str, Layer]:
    """Return the layers, by path, that two can take the place of."""
    found = sole_layers(network, image, can_be_split)
    layers = {path: layer for path, layer in found.items() if can_be_split(layer)}
    return {path: layer for path, layer in layers.items() if _runs_without(network, path, layer, image)}


def _runs_without(network: nn.Module, path: str, layer: Layer, image: torch.Tensor) -> bool:
    """Return whether a network runs with another module in a layer's place; it may use the weights by itself."""
    network.set_submodule(path, split(layer, 1))
    try:
        with torch.no_grad():
            network(image)
    except Exception:  # noqa: BLE001 - a forward() may do anything
        return False
    finally:
        network.set_submodule(path, layer)
    return True


def ranks_to_try(layer: Layer, directions: int) -> list[int]:
    """Return ranks at which two layers multiply less than one, the highest first, in steps that kernels like.

    There are no more than ``directions`` known.
    """
    outputs, inputs = len(layer.weight), layer.weight[0].numel()
    most = min(full_rank(layer) - 1, (outputs * inputs - 1) // (outputs + inputs), directions)
    ranks = []
    rank = float(most)
    while rank >= 1:
        ranks.append(evenly(rank))
        rank = ranks[-1] * _NEXT
    return ranks
