"""Recipe: how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_WARM_UP = 0.3
_START, _END = 1 / 25, 1 / 10_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: Adam on the cross-entropy of ``batch_size`` images, ``epochs`` times over the training images.

    - ``initialisation``: ``torch`` is each layer's own default. ``he`` is normal with a variance of 2 over the fan-in,
      without which the signal dies on its way through a deep network of ReLUs. ``xavier`` is uniform with a variance of
      2 over fan-in plus fan-out, times the 4 that makes up for a sigmoid's slope of a quarter. With the latter two,
      biases begin at zero.
    - ``schedule`` of the learning rate: ``constant``, or ``one-cycle``, which rises to ``learning_rate`` over the first
      third and falls to nearly nothing by the last step.
    - ``weight_decay`` is decoupled from the gradient, as in AdamW; 0 is Adam.
    - ``label_smoothing`` is the share of each label that is spread over all classes.
    - ``flip``: half of the images, chosen at random, are mirrored left to right.
    - ``shift``: each image is moved at random by up to that many pixels; black fills the gap.
    - ``crop``: each image is cut at random out of one that is larger by a seventh, on each side.

    Sources: He et al.: Delving deep into rectifiers, 2015, equation 10. Glorot, Bengio: Understanding the difficulty
    of training deep feedforward neural networks, 2010, equation 16; the 4 as in the Deep Learning Tutorials of their
    laboratory, 2010, chapter on multilayer perceptrons. Smith, Topin: Super-convergence, 2017, with the proportions of
    torch's OneCycleLR. Loshchilov, Hutter: Decoupled weight decay regularization, 2017. Label smoothing: Szegedy et
    al.: Rethinking the Inception architecture, 2015, section 7. Flips and shifts: AlexNet's paper, 2012, section 4.1.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    initialisation: Literal["torch", "he", "xavier"] = "torch"
    schedule: Literal["constant", "one-cycle"] = "constant"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    flip: bool = False
    shift: int = 0
    crop: bool = False

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate at ``step``, counted from 0, of a training's ``steps``."""
        if self.schedule == "constant" or steps < 2:
            return self.learning_rate
        done = step / (steps - 1)
        low, part = (_START, done / _WARM_UP) if done < _WARM_UP else (_END, (1 - done) / (1 - _WARM_UP))
        return self.learning_rate * (low + (1 - low) * (1 - math.cos(math.pi * part)) / 2)


def usual() -> dict[str, Recipe]:
    """Return the recipe of a network that nobody has tuned, from the sources above."""
    tuned = Recipe(
        20, 32, 0.001, "torch", "one-cycle", weight_decay=0.05, label_smoothing=0.1, flip=True, crop=True
    )
    return {"tuned": tuned}


def deep(
    learning_rate: float, tuned_rate: float, batch_size: int = 128, epochs: int = 20
) -> dict[str, Recipe]:
    """Return the recipes of a deep network of ReLUs.

    ``batch_size`` belongs to ``original``, ``epochs`` to ``tuned``. The tuned recipes come from the sources above;
    docs/RESULTS.md says how far they were run here.
    """
    tuned = Recipe(
        epochs, 128, tuned_rate, "he", "one-cycle", weight_decay=0.05, label_smoothing=0.1, flip=True, shift=2
    )
    return {"original": Recipe(5, batch_size, learning_rate, "he"), "tuned": tuned}
