"""Network: the base of the networks here."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """A network of two parts: ``features`` of images, and a ``classifier`` that turns them into logits."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, (batch, 10)."""
        logits: torch.Tensor = self.classifier(self.features(image))
        return logits
