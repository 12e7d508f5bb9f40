"""Training, from a recipe to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Data, open_dataset
from cnndeploy.datasets.fashion_mnist import LABELS, FashionMNIST, fetch_command
from cnndeploy.devices import last_line, open_device
from cnndeploy.errors import DataError, TrainingError
from cnndeploy.files import check_writable
from cnndeploy.machine import keep_freed_memory, usable_cpus
from cnndeploy.training.distributed import Processes, from_environment, joined
from cnndeploy.training.loop import Loop
from cnndeploy.training.state import Epoch, Precision, State, Step, log_path, resolve, state_path


def train(
    architecture: str,
    output: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    compiled: bool | None = None,
    images: int | None = None,
    data: Data | None = None,
    resume: bool = False,
    overwrite: bool = False,
    recipe_of: str | os.PathLike[str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Artifact:
    """Train a network on Fashion-MNIST and write its checkpoint to ``output`` after every epoch.

    Beside it lie ``<output>.jsonl``, a line for each epoch, and until the last epoch is done ``<output>.resume``.
    In processes that torchrun started, each computes its share of every batch, and rank 0 writes, into a folder
    that all share. On a CPU the same arguments, threads and versions make bitwise the same weights.

    Args:
        architecture: A name in ``cnndeploy list``.
        output: The checkpoint file.
        recipe: ``tuned``, the default, or ``original``.
        epochs: Passes over the training images; 0 writes untrained weights. The recipe's by default, as
            ``batch_size``, over all processes, and ``learning_rate`` are.
        seed: Random seed for the initial weights, the order of the images, their variation and dropout; 0 by default.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``; if something is gone on with or repeated, its own.
        threads: CPU threads, all that the process may use by default.
        precision: ``float32``, the default, or ``bfloat16``, by autocast if the hardware has it.
        compiled: Run the network through torch.compile.
        images: Train on the first ``images`` only, and test on at most as many.
        data: ``fashion-mnist``, or a folder that holds it. Other images cannot be trained on yet.
        resume: Go on from where the training that wrote to ``output`` stopped, by its own recipe, device and threads
            unless others are given; the weights at the end are those of an unbroken one. Begins at the start if nothing
            is there.
        overwrite: Train again, though ``output`` is a trained checkpoint, an unfinished training or another file.
        recipe_of: A checkpoint whose recipe, seed, images, precision, device and threads are taken unless others are
            given.
        should_stop: Asked after every step; if it returns true, training saves its state and raises Stopped.
        on_step: Called after every step.
        on_epoch: Called after every epoch, when its checkpoint is on disk.

    Raises:
        UnknownNameError, DeviceUnavailableError, DataError: As they say.
        TrainingError: The loss became infinite or NaN, memory ran out, ``output`` cannot be resumed so, or something
            lies there that a training would replace, and neither ``resume`` nor ``overwrite`` is true.
        ArtifactError: ``output`` cannot be written; found out before training, if it can be.
        Stopped: ``should_stop`` returned true.

    >>> checkpoint = cnndeploy.train("lenet", "small.pt", epochs=1, images=512, threads=1)
    >>> checkpoint.require_manifest().architecture
    'lenet'
    """
    path = Path(output)
    of_recipe = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    of_plan = {"seed": seed, "precision": precision, "compiled": compiled, "images": images}
    state = resolve(
        path,
        architecture,
        recipe,
        of_recipe | of_plan,
        resume=resume,
        overwrite=overwrite,
        recipe_of=recipe_of,
    )
    count = state.plan.images
    dataset = open_dataset(data)
    if not isinstance(dataset, FashionMNIST):
        raise DataError(
            f"{data}: networks are trained on Fashion-MNIST only, not yet on folders of images. To fetch it into this "
            f"folder: {fetch_command(data)}"
        )
    training_set, test_set = (dataset.split(name, 1, LABELS) for name in ("train", "test"))
    training_set = training_set.first(count)
    test_set = test_set.first(min(count or len(test_set), len(test_set)))
    plan = replace(state.plan, dataset_sha256={**training_set.sha256, **test_set.sha256})
    if state.plan.dataset_sha256:  # it was begun, on the same data set
        state.plan.require(plan, path)
    state.plan = plan
    if state.is_complete:
        return Artifact.open(path)
    processes = from_environment()
    torch_device = _open_device(state, processes, device, threads)
    for target in (path, state_path(path), log_path(path)):
        check_writable(target)
    if overwrite and processes.rank == 0:  # else a crash in the first epoch would leave the old one to resume
        state_path(path).unlink(missing_ok=True)
    keep_freed_memory()
    with _enough_memory(state.plan.recipe.batch_size), joined(processes, torch_device):
        callbacks = (should_stop, on_step, on_epoch)
        return Loop(path, state, training_set, test_set, torch_device, processes, *callbacks).run()


def _open_device(state: State, processes: Processes, device: str | None, threads: int | None) -> torch.device:
    """Open the device given, else the state's, and note in the state what is trained on."""
    name = processes.device(device or ("cpu" if processes.count > 1 else state.device))
    threads = threads or state.threads or max(1, usable_cpus() // processes.local_count)
    torch_device = open_device(name, "training", threads)
    if state.plan.precision == "bfloat16" and not _has_bfloat16(torch_device):
        raise TrainingError(f"{torch_device} does not compute in bfloat16; train with float32, the default")
    state.device, state.threads = str(torch_device), torch.get_num_threads()
    return torch_device


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def _enough_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"Memory ran out: {last_line(error)} Train again with overwrite=True and a smaller batch, such as "
            f"batch_size={max(1, batch_size // 2)}."
        ) from error
