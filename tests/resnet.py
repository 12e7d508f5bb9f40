"""A small residual network for colour images, as an engineer would write one outside of cnndeploy.

It imports nothing but PyTorch, so that it can also be named by its path, as ``tests/resnet.py:build``. It has what our
own networks lack: batch normalisation, residual additions, a depthwise convolution, squeeze and excitation, and
hard-swish.
"""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions, and their input added to what they compute."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, inputs, height, width)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        result: torch.Tensor = self.relu(out)
        return result


class SqueezeExcitation(nn.Module):
    """Each channel times a factor that follows from the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors: torch.Tensor = self.gate(self.fc2(self.relu(self.fc1(self.squeeze(x)))))
        return x * factors


class Depthwise(nn.Module):
    """An inverted residual: expand, filter each channel alone, squeeze and excite, project, add."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.block = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide, eps=1e-3),
            nn.Hardswish(inplace=True),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide, eps=1e-3),
            nn.Hardswish(inplace=True),
            SqueezeExcitation(wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels, eps=1e-3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.block(x)
        return x + change


class ResNet(nn.Module):
    """Colour images to logits; takes any size from 16 x 16."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.layer1 = Residual(width, width, stride=1)
        self.layer2 = Residual(width, 2 * width, stride=2)
        self.layer3 = Depthwise(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, 3, height, width)
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        x = torch.flatten(self.pool(x), 1)  # (batch, 2 * width)
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits


def build(classes: int = 5, width: int = 8) -> nn.Module:
    """Build the network, its weights random."""
    return ResNet(classes, width)
