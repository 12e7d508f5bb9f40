"""Refit: layers of a smaller network come to compute what they compute in the whole one, by least squares.

One layer after the other, in the order in which they run: from what the layer reads in the smaller network, after all
that was refitted before it, to what it computes in the whole network. That takes a pass over some images for each
layer, and no training. Sources: Zhang, Zou, He, Sun: Accelerating very deep convolutional networks for classification
and detection, 2015, section 3.3, on the error of the layers before; He, Zhang, Sun: Channel pruning for accelerating
very deep neural networks, 2017, on layers that lost inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cnndeploy.architectures._low_rank import Layer
from cnndeploy.compression.layers import Hook, hooked
from cnndeploy.compression.material import Material
from cnndeploy.datasets import Images

# Multiply-adds of the whole network that a refit may take; fewer images for larger networks.
_WORK, _FEWEST, _MOST = 4e12, 128, 2048
_ROWS = 25_000  # at most, of all images: an image has one for each place of a convolution
_ROWS_A_VALUE = 4  # at least, for each input of an output; fewer say too little
_MOST_VALUES = 4608  # inputs of an output; more take too long
_RIDGE = 1e-3  # of the inputs' mean variance
_HELD_OUT = 4  # each fourth image says whether a layer came nearer
_AT_ONCE = 16  # layers of the whole network whose outputs are in memory


@dataclass(frozen=True, slots=True)
class Changed:
    """A layer to refit, by its path in the whole network and in the smaller one.

    ``outputs`` (channels,) is True for those of its outputs that are left; None if all are.
    """

    whole: str
    smaller: str
    outputs: torch.Tensor | None = None


def refitted(
    smaller: nn.Module, whole: nn.Module, changed: Sequence[Changed], material: Material
) -> nn.Module:
    """Return a copy of a smaller network whose changed layers are nearer to what they compute in the whole one.

    A layer that does not come nearer on images that it was not fitted to stays as it is.

    Raise Stopped if the material's deadline passed.
    """
    network = copy.deepcopy(smaller)
    count = min(_MOST, max(_FEWEST, int(_WORK / (material.work * max(1, len(changed))))))
    images = material.known.first(min(count, len(material.known)))
    order = list(_in_order(network, changed, next(material.tensors(images.first(1), ""))))
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        wanted = _computed(whole, some, images, material)
        for number, one in enumerate(some, start):
            material.progress(number, len(order), f"Refitting {one.whole}")
            _refit(network, one, wanted[one.whole], images, material)
    return network


def _in_order(network: nn.Module, changed: Sequence[Changed], image: torch.Tensor) -> Iterator[Changed]:
    """Yield the layers in the order in which they run."""
    by_path, run = {one.smaller: one for one in changed}, list[str]()

    def note(path: str) -> Hook:
        return lambda *_: run.append(path)

    with hooked({path: network.get_submodule(path) for path in by_path}, note), torch.inference_mode():
        network(image)
    return (by_path[path] for path in run)


def _computed(
    whole: nn.Module, some: Sequence[Changed], images: Images, material: Material
) -> dict[str, list[torch.Tensor]]:
    """Return what layers of the whole network compute for each batch, (images, places, outputs), at some places."""
    layers = {one.whole: whole.get_submodule(one.whole) for one in some}
    left, computed = {one.whole: one.outputs for one in some}, dict[str, list[torch.Tensor]]()

    def keep(path: str) -> Hook:
        def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
            rows = _places(output if isinstance(layer, nn.Linear) else output.movedim(1, -1), len(images))
            # a copy, for what follows may be in place
            computed.setdefault(path, []).append(
                rows.clone() if left[path] is None else rows[..., left[path]]
            )

        return hook

    with hooked(layers, keep), torch.inference_mode():
        for batch in material.tensors(images, ""):
            whole(batch)
    return computed


def _refit(
    network: nn.Module, one: Changed, wanted: Sequence[torch.Tensor], images: Images, material: Material
) -> None:
    layer = network.get_submodule(one.smaller)
    assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101 - nothing else is changed
    values = layer.weight[0].numel()
    if values > _MOST_VALUES:
        return
    read: list[torch.Tensor] = []

    def keep(_: str) -> Hook:
        return lambda layer, inputs, _output: read.append(_reads(layer, inputs[0], len(images)))

    fitted, held_out, done = _Moments(layer), _Moments(layer), 0
    with hooked({one.smaller: layer}, keep), torch.inference_mode():
        for batch, computed in zip(material.tensors(images, ""), wanted, strict=True):
            network(batch)
            rows = read.pop()
            is_held_out = (torch.arange(len(batch)) + done) % _HELD_OUT == _HELD_OUT - 1
            done += len(batch)
            for moments, chosen in ((fitted, ~is_held_out), (held_out, is_held_out)):
                moments.add(rows[chosen].flatten(0, 1), computed[chosen].flatten(0, 1))
    if fitted.count < _ROWS_A_VALUE * values or not held_out.count:
        return
    weight, bias = fitted.nearest()
    before = held_out.error(layer.weight.detach().double().flatten(1), layer.bias)
    if held_out.error(weight, bias) < before:
        with torch.no_grad():
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(bias)


def _places(values: torch.Tensor, images: int) -> torch.Tensor:
    """Return a copy of values (images, ..., channels) at some places, (images, places, channels).

    The more images there are in all the fewer places. They are the same for what a layer reads and computes.
    """
    rows = values.flatten(1, -2) if values.dim() > 2 else values[:, None]
    places = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))
    return rows[:, places[: math.ceil(_ROWS / images)]]


def _reads(layer: nn.Module, inputs: torch.Tensor, images: int) -> torch.Tensor:
    """Return what a layer reads for some places of its outputs, (images, places, values)."""
    if isinstance(layer, nn.Linear):
        return _places(inputs, images)
    assert isinstance(layer, nn.Conv2d)  # noqa: S101 - nothing else is changed
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    settings: Any = {"kernel_size": layer.kernel_size, "dilation": layer.dilation, "stride": layer.stride}
    patches = (functional.unfold(image[None], **settings).movedim(1, -1) for image in padded)
    return torch.cat([_places(one, images) for one in patches])


class _Moments:
    """Sums over rows of what a layer reads, (values,), and of what it should compute, (outputs,).

    Each batch is summed in float32, and the batches in float64.
    """

    def __init__(self, layer: Layer) -> None:
        outputs, values = layer.weight.flatten(1).shape
        self._layer, self.count = layer, 0
        self._read, self._computed = torch.zeros(values).double(), torch.zeros(outputs).double()
        self._across = torch.zeros(values, values).double()
        self._both = torch.zeros(values, outputs).double()
        self._squares = 0.0

    def add(self, read: torch.Tensor, computed: torch.Tensor) -> None:
        """Add what the layer reads, (rows, values), and what it should compute, (rows, outputs)."""
        self.count += len(read)
        self._read += read.sum(0)
        self._computed += computed.sum(0)
        self._across += read.T @ read
        self._both += read.T @ computed
        self._squares += float(computed.double().square().sum())

    def nearest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weight (outputs, values) and the bias (outputs,) of least error, drawn to what they are now."""
        weight = self._layer.weight.detach().double().flatten(1)
        across, both = self._across / self.count, self._both / self.count
        read, computed = self._read / self.count, self._computed / self.count
        if self._layer.bias is not None:
            across, both = across - torch.outer(read, read), both - torch.outer(read, computed)
        ridge = _RIDGE * across.diagonal().mean().clamp(min=1e-12) * torch.eye(len(across)).double()
        step = torch.linalg.solve(across + ridge, both - across @ weight.T)
        nearest = weight + step.T
        return nearest, computed - nearest @ read

    def error(self, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
        """Return the sum of the squared errors of a layer with this weight (outputs, values) and bias (outputs,)."""
        if self._layer.bias is None or bias is None:
            bias = torch.zeros(len(weight))
        bias = bias.detach().double()
        squares = (weight @ self._across * weight).sum() + self.count * bias.square().sum()
        crosses = (weight.T * self._both).sum() + bias @ self._computed - bias @ (weight @ self._read)
        return float(self._squares + squares - 2 * crosses)
