"""Network: the base of the networks here. OneOutput: a network of which one output counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn


class Network(nn.Module):
    """A network of two parts: ``features`` of images, and a ``classifier`` that turns them into logits."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, (batch, classes)."""
        logits: torch.Tensor = self.classifier(self.features(image))
        return logits


class OneOutput(nn.Module):
    """A network that returns several outputs, of which one, ``output``, is the logits."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network = network
        self.output = output

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, (batch, classes)."""
        return chosen_output(self.network(image), self.output)


def chosen_output(outputs: Any, name: str) -> torch.Tensor:
    """Return the output of this name, a key, an attribute or a number; a single tensor is the output itself.

    A network may return several in training and one in eval mode. Raise LookupError if there is none of this name.
    """
    if torch.is_tensor(outputs):
        return outputs
    names = output_names(outputs)
    if name not in names:
        raise LookupError(f"there is no output {name}; there are {', '.join(names) or 'none'}")
    if isinstance(outputs, Mapping):
        outputs = outputs[name]
    elif name.isdecimal():
        outputs = outputs[int(name)]
    else:
        outputs = getattr(outputs, name)
    if not torch.is_tensor(outputs):
        raise LookupError(f"the output {name} is {type(outputs).__name__}, not a tensor")
    return outputs


def output_names(outputs: Any) -> list[str]:
    """Return the names of what a network returned: keys, fields of a named tuple or dataclass, numbers in a tuple."""
    if isinstance(outputs, Mapping):
        return [str(key) for key in outputs]
    if hasattr(outputs, "_fields"):
        return list(outputs._fields)
    if isinstance(outputs, tuple | list):
        return [str(number) for number in range(len(outputs))]
    return [one.name for one in fields(outputs)] if is_dataclass(outputs) else []
