"""AlexNet for one input channel and ten classes."""

from __future__ import annotations

from torch import nn

from cnndeploy.architectures import Architecture
from cnndeploy.architectures._network import Network
from cnndeploy.architectures._recipe import deep
from cnndeploy.preprocessing import Preprocessing


class AlexNet(Network):
    """AlexNet, with 46,764,746 parameters; takes (batch, 1, 224, 224)."""

    def __init__(self, classes: int = 10) -> None:
        features = nn.Sequential(
            nn.Conv2d(1, 96, kernel_size=11, stride=4),  # (batch, 96, 54, 54)
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),  # (batch, 96, 26, 26)
            nn.Conv2d(96, 256, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),  # (batch, 256, 12, 12)
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),  # (batch, 256, 5, 5)
        )
        classifier = nn.Sequential(
            nn.Flatten(),  # (batch, 6400)
            nn.Linear(6400, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, classes),
        )
        super().__init__(features, classifier)


ARCHITECTURE = Architecture(
    build=AlexNet,
    preprocessing=Preprocessing(size=(224, 224)),
    recipes=deep(learning_rate=0.001, tuned_rate=0.0005),
    paper="Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional networks, 2012",
)
