"""Batches: the images to train on, sliced, varied and prepared on the training device; and those to test on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cnndeploy.architectures._recipe import Recipe
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.torch_preprocessing import TorchPreprocessing
from cnndeploy.training.decoded import Decoded, Held, finishing
from cnndeploy.training.distributed import Processes

Batch = tuple[torch.Tensor, torch.Tensor, int]

_LEAST = 4  # a last batch with less than this part of a batch is joined to the one before


class Batches:
    """The images, held once as uint8; the batches of an epoch depend only on seed and epoch.

    Each process gets its share of every global batch, so that all together take the same steps as one would. Images of
    Fashion-MNIST are held on the device, and scaled and resized there. Decoded images stay in their file. A small last
    batch of them is joined to the one before it, because batch normalisation needs several images.
    """

    def __init__(
        self,
        images: Held,
        preprocessing: Preprocessing,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self._recipe, self._seed, self._processes = recipe, seed, processes
        self._device, self._size = device, preprocessing.size
        self._joins = isinstance(images, Decoded)
        self._prepare: Callable[[torch.Tensor], torch.Tensor]
        if isinstance(images, Decoded):
            self._images = torch.from_numpy(images.images)  # uint8 (n, h, w) or (n, h, w, 3)
            self._prepare = _Normalised(preprocessing).to(device)
        else:
            self._images = torch.tensor(images.images, device=device)  # uint8 (n, 28, 28)
            self._prepare = TorchPreprocessing(preprocessing, images.images.shape[1:])
        self._labels = torch.tensor(images.labels, device=device, dtype=torch.long)  # (n,)

    def __len__(self) -> int:
        """Count the steps in an epoch."""
        whole, rest = divmod(len(self._images), self._recipe.batch_size)
        joined = self._joins and whole > 0 and rest < self._recipe.batch_size / _LEAST
        return whole + (rest > 0 and not joined)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield images float32 (share, channels, *size), labels (share,), and how many images the global batch has.

        ``epoch`` is from 1; the batches before ``first_step`` are left out.
        """
        order = torch.randperm(len(self._images), generator=generator("order", self._seed, epoch))
        size, steps = self._recipe.batch_size, len(self)
        for step in range(first_step, steps):
            batch = order[step * size : None if step == steps - 1 else (step + 1) * size]
            draw = generator("variation", self._seed, epoch, step)
            mine = self._processes.share(batch)
            images = _sent(self._images[_sent(mine, self._images.device)], self._device)
            images = self._prepare(self._varied(images, len(batch), draw))
            yield images, self._labels[_sent(mine, self._device)], len(batch)

    def _varied(self, images: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
        """Vary this process's share of a batch of ``count`` images, (share, h, w) or (share, h, w, 3)."""

        def share(values: torch.Tensor) -> torch.Tensor:
            return _sent(self._processes.share(values), images.device)

        if self._recipe.flip:
            flipped = share(torch.rand(count, generator=draw) < 0.5)
            images = torch.where(flipped.reshape(-1, *[1] * (images.ndim - 1)), images.flip(2), images)
        if reach := self._recipe.shift:
            moves = torch.randint(2 * reach + 1, (count, 2), generator=draw)
            framed = functional.pad(images, (0, 0) * (images.ndim - 3) + (reach,) * 4)
            images = _cut(framed, share(moves), images.shape[1:3])
        if self._recipe.crop:
            room = torch.tensor(images.shape[1:3]) - torch.tensor(self._size) + 1
            moves = (torch.rand(count, 2, generator=draw, dtype=torch.float64) * room).long()
            images = _cut(images, share(moves), self._size)
        return images


class HeldOut:
    """The images to test on, prepared as they are when the network is deployed."""

    def __init__(self, images: Held, preprocessing: Preprocessing, device: torch.device) -> None:
        self._images, self.labels = images.images, np.asarray(images.labels, np.int64)
        self._prepare: Callable[[NDArray[Any]], torch.Tensor]
        if isinstance(images, Decoded):
            prepare = finishing(preprocessing, images)
            self._prepare = lambda raw: torch.from_numpy(prepare(raw)).to(device)
        else:
            there = TorchPreprocessing(preprocessing, images.images.shape[1:])
            self._prepare = lambda raw: there.forward(torch.tensor(raw, device=device))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, places: slice) -> torch.Tensor:
        """Return images as the network takes them, float32 (n, channels, *size), on the device."""
        return self._prepare(self._images[places])


class _Normalised(nn.Module):
    """The last part of a preprocessing: bytes, (n, h, w) or (n, h, w, 3), to float32 (n, channels, h, w)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._scale = preprocessing.scale
        for name, values in (("mean", preprocessing.means), ("std", preprocessing.stds)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scale and normalise, rounded as the preprocessing rounds."""
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        values = images.to(torch.float32, memory_format=torch.contiguous_format)
        values = values / 255 if self._scale == 1 / 255 else values * self._scale
        return (values - self.mean) / self.std


def on_device(preprocessing: Preprocessing, recipe: Recipe) -> bool:
    """Return whether Fashion-MNIST is held and prepared on the device: in grey, resized there, and not cut out."""
    plain = not (preprocessing.antialias or recipe.crop) and preprocessing.resize is None
    return preprocessing.channels == 1 and plain


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """Return a generator of random numbers that depend only on these arguments, on every machine."""
    digest = hashlib.sha256(repr((purpose, *numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return values on a device; they are copied there, if need be, without waiting for the GPU.

    The memory that they are copied from is pinned, else the host would wait; torch keeps it until the copy is done.
    """
    return values if values.device == device else values.pin_memory().to(device, non_blocking=True)


def _cut(images: torch.Tensor, corners: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Cut a part of this size out of each image (n, h, w) or (n, h, w, 3), at its top left corner (n, 2)."""
    rows = (corners[:, :1] + torch.arange(size[0], device=images.device))[:, :, None]  # (n, height, 1)
    columns = (corners[:, 1:] + torch.arange(size[1], device=images.device))[:, None, :]  # (n, 1, width)
    return images[torch.arange(len(images), device=images.device)[:, None, None], rows, columns]
