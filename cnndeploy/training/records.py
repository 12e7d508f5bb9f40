"""What training reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Where training stands: ``step`` of ``steps`` in ``epoch`` of ``epochs``, all from 1.

    ``loss`` and ``accuracy`` are means over the ``images`` of the epoch so far; with several processes, over
    those of the first. ``images_per_s`` is over all processes, since the epoch was begun or resumed.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """A completed epoch; ``test_accuracy`` is on ``test_images`` images that were not trained on."""

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    test_images: int
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom training asks and tells: ``should_stop`` after every step, the others as their names say."""

    should_stop: Callable[[], bool]
    on_step: Callable[[Step], None] | None = None
    on_epoch: Callable[[Epoch], None] | None = None
