"""Batches: the data set on the training device, sliced, varied, scaled and resized there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch.nn import functional

from cnndeploy.architectures._recipe import Recipe
from cnndeploy.datasets.fashion_mnist import Images
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.torch_preprocessing import TorchPreprocessing
from cnndeploy.training.distributed import Processes

Batch = tuple[torch.Tensor, torch.Tensor, int]


class Batches:
    """The images, held once as uint8; the batches of an epoch depend only on seed and epoch.

    Each process gets its share of every global batch, so that all together take the same steps as one would.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self._images = torch.tensor(images.images, device=device)  # uint8 (n, 28, 28)
        self._labels = torch.tensor(images.labels, device=device, dtype=torch.long)  # (n,)
        self._preprocessing = TorchPreprocessing(preprocessing, images.images.shape[1:])
        self._recipe, self._seed, self._processes = recipe, seed, processes

    def __len__(self) -> int:
        """Count the steps in an epoch."""
        return math.ceil(len(self._images) / self._recipe.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield images float32 (share, 1, *size), labels (share,), and how many images the global batch has.

        ``epoch`` is from 1; the batches before ``first_step`` are left out.
        """
        order = torch.randperm(len(self._images), generator=generator("order", self._seed, epoch))
        for step, batch in enumerate(order.split(self._recipe.batch_size)):
            if step < first_step:
                continue
            draw = generator("variation", self._seed, epoch, step)
            mine = self._processes.share(batch).to(self._images.device)
            images = self._images[mine]
            if self._recipe.flip:
                flipped = self._processes.share(torch.rand(len(batch), generator=draw) < 0.5).to(
                    images.device
                )
                images = torch.where(flipped[:, None, None], images.flip(2), images)
            if reach := self._recipe.shift:
                moves = torch.randint(2 * reach + 1, (len(batch), 2), generator=draw)
                images = _shifted(images, self._processes.share(moves).to(images.device), reach)
            yield self._preprocessing(images), self._labels[mine], len(batch)


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a generator of random numbers that depend only on these arguments, on every machine."""
    digest = hashlib.sha256(repr((purpose, *numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _shifted(images: torch.Tensor, moves: torch.Tensor, reach: int) -> torch.Tensor:
    """Move each image (n, height, width) by cutting it, at its ``moves`` (n, 2), out of itself in a black frame."""
    height, width = images.shape[1:]
    framed = functional.pad(images, (reach,) * 4)
    rows = (moves[:, :1] + torch.arange(height, device=images.device))[:, :, None]  # (n, height, 1)
    columns = (moves[:, 1:] + torch.arange(width, device=images.device))[:, None, :]  # (n, 1, width)
    return framed[torch.arange(len(images), device=images.device)[:, None, None], rows, columns]
