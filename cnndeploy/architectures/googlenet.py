"""GoogLeNet for one input channel and ten classes, without auxiliary classifiers."""

from __future__ import annotations

import torch
from torch import nn

from cnndeploy.architectures import Architecture
from cnndeploy.architectures._network import Network
from cnndeploy.architectures._recipe import deep
from cnndeploy.preprocessing import Preprocessing

Pair = tuple[int, int]


def convolution(channels: int, width: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """Return a convolution followed by ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size, stride, padding), nn.ReLU())


class Inception(nn.Module):
    """Four parallel paths, concatenated over channels; height and width stay.

    The widths are the paper's: 1x1; 1x1 then 3x3; 1x1 then 5x5; max pooling then 1x1.
    """

    def __init__(self, channels: int, one: int, three: Pair, five: Pair, pool: int) -> None:
        super().__init__()
        self.one = convolution(channels, one, kernel_size=1)
        self.three = nn.Sequential(convolution(channels, three[0], 1), convolution(*three, 3, padding=1))
        self.five = nn.Sequential(convolution(channels, five[0], 1), convolution(*five, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(channels, pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, one + three[1] + five[1] + pool, height, width)."""
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pool(x)), dim=1)


class GoogLeNet(Network):
    """GoogLeNet, with 5,977,530 parameters; takes (batch, 1, 96, 96)."""

    def __init__(self, classes: int = 10) -> None:
        features = nn.Sequential(
            convolution(1, 64, kernel_size=7, stride=2, padding=3),  # (batch, 64, 48, 48)
            nn.MaxPool2d(3, stride=2, padding=1),  # (batch, 64, 24, 24)
            convolution(64, 64, kernel_size=1),
            convolution(64, 192, kernel_size=3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),  # (batch, 192, 12, 12)
            Inception(192, 64, (96, 128), (16, 32), 32),
            Inception(256, 128, (128, 192), (32, 96), 64),
            nn.MaxPool2d(3, stride=2, padding=1),  # (batch, 480, 6, 6)
            Inception(480, 192, (96, 208), (16, 48), 64),
            Inception(512, 160, (112, 224), (24, 64), 64),
            Inception(512, 128, (128, 256), (24, 64), 64),
            Inception(512, 112, (144, 288), (32, 64), 64),
            Inception(528, 256, (160, 320), (32, 128), 128),
            nn.MaxPool2d(3, stride=2, padding=1),  # (batch, 832, 3, 3)
            Inception(832, 256, (160, 320), (32, 128), 128),
            Inception(832, 384, (192, 384), (48, 128), 128),  # (batch, 1024, 3, 3)
        )
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes))
        super().__init__(features, classifier)


ARCHITECTURE = Architecture(
    build=GoogLeNet,
    preprocessing=Preprocessing(size=(96, 96)),
    recipes=deep(learning_rate=0.001, tuned_rate=0.001),
    paper="Szegedy et al.: Going deeper with convolutions, 2014",
)
