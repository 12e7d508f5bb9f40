"""LeNet-5 with max pooling and a linear output."""

from __future__ import annotations

from torch import nn

from cnndeploy.architectures import Architecture
from cnndeploy.architectures._network import Network
from cnndeploy.architectures._recipe import Recipe
from cnndeploy.preprocessing import Preprocessing


class LeNet(Network):
    """LeNet, with 44,426 parameters; takes (batch, 1, 28, 28)."""

    def __init__(self, classes: int = 10) -> None:
        features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5),  # (batch, 6, 24, 24)
            nn.Sigmoid(),
            nn.MaxPool2d(2),  # (batch, 6, 12, 12)
            nn.Conv2d(6, 16, kernel_size=5),  # (batch, 16, 8, 8)
            nn.Sigmoid(),
            nn.MaxPool2d(2),  # (batch, 16, 4, 4)
        )
        classifier = nn.Sequential(
            nn.Flatten(),  # (batch, 256)
            nn.Linear(256, 120),
            nn.Sigmoid(),
            nn.Linear(120, 84),
            nn.Sigmoid(),
            nn.Linear(84, classes),
        )
        super().__init__(features, classifier)


ARCHITECTURE = Architecture(
    build=LeNet,
    preprocessing=Preprocessing(size=(28, 28)),
    recipes={
        "original": Recipe(5, 256, 0.001),
        "tuned": Recipe(28, 256, 0.03, "xavier", "one-cycle", label_smoothing=0.05, flip=True),
    },
    paper="LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998",
)
