"""Recipe: how a network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Recipe:
    """Adam on the cross-entropy of ``batch_size`` images, ``epochs`` times over the training images.

    ``learning_rate`` is Adam's, constant; its other parameters are torch's defaults. ``initialisation`` is
    ``torch``, each layer's own default, or ``he``, normal with a variance of 2 over the fan-in and no bias,
    without which the signal dies on its way through a deep network of ReLUs.

    Source: He, Zhang, Ren, Sun: Delving deep into rectifiers, 2015, equation 10.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    initialisation: Literal["torch", "he"] = "torch"
