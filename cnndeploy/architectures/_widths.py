"""Layers of fewer channels than the code of their network gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from torch import nn

from cnndeploy.architectures._low_rank import layer_at

Resizable = nn.Conv2d | nn.Linear | nn.BatchNorm2d
Width = tuple[int, int]  # channels of the input and of the output


def can_be_resized(module: nn.Module) -> TypeGuard[Resizable]:
    """Return whether a layer may have fewer channels: it is linear, batch norm, or a convolution that can.

    A convolution can if it has one group, or if it is depthwise.
    """
    if type(module) is nn.Conv2d:
        return module.groups == 1 or is_depthwise(module)
    return type(module) in (nn.Linear, nn.BatchNorm2d)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a module is a convolution that has a group for each channel."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def width_of(module: Resizable) -> Width:
    """Return the number of channels of a layer's input and of its output."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.num_features, module.num_features


def resized(module: Resizable, width: Width) -> Resizable:
    """Return a layer as another with fresh weights and so many channels."""
    inputs, outputs = width
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, outputs, bias=module.bias is not None)
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(outputs, module.eps, module.momentum, module.affine, module.track_running_stats)
    return nn.Conv2d(
        inputs,
        outputs,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        groups=inputs if is_depthwise(module) else 1,
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )


def resize_layers(network: nn.Module, widths: Mapping[str, Width]) -> None:
    """Put a layer of fewer channels, with fresh weights, in the place of each that ``widths`` names by its path.

    Raise ValueError if there is no such layer, or it never had so many channels.
    """
    for path, (inputs, outputs) in widths.items():
        layer = layer_at(network, path)
        if not path or not can_be_resized(layer):
            raise ValueError(f"{path or 'the network itself'} is no layer that can have fewer channels")
        most = width_of(layer)
        same = isinstance(layer, nn.BatchNorm2d) or is_depthwise(layer)
        if not (0 < inputs <= most[0] and 0 < outputs <= most[1]) or (same and inputs != outputs):
            raise ValueError(
                f"{path} has {most[0]} and {most[1]} channels; it cannot have {inputs} and {outputs}"
            )
        network.set_submodule(path, resized(layer, (inputs, outputs)).train(layer.training))


def widths_beside(network: nn.Module, whole: nn.Module) -> dict[str, Width]:
    """Return the channels of the layers of a network, by path, that have fewer than in the whole network."""
    layers = {path: module for path, module in network.named_modules() if can_be_resized(module)}
    known = {path: module for path, module in whole.named_modules() if can_be_resized(module)}
    return {
        path: width_of(layer)
        for path, layer in layers.items()
        if path in known and width_of(layer) != width_of(known[path])
    }
