"""Training, from a recipe to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Data, Dataset, Images, open_dataset, require_labels
from cnndeploy.datasets.fashion_mnist import Images as FashionMNISTImages
from cnndeploy.devices import last_line, open_device
from cnndeploy.errors import DataError, TrainingError
from cnndeploy.files import check_writable, held
from cnndeploy.importing.families import Known, known_of
from cnndeploy.importing.weights import Weights, weights_of
from cnndeploy.machine import keep_freed_memory, usable_cpus
from cnndeploy.progress import Progress, silent
from cnndeploy.sources import is_users, remember, resolved
from cnndeploy.specs import Manifest
from cnndeploy.training.batches import on_device
from cnndeploy.training.decoded import Decoded, Decoder, Held
from cnndeploy.training.distributed import Processes, from_environment, joined
from cnndeploy.training.loop import Calls, Loop
from cnndeploy.training.state import (
    Epoch,
    Plan,
    Precision,
    State,
    Step,
    log_path,
    require_same,
    resolve,
    state_path,
)
from cnndeploy.training.subject import Subject, described, tried

Splits = tuple[Images, Images]
# What torch says if memory runs out: of the CPU's, and of a GPU's to cuBLAS and cuDNN.
_NO_MEMORY = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def train(
    architecture: str | None,
    output: str | os.PathLike[str],
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Any = None,
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
    on_note: Callable[[str], None] = lambda _: None,
    progress: Progress = silent,
) -> Artifact:
    """Train a network and write its checkpoint to ``output`` after every epoch.

    Beside it lie ``<output>.jsonl``, a line for each epoch, and until the last epoch is done ``<output>.resume``.
    In processes that torchrun started, each computes its share of every batch, and rank 0 writes, into a folder
    that all share. On a CPU the same arguments, threads and versions make bitwise the same weights.

    Images of a folder are decoded once, into a temporary file. Those that cannot be read are left out, with a warning.
    Those to test on are prepared as :func:`cnndeploy.evaluate` prepares them.

    Args:
        architecture: What builds the network: an architecture of cnndeploy, ``torchvision:NAME``, ``timm:NAME``,
            ``package.module:factory``, or ``path/to/file.py:factory``, whose code is run; None for that of
            ``recipe_of``.
        output: The checkpoint file.
        arguments: Keyword arguments of the factory. The number of classes is filled in if the factory takes it.
        weights: A file of torch.save, or of safetensors, with the weights to start from. Those whose shapes are for
            other classes are left out. By default weights are fresh, or those of ``torchvision:NAME@WEIGHTS``.
        preprocessing: Whatever :func:`cnndeploy.preprocessing_of` reads; by default what comes with the name, and for a
            network of your own ImageNet's: RGB, the shorter side resized to 256, 224 x 224 cropped.
        recipe: ``tuned``, the default, or for an architecture of cnndeploy ``original``.
        epochs: Passes over the training images; 0 writes untrained weights. The recipe's by default, as
            ``batch_size``, over all processes, and ``learning_rate`` are.
        seed: Random seed for the initial weights, the order of the images, their variation and dropout; 0 by default.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``; if something is gone on with or repeated, its own.
        threads: CPU threads, all that the process may use by default.
        precision: ``float32``, the default, or ``bfloat16``, by autocast if the hardware has it.
        compiled: Run the network through torch.compile.
        images: Train on the first ``images`` only, and test on at most as many.
        data: ``fashion-mnist``, the default, or a folder of images, see :mod:`cnndeploy.datasets.image_folder`. Its
            classes are the network's labels.
        resume: Go on from where the training that wrote to ``output`` stopped, by its own recipe, data, device and
            threads unless others are given; the weights at the end are those of an unbroken one. Begins at the start if
            nothing is there.
        overwrite: Train again, though ``output`` is a trained checkpoint, an unfinished training or another file.
        recipe_of: A checkpoint whose network, recipe, seed, data, images, precision, device and threads are taken
            unless others are given.
        should_stop: Asked after every step; if it returns true, training saves its state and raises Stopped.
        on_step: Called after every step.
        on_epoch: Called after every epoch, when its checkpoint is on disk.
        on_note: Called with sentences on what was chosen or left out before the first step.
        progress: Called while images are decoded.

    Raises:
        UnknownNameError, MissingDependencyError, DeviceUnavailableError, DataError: As they say.
        TrainingError: The loss became infinite or NaN, memory ran out, ``output`` cannot be resumed so, or something
            lies there that a training would replace, and neither ``resume`` nor ``overwrite`` is true.
        ArtifactError: The network cannot be built, or is no classifier; or ``output`` cannot be written, which is found
            out before training, if it can be.
        CheckpointError: ``recipe_of`` wants to run code that nobody named.
        Stopped: ``should_stop`` returned true.

    >>> checkpoint = cnndeploy.train("lenet", "small.pt", epochs=1, images=512, threads=1)
    >>> checkpoint.require_manifest().architecture
    'lenet'
    """
    path, named = Path(output), None if architecture is None else known_of(architecture)
    changes: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    changes |= {"seed": seed, "precision": precision, "compiled": compiled, "images": images}
    name, ways = _recorded_name(named, recipe_of), {"resume": resume, "overwrite": overwrite}
    state = resolve(path, name, recipe, changes, **ways, recipe_of=recipe_of)
    begun = bool(state.plan.dataset_sha256)
    recorded = None if state.manifest is None else state.manifest.data
    dataset = open_dataset(data, recorded, path if begun else recipe_of or path)
    manifest = described(named, arguments, preprocessing, data, dataset, state.manifest)
    images_of = _splits(dataset, manifest, state.plan.images)
    read = _start(named, weights, state.plan, begun)
    _settle(path, state, manifest, images_of, read)
    if state.is_complete:
        return Artifact.open(path)
    processes = from_environment()
    with _working_on(path, processes):
        torch_device = _open_device(state, processes, device, threads)
        subject = _tried(manifest, read, named, processes)
        state.manifest = subject.manifest
        if overwrite and processes.rank == 0:  # else a crash in the first epoch would leave the old one
            state_path(path).unlink(missing_ok=True)
        keep_freed_memory()
        for note in filter(None, (dataset.note, *subject.notes)) if processes.rank == 0 else ():
            on_note(note)
        shown = progress if processes.rank == 0 else silent
        sets = _decoded(images_of, Decoder(manifest.preprocessing, state.plan.recipe, shown, should_stop))
        if isinstance(sets[0], Decoded):
            state.require_pixels(sets[0].sha256, path)
        with _running(state.plan.recipe.batch_size, processes, torch_device):
            calls = Calls(should_stop, on_step, on_epoch)
            return Loop(path, state, subject, *sets, torch_device, processes, calls).run()


@contextmanager
def _working_on(path: Path, processes: Processes) -> Iterator[None]:
    """Hold the output; raise ArtifactError if another training does, or the files beside it cannot be written."""
    with held(path) if processes.rank == 0 else nullcontext():
        for target in (path, state_path(path), log_path(path)):
            check_writable(target)
        yield


def _recorded_name(named: Known | None, recipe_of: str | os.PathLike[str] | None) -> str:
    """Return the name of the network as checkpoints record it."""
    if named is not None:
        return resolved(named.name, named.arguments, None)[0]
    if recipe_of is None:
        raise TrainingError("name the network, or with recipe_of a checkpoint to train again")
    return Artifact.open(recipe_of).require_manifest().architecture


def _splits(dataset: Dataset, manifest: Manifest, count: int | None) -> Splits:
    """Return the images to train and to test on, at most ``count`` of each."""
    channels, labels = manifest.preprocessing.channels, manifest.labels
    training_set, test_set = (dataset.split(name, channels, labels) for name in ("train", "test"))
    require_labels(test_set, dataset)
    return training_set.first(count), test_set.first(min(count or len(test_set), len(test_set)))


def _start(
    named: Known | None, path: str | os.PathLike[str] | None, plan: Plan, begun: bool
) -> Weights | None:
    """Read the weights to start from; raise TrainingError if those of a training that is repeated are not given."""
    read = None
    if path is not None or (named is not None and not begun):
        read = weights_of(named or Known(plan.architecture), path)
    if read is None and not begun and plan.start is not None:
        raise TrainingError(
            f"it was trained from weights, {plan.start}; to repeat it, pass the same file as weights"
        )
    return read


def _settle(path: Path, state: State, manifest: Manifest, splits: Splits, read: Weights | None) -> None:
    """Complete the plan; raise TrainingError if a training was begun on other images or with another network."""
    start = state.plan.start if read is None else read.sha256 or read.origin
    plan = replace(state.plan, dataset_sha256=_sha256(*splits), start=start)
    if state.plan.dataset_sha256:  # it was begun
        state.plan.require(plan, path)
        if state.manifest is not None:
            require_same(state.manifest, manifest, path)
    state.plan = plan


def _sha256(training_set: Images, test_set: Images) -> dict[str, str]:
    """Return what identifies the images; a folder of images may be elsewhere the next time."""
    if isinstance(training_set, FashionMNISTImages):
        return {**training_set.sha256, **test_set.sha256}
    sets = {"train": training_set, "test": test_set}
    return {name: ", ".join(images.sha256.values()) for name, images in sets.items()}


def _tried(manifest: Manifest, read: Weights | None, named: Known | None, processes: Processes) -> Subject:
    """Try the network out; that the caller named its source is noted, so that its checkpoints can be opened."""
    subject = tried(manifest, read)
    if named is not None and is_users(subject.manifest.architecture) and processes.rank == 0:
        remember(subject.manifest.architecture, subject.manifest.source)
    return subject


def _decoded(splits: Splits, decoder: Decoder) -> tuple[Held, Held]:
    """Return the images as the loop takes them, decoded if need be."""
    training_set, test_set = splits
    held = [images for images in splits if isinstance(images, FashionMNISTImages)]
    if len(held) == 2 and on_device(decoder.preprocessing, decoder.recipe):
        return held[0], held[1]
    if decoder.recipe.epochs == 0:
        training_set, test_set = training_set.first(1), test_set.first(1)
    elif len(training_set) < 2:
        raise DataError("there is 1 image to train on; a network is trained on 2 or more")
    return decoder.to_train(training_set), decoder.to_test(test_set)


def _open_device(state: State, processes: Processes, device: str | None, threads: int | None) -> torch.device:
    """Open the device given, else the state's, and note in the state what is trained on."""
    name = processes.device(device or ("cpu" if processes.count > 1 else state.device))
    threads = threads or state.threads or max(1, usable_cpus() // processes.local_count)
    torch_device = open_device(name, "training", threads)
    if state.plan.precision == "bfloat16" and not has_bfloat16(torch_device):
        raise TrainingError(f"{torch_device} does not compute in bfloat16; train with float32, the default")
    state.device, state.threads = str(torch_device), torch.get_num_threads()
    return torch_device


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def _running(batch_size: int, processes: Processes, device: torch.device) -> Iterator[None]:
    with _explained(batch_size), deterministic(device), joined(processes, device):
        yield


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Have torch take kernels on a GPU that return the same bits each time, and warn if there is none.

    Source: torch's notes on reproducibility; cuBLAS reads its variable when it is first used.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    before = torch.get_deterministic_debug_mode(), cudnn.benchmark, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # memory that is about to be written need not hold NaN first
    cudnn.benchmark = memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        mode, cudnn.benchmark, memory.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)


@contextmanager
def _explained(batch_size: int) -> Iterator[None]:
    """Turn what torch raises if a batch is too large, or too small for batch normalisation, into a TrainingError."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"Batch normalisation needs two images or more in each process, and a batch has {batch_size}. Train again "
            f"with overwrite=True and batch_size={max(8, 2 * batch_size)}, for example."
        ) from error
    except RuntimeError as error:
        of_memory = isinstance(error, torch.OutOfMemoryError) or any(
            words in str(error) for words in _NO_MEMORY
        )
        if not of_memory:
            raise
        raise TrainingError(
            f"Memory ran out: {last_line(error)} Train again with overwrite=True and a smaller batch, such as "
            f"batch_size={max(1, batch_size // 2)}."
        ) from error
