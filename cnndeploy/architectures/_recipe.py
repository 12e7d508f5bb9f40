"""Recipe: how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_WARM_UP = 0.3
_START, _END = 1 / 25, 1 / 10_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """Adam on the cross-entropy of ``batch_size`` images, ``epochs`` times over the training images.

    - ``initialisation``: ``torch``, each layer's own default; ``he``, normal with a variance of 2 over the
      fan-in, without which the signal dies on its way through a deep network of ReLUs; ``xavier``, uniform with a
      variance of 2 over fan-in plus fan-out, times the 4 that makes up for a sigmoid's slope of a quarter. Biases
      begin at zero in the latter two.
    - ``schedule``: of the learning rate; ``constant``, or ``one-cycle``, up to ``learning_rate`` over the first
      third and down to nearly nothing by the last step.
    - ``weight_decay``: decoupled from the gradient, as in AdamW; 0 is Adam.
    - ``label_smoothing``: this share of each label is spread over all classes.
    - ``flip``: mirror each image left to right by chance. ``shift``: move it by up to so many pixels, black coming in.

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

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Of ``step``, from 0, of all the ``steps`` of a training."""
        if self.schedule == "constant" or steps < 2:
            return self.learning_rate
        done = step / (steps - 1)
        low, part = (_START, done / _WARM_UP) if done < _WARM_UP else (_END, (1 - done) / (1 - _WARM_UP))
        return self.learning_rate * (low + (1 - low) * (1 - math.cos(math.pi * part)) / 2)


def deep(
    learning_rate: float, tuned_rate: float, batch_size: int = 128, epochs: int = 20
) -> dict[str, Recipe]:
    """Return the recipes of a deep network of ReLUs.

    ``batch_size`` is of the first one, ``epochs`` of the second, which is from the sources above and was never run
    here to its end, see docs/RESULTS.md.
    """
    tuned = Recipe(
        epochs, 128, tuned_rate, "he", "one-cycle", weight_decay=0.05, label_smoothing=0.1, flip=True, shift=2
    )
    return {"original": Recipe(5, batch_size, learning_rate, "he"), "tuned": tuned}
