"""The layers of a network that a method may change: they run once, and their weights are their own."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from cnndeploy.simplification import simplify

Hook = Callable[..., None]


def sole_layers(
    network: nn.Module, image: torch.Tensor, wanted: Callable[[nn.Module], bool]
) -> dict[str, nn.Module]:
    """Return the layers, by path, that run once for an image, share their weights with no other and have no hooks.

    They are called with one argument, without its name.
    """
    owners = Counter(id(value) for _, value in network.named_parameters(remove_duplicate=False))
    layers = {
        path: module
        for path, module in network.named_modules(remove_duplicate=False)
        if path and wanted(module) and not (module._forward_hooks or module._forward_pre_hooks)
    }
    shared = Counter(map(id, layers.values()))
    layers = {
        path: layer
        for path, layer in layers.items()
        if shared[id(layer)] == 1 and all(owners[id(value)] == 1 for value in layer.parameters())
    }
    runs: Counter[str] = Counter()

    def count(path: str) -> Hook:
        return lambda _layer, inputs, _output: runs.update({path: 1 if len(inputs) == 1 else 2})

    with hooked(layers, count), torch.no_grad():
        network(image)
    return {path: layer for path, layer in layers.items() if runs[path] == 1}


def merged_layers(network: nn.Module) -> set[str]:
    """Return the paths of layers that exporters merge with others."""
    _, rewrites = simplify(network)
    return {path for one in rewrites if one.name.startswith("merge_") for path in one.modules}


@contextlib.contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Callable[[str], Hook]) -> Iterator[None]:
    """Have a forward hook on each layer, made for its path, for as long as the block lasts."""
    handles: list[RemovableHandle] = [
        layer.register_forward_hook(hook(path)) for path, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def evenly(count: float) -> int:
    """Round a number of channels down to one that kernels like: a multiple of 32, 16, 8 or 4 if it is large."""
    step = next((step for step in (32, 16, 8, 4) if count >= 4 * step), 1)
    return int(count) // step * step


def work_of(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of a layer for an image, as if its output had the places of its input over strides.

    ``shape`` is that of the layer's input, without the batch.
    """
    if isinstance(layer, nn.Conv2d):
        return max(1, layer.weight.numel() * math.prod(shape[1:]) // math.prod(layer.stride))
    assert isinstance(layer, nn.Linear)  # noqa: S101 - no other layer multiplies matrices
    return layer.weight.numel() * math.prod(shape[:-1])
