"""A log of a training's epochs for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from cnndeploy.training.state import Epoch

_SCALARS = ("train_loss", "train_accuracy", "test_accuracy", "learning_rate")


def logger(folder: Path) -> Callable[[Epoch], None]:
    """Return a function that logs an epoch under ``folder``; needs the extra ``tensorboard``."""
    writer = SummaryWriter(str(folder))

    def log(epoch: Epoch) -> None:
        for name in _SCALARS:
            writer.add_scalar(name, getattr(epoch, name), epoch.epoch)
        writer.flush()

    return log
