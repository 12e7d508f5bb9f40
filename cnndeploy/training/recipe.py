"""Recipe: how a network is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Adam on the cross-entropy of ``batch_size`` images, ``epochs`` times over the training images.

    ``learning_rate`` is Adam's, constant; its other parameters are torch's defaults.
    """

    epochs: int
    batch_size: int
    learning_rate: float
