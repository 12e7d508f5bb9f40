"""Network in Network for one input channel and ten classes."""

from __future__ import annotations

from torch import nn

from cnndeploy.architectures import Architecture
from cnndeploy.architectures._network import Network
from cnndeploy.architectures._recipe import deep
from cnndeploy.preprocessing import Preprocessing


def nin_block(channels: int, width: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """Return a convolution and two 1x1 convolutions, each followed by ReLU."""
    first = nn.Conv2d(channels, width, kernel_size, stride, padding)
    second, third = (nn.Conv2d(width, width, kernel_size=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU())


class NiN(Network):
    """Network in Network, with 1,992,166 parameters; takes (batch, 1, 224, 224)."""

    def __init__(self, classes: int = 10) -> None:
        features = nn.Sequential(
            nin_block(1, 96, kernel_size=11, stride=4),  # (batch, 96, 54, 54)
            nn.MaxPool2d(3, stride=2),  # (batch, 96, 26, 26)
            nin_block(96, 256, kernel_size=5, padding=2),
            nn.MaxPool2d(3, stride=2),  # (batch, 256, 12, 12)
            nin_block(256, 384, kernel_size=3, padding=1),
            nn.MaxPool2d(3, stride=2),  # (batch, 384, 5, 5)
            nn.Dropout(0.5),
            nin_block(384, classes, kernel_size=3, padding=1),
        )
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(features, classifier)


ARCHITECTURE = Architecture(
    build=NiN,
    preprocessing=Preprocessing(size=(224, 224)),
    recipes=deep(learning_rate=0.002, tuned_rate=0.002, epochs=25),
    paper="Lin, Chen, Yan: Network in network, 2013",
)
