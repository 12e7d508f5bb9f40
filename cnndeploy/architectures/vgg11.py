"""VGG-11 for one input channel and ten classes, at any width."""

from __future__ import annotations

from torch import nn

from cnndeploy.architectures import Architecture
from cnndeploy.architectures._network import Network
from cnndeploy.architectures._recipe import deep
from cnndeploy.preprocessing import Preprocessing


class VGG11(Network):
    """VGG-11, with 128,806,154 parameters; takes (batch, 1, 224, 224).

    All widths and the numbers of hidden units are divided by ``divisor``.
    """

    def __init__(self, divisor: int = 1, classes: int = 10) -> None:
        widths = [width // divisor for width in (64, 128, 256, 512, 512)]
        hidden = 4096 // divisor
        layers: list[nn.Module] = []
        channels = 1
        for convolutions, width in zip((1, 1, 2, 2, 2), widths, strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))  # halves height and width: 112, 56, 28, 14, 7
        classifier = nn.Sequential(
            nn.Flatten(),  # (batch, 49 * channels)
            nn.Linear(7 * 7 * channels, hidden),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )
        super().__init__(nn.Sequential(*layers), classifier)


ARCHITECTURE = Architecture(
    build=VGG11,
    preprocessing=Preprocessing(size=(224, 224)),
    recipes=deep(learning_rate=0.001, tuned_rate=0.0005, batch_size=64),
    paper="Simonyan, Zisserman: Very deep convolutional networks for large-scale image recognition, 2014",
)
