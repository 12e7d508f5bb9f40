"""The training loop.

The data set is held once, as uint8, on the training device; batches are sliced, scaled and resized there.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cnndeploy import data, registry
from cnndeploy.artifact import Artifact, check_writable
from cnndeploy.errors import TrainingError
from cnndeploy.machine import usable_cpus
from cnndeploy.runtimes._torch import last_line, open_device
from cnndeploy.specs import Preprocessing
from cnndeploy.training.checkpoint import Checkpoint, initialised

_EVALUATION_BATCH = 256
_TOO_FAST = "The learning rate is probably too high; try a tenth of it with --lr."


@dataclass(frozen=True, slots=True)
class Step:
    """Where training stands: ``step`` of ``steps`` in ``epoch`` of ``epochs``, all from 1.

    ``loss`` and ``accuracy`` are means over the epoch's training images so far.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """A completed epoch; ``test_accuracy`` is on ``test_images`` images that were not trained on."""

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    test_images: int
    seconds: float


def train(
    architecture: str,
    output: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    limit: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Artifact:
    """Train a network on Fashion-MNIST and write its checkpoint to ``output`` after every epoch.

    Args:
        architecture: A name in ``cnndeploy list``.
        output: The checkpoint file.
        epochs: Passes over the training images; 0 writes untrained weights. The architecture's by default,
            as ``batch_size`` and ``learning_rate`` (Adam's) are.
        seed: Of the initial weights, the order of the images and dropout.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads, all that the process may use by default.
        limit: Train on the first ``limit`` images only, and test on at most as many.
        data_dir: Folder of the data set, see :func:`cnndeploy.data.data_folder`.
        on_step: Called after every step.
        on_epoch: Called after every epoch, when its checkpoint is on disk.

    Raises:
        UnknownNameError, DeviceUnavailableError, DataError: As they say.
        TrainingError: The loss became infinite or NaN.
        ArtifactError: ``output`` cannot be written; found out before training.
    """
    design = registry.get("architectures", architecture)
    chosen: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    recipe = replace(design.recipe, **{name: value for name, value in chosen.items() if value is not None})
    if recipe.epochs < 0 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
        raise TrainingError(f"epochs from 0, batch size from 1, learning rate above 0, but got {recipe}")
    threads = usable_cpus() if threads is None else threads
    torch_device = open_device(device, "training", threads)
    training_set = data.load("train", data_dir).first(limit)
    test_set = data.load("test", data_dir)
    test_set = test_set.first(min(limit, len(test_set)) if limit is not None else None)
    check_writable(output)

    facts: dict[str, Any] = {
        "recipe": {**asdict(recipe), "optimizer": "Adam", "seed": seed, "limit": limit},
        "device": str(torch_device),
        "threads": threads,
        "images": len(training_set),
        "test_images": len(test_set),
        "dataset_sha256": {**training_set.sha256, **test_set.sha256},
        "epochs": [],
    }
    network = initialised(architecture, seed).to(torch_device)
    if recipe.epochs == 0:
        return Checkpoint.of(architecture, network).save(output)

    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    batches = _Batches(training_set, design.preprocessing, recipe.batch_size, torch_device)
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[torch_device] if torch_device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout's
        for epoch in range(1, recipe.epochs + 1):
            started = time.perf_counter()
            try:
                last = _train_epoch(network, optimizer, batches, order, epoch, recipe.epochs, on_step)
            except RuntimeError as error:  # torch's own; memory is by far the likeliest
                advice = f"If memory ran out, try --batch-size {max(1, recipe.batch_size // 2)}."
                raise TrainingError(f"torch stopped in epoch {epoch}: {last_line(error)} {advice}") from error
            accuracy = _accuracy(network, test_set, design.preprocessing, torch_device)
            done = Epoch(
                epoch,
                recipe.epochs,
                last.loss,
                last.accuracy,
                accuracy,
                len(test_set),
                time.perf_counter() - started,
            )
            facts["epochs"].append({key: value for key, value in asdict(done).items() if key != "seconds"})
            facts["test_accuracy"] = accuracy
            checkpoint = Checkpoint.of(architecture, network, facts)
            if not checkpoint.is_finite():
                raise TrainingError(f"Weights became NaN or infinite in epoch {epoch}. {_TOO_FAST}")
            artifact = checkpoint.save(output)
            if on_epoch is not None:
                on_epoch(done)
    return artifact


class _Batches:
    """The images on the device, given out in shuffled batches, ready for the network."""

    def __init__(
        self, images: data.Images, preprocessing: Preprocessing, size: int, device: torch.device
    ) -> None:
        self._images = torch.tensor(images.images, device=device)  # uint8 (n, 28, 28)
        self._labels = torch.tensor(images.labels, device=device, dtype=torch.long)  # (n,)
        self._preprocessing = preprocessing
        self._size = size

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._size)

    def shuffled(self, order: torch.Generator) -> Any:
        permutation = torch.randperm(len(self._images), generator=order).to(self._images.device)
        for index in permutation.split(self._size):
            yield preprocess(self._images[index], self._preprocessing), self._labels[index]


def _train_epoch(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: _Batches,
    order: torch.Generator,
    epoch: int,
    epochs: int,
    on_step: Callable[[Step], None] | None,
) -> Step:
    network.train()
    loss_sum = correct = seen = 0.0
    for step, (images, labels) in enumerate(batches.shuffled(order), start=1):
        optimizer.zero_grad(set_to_none=True)
        logits = network(images)  # (batch, 10)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
        if not math.isfinite(loss_sum):
            raise TrainingError(f"The loss is {loss.item()} at step {step} of epoch {epoch}. {_TOO_FAST}")
        state = Step(epoch, epochs, step, len(batches), loss_sum / seen, correct / seen)
        if on_step is not None:
            on_step(state)
    return state


def _accuracy(
    network: torch.nn.Module, images: data.Images, preprocessing: Preprocessing, device: torch.device
) -> float:
    network.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(images), _EVALUATION_BATCH):
            batch: NDArray[np.uint8] = images.images[start : start + _EVALUATION_BATCH]
            logits = network(preprocess(torch.tensor(batch, device=device), preprocessing))
            labels = images.labels[start : start + _EVALUATION_BATCH]
            correct += int((logits.argmax(dim=1).cpu().numpy() == labels).sum())
    return correct / len(images)


def preprocess(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """:class:`~cnndeploy.specs.Preprocessing` on torch's device.

    Args:
        images: uint8 (batch, height, width).

    Returns:
        float32 (batch, 1, *size).
    """
    prepared = images[:, None].float() * preprocessing.scale
    if prepared.shape[2:] != preprocessing.size:
        prepared = functional.interpolate(
            prepared, preprocessing.size, mode="bilinear", align_corners=False, antialias=False
        )
    return (prepared - preprocessing.mean) / preprocessing.std
