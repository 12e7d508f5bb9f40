"""Data sets: images with labels, in splits ``train`` and ``test``. One kind a file."""

from __future__ import annotations

from cnndeploy.datasets._dataset import DATASETS, Batch, Damaged, Data, Dataset, Images, Split
from cnndeploy.datasets._feeds import feeds
from cnndeploy.datasets._open import open_dataset, require_labels, sound, warn_of

__all__ = [
    "DATASETS",
    "Batch",
    "Damaged",
    "Data",
    "Dataset",
    "Images",
    "Split",
    "feeds",
    "open_dataset",
    "require_labels",
    "sound",
    "warn_of",
]
