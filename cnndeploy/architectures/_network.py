"""Network: what the networks here share."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """``features`` of images, and a ``classifier`` that makes logits of them."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, (batch, 10)."""
        logits: torch.Tensor = self.classifier(self.features(image))
        return logits
