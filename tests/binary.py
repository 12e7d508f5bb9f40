"""A network that tells two classes apart, in a file that is named by its path, as tests/resnet.py is."""

from __future__ import annotations

import torch
from torch import nn


class Binary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3))
        self.head = nn.Linear(72, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(image).flatten(1))
        return logits


def build() -> nn.Module:
    return Binary()
