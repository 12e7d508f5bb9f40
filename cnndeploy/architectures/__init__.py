"""Architectures: one network a file, each an ``ARCHITECTURE``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnndeploy.architectures._recipe import Recipe
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network, its input, and how it is trained.

    ``build`` makes it with fresh weights, for so many ``classes``, by default 10. It maps float32 (batch, 1,
    *preprocessing.size) to float32 logits (batch, classes). ``recipes`` are ``original``, with which the network was
    first trained here, and ``tuned``, the best that was found by trial or in the literature. ``paper`` is its source.
    """

    build: Callable[..., torch.nn.Module]
    preprocessing: Preprocessing
    recipes: Mapping[str, Recipe]
    paper: str


ARCHITECTURES: Registry[Architecture] = Registry("architectures", "ARCHITECTURE")
