"""The training loop: fast, repeatable, and resumable after every step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from cnndeploy import data
from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint, initialised
from cnndeploy.errors import TrainingError
from cnndeploy.files import check_writable, write_file
from cnndeploy.machine import keep_freed_memory, usable_cpus
from cnndeploy.torch_device import last_line, open_device
from cnndeploy.torch_preprocessing import TorchPreprocessing
from cnndeploy.training.batches import Batches, generator
from cnndeploy.training.distributed import Processes, from_environment, joined
from cnndeploy.training.plan import Plan, Precision
from cnndeploy.training.rewrite import pool_first
from cnndeploy.training.state import State, state_path

_EVALUATION_BATCH = 256
_TOO_FAST = "The learning rate is probably too high; begin anew with a tenth of it, by --lr."
_BEGIN_ANEW = "Leave --resume out to begin anew."


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
    limit: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    recipe_of: str | os.PathLike[str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Artifact:
    """Train a network on Fashion-MNIST and write its checkpoint to ``output`` after every epoch.

    Beside it lie ``<output>.jsonl``, a line for each epoch, and until the last epoch is done ``<output>.resume``.
    In processes that torchrun started, each computes its share of every batch, and rank 0 writes, into a folder
    that all share. On a CPU the same arguments, threads and versions give bitwise the same weights.

    Args:
        architecture: A name in ``cnndeploy list``.
        output: The checkpoint file.
        recipe: ``tuned``, the default, or ``original``.
        epochs: Passes over the training images; 0 writes untrained weights. The recipe's by default, as
            ``batch_size``, over all processes, and ``learning_rate`` are.
        seed: Of the initial weights, the order of the images, their variation and dropout; 0 by default.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``; where something is gone on with or repeated, its own.
        threads: CPU threads, all that the process may use by default.
        precision: ``float32``, the default, or ``bf16``, by autocast where the hardware has it.
        compiled: Run the network through torch.compile.
        limit: Train on the first ``limit`` images only, and test on at most as many.
        data_dir: Folder of the data set, see :func:`cnndeploy.data.data_folder`.
        resume: Go on where the training that wrote to ``output`` stopped, by its own recipe, device and threads
            where none are given; the weights at the end are those of an unbroken one. Begins anew where nothing is.
        recipe_of: A checkpoint whose recipe, seed, limit, precision, device and threads are taken where none are given.
        should_stop: Asked after every step; training then saves its state and raises KeyboardInterrupt.
        on_step: Called after every step.
        on_epoch: Called after every epoch, when its checkpoint is on disk.

    Raises:
        UnknownNameError, DeviceUnavailableError, DataError: As they say.
        TrainingError: The loss became infinite or NaN, memory ran out, ``output`` cannot be resumed so, or an
            unfinished training lies there and ``resume`` is false.
        ArtifactError: ``output`` cannot be written; found out before training, where it can be.

    >>> checkpoint = cnndeploy.train("lenet", "small.pt", epochs=1, limit=512, threads=1)
    >>> checkpoint.require_manifest().architecture
    'lenet'
    """
    path = Path(output)
    asked: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    asked |= {"precision": precision, "compiled": compiled, "limit": limit}
    if state_path(path).exists() and not resume:
        raise TrainingError(
            f"{state_path(path)} holds an unfinished training. Go on with it by --resume, or remove it to begin anew."
        )
    found = _found(path, architecture) if resume else None
    like = found if recipe_of is None else _like(recipe_of, architecture)
    plan = _plan(architecture, recipe, like).changed(asked)
    training_set, test_set = (_images(split, plan.limit, data_dir) for split in ("train", "test"))
    plan = replace(plan, dataset_sha256={**training_set.sha256, **test_set.sha256})
    if found is not None and found.plan != plan:
        raise TrainingError(f"{path} was begun otherwise: {found.plan.differences(plan)}. {_BEGIN_ANEW}")
    if found is not None and found.is_complete:
        return Artifact.open(path)
    state = State(plan) if found is None else found
    processes = from_environment()
    if like is not None:
        device = device or ("cpu" if processes.count > 1 else like.device)
        threads = threads or like.threads
    torch_device = open_device(
        processes.device(device or "cpu"),
        "training",
        threads or max(1, usable_cpus() // processes.local_count),
    )
    if plan.precision == "bf16" and not _has_bf16(torch_device):
        raise TrainingError(f"{torch_device} does not compute in bfloat16; leave --precision out")
    for target in (path, state_path(path), Path(f"{path}.jsonl")):
        check_writable(target)
    state.device, state.threads = str(torch_device), torch.get_num_threads()
    keep_freed_memory()
    with _memory_is_enough(plan.recipe.batch_size), joined(processes, torch_device):
        run = _Run(path, state, training_set, test_set, torch_device, processes)
        return run.train(should_stop, on_step, on_epoch)


def _plan(architecture: str, recipe: str | None, like: State | None) -> Plan:
    """That of ``like``, unless it is of another network or recipe than asked for; then the recipe's own."""
    if like is None or like.plan.architecture != architecture or recipe not in (None, like.plan.recipe_name):
        return Plan.of(architecture, recipe)
    return like.plan


def _images(
    split: Literal["train", "test"], limit: int | None, folder: str | os.PathLike[str] | None
) -> data.Images:
    """The first ``limit`` training images, and at most as many test images."""
    images = data.load(split, folder)
    return images.first(limit if split == "train" else min(limit or len(images), len(images)))


@contextmanager
def _memory_is_enough(batch_size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"Memory ran out: {last_line(error)} Begin anew with a smaller batch, as --batch-size "
            f"{max(1, batch_size // 2)}."
        ) from error


def _found(path: Path, architecture: str) -> State | None:
    """The training that lies at ``path``, unfinished or complete."""
    if state_path(path).exists():
        return State.load(path)
    if not path.exists():
        return None
    manifest = Artifact.open(path).require_manifest()
    if manifest.architecture != architecture:
        raise TrainingError(f"{path} is a {manifest.architecture}, not a {architecture}. {_BEGIN_ANEW}")
    if not manifest.training:  # untrained
        return None
    state = _recorded(manifest.training, path)
    if not state.is_complete:
        raise TrainingError(f"{path} is unfinished, and {state_path(path)} is not there. {_BEGIN_ANEW}")
    return state


def _like(path: str | os.PathLike[str], architecture: str) -> State:
    """The beginning of a training like that of a checkpoint."""
    manifest = Artifact.open(path).require_manifest()
    if manifest.architecture != architecture:
        raise TrainingError(f"{path} is a {manifest.architecture}, not a {architecture}")
    return replace(_recorded(manifest.training, path), epochs=[])


def _recorded(training: Mapping[str, Any], where: object) -> State:
    plan = Plan.recorded(training, where)
    return State(plan, training["device"], training["threads"], list(training["epochs"]))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


class _Run:
    """One training on one device, from a state to its end."""

    def __init__(
        self,
        output: Path,
        state: State,
        training_set: data.Images,
        test_set: data.Images,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self._output = output
        self._state = state
        self._plan = plan = state.plan
        self._recipe = plan.recipe
        self._device = device
        self._processes = processes
        self._training_images = len(training_set)
        self._test_set = test_set
        preprocessing = ARCHITECTURES.get(plan.architecture).preprocessing
        self._preprocessing = TorchPreprocessing(preprocessing, test_set.images.shape[1:])
        self._batches = Batches(training_set, preprocessing, plan.recipe, plan.seed, device, processes)
        network = initialised(plan.architecture, plan.seed, plan.recipe.initialisation)
        pool_first(network)
        # channels last is how both oneDNN and cuDNN compute convolutions best
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), weight_decay=plan.recipe.weight_decay, fused=True
        )
        if state.network:
            self._take_up(state)
        if processes.rank > 0:  # the sums of what was done before count once
            state.sums = [0.0, 0.0, 0.0]

    def _take_up(self, state: State) -> None:
        try:
            self._network.load_state_dict(state.network)
            self._optimizer.load_state_dict(state.optimizer)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainingError(
                f"{state_path(self._output)} holds weights of another network, as of another version; "
                "remove it to begin anew."
            ) from error

    def train(
        self,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None] | None,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> Artifact:
        wrapped = self._processes.wrapped(self._network)
        if self._plan.compiled:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        self._write()  # where it was killed between state and checkpoint, only the former knows the last epoch
        for number in range(len(self._state.epochs) + 1, self._recipe.epochs + 1):
            started = time.perf_counter()
            with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                self._train_epoch(wrapped, number, should_stop, on_step)
            done = self._complete(number, time.perf_counter() - started)
            if on_epoch is not None and self._processes.rank == 0:
                on_epoch(done)
        if self._processes.rank == 0:
            state_path(self._output).unlink(missing_ok=True)
        self._processes.wait()
        return Artifact.open(self._output)

    def _train_epoch(
        self,
        network: torch.nn.Module,
        number: int,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None] | None,
    ) -> None:
        state, steps, recipe = self._state, len(self._batches), self._recipe
        started, images_done = time.perf_counter(), 0
        network.train()
        for images, labels, batch_size in self._batches.epoch(number, state.step):
            at = (number - 1) * steps + state.step
            for group in self._optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(at, recipe.epochs * steps)
            # dropout's, so that a step is the same whatever came before it
            torch.manual_seed(generator("dropout", self._plan.seed, at, self._processes.rank).initial_seed())
            self._optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                logits = network(images)  # (share of the batch, 10)
                summed = functional.cross_entropy(
                    logits, labels, label_smoothing=recipe.label_smoothing, reduction="sum"
                )
            # gradients are averaged over the processes, whose shares may differ by one
            (summed * (self._processes.count / batch_size)).backward()
            self._optimizer.step()
            right = int((logits.argmax(dim=1) == labels).sum())
            own = (summed.item(), right, len(labels))
            state.sums = [a + b for a, b in zip(state.sums, own, strict=True)]
            state.step += 1
            images_done += batch_size
            if on_step is not None and self._processes.rank == 0:
                loss_sum, right_sum, seen = state.sums
                speed = images_done / (time.perf_counter() - started)
                on_step(
                    Step(number, recipe.epochs, state.step, steps, loss_sum / seen, right_sum / seen, speed)
                )
            # all processes learn of both, so that they go on or end together
            loss, stops = self._processes.total([own[0], float(should_stop())], self._device)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The loss is {loss / batch_size} at step {state.step} of epoch {number}. {_TOO_FAST}"
                )
            if stops:
                state.sums = self._processes.total(state.sums, self._device)
                self._save_state()
                raise KeyboardInterrupt

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._plan.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _complete(self, number: int, seconds: float) -> Epoch:
        """Record an epoch, then write the state and after it the checkpoint."""
        state, steps = self._state, len(self._batches)
        loss, right, seen = self._processes.total(state.sums, self._device)
        state.confusion = self._confusion()
        done = Epoch(
            epoch=number,
            epochs=self._recipe.epochs,
            train_loss=loss / seen,
            train_accuracy=right / seen,
            test_accuracy=float(np.trace(state.confusion)) / len(self._test_set),
            test_images=len(self._test_set),
            learning_rate=self._recipe.learning_rate_at(number * steps - 1, self._recipe.epochs * steps),
            seconds=seconds,
        )
        state.epochs.append(asdict(done))
        state.step, state.sums = 0, [0.0, 0.0, 0.0]
        self._save_state()
        self._write()
        return done

    def _save_state(self) -> None:
        weights = self._network.state_dict()
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise TrainingError(
                f"Weights became NaN or infinite after epoch {len(self._state.epochs)}. {_TOO_FAST}"
            )
        if self._processes.rank == 0:
            self._state.network = {name: value.detach().cpu() for name, value in weights.items()}
            self._state.optimizer = self._optimizer.state_dict()
            self._state.save(self._output)

    def _write(self) -> None:
        """The checkpoint and its log, as of the last completed epoch; nothing before it but untrained weights."""
        state = self._state
        log = Path(f"{self._output}.jsonl")
        if self._processes.rank > 0:
            return
        if not state.epochs:
            log.unlink(missing_ok=True)
            if self._recipe.epochs == 0:
                Checkpoint.of(self._plan.architecture, self._network).save(self._output)
            return
        if state.step > 0:  # in the middle of an epoch; what was written after the last one stands
            return
        facts = {
            **asdict(self._plan),
            "device": state.device,
            "threads": state.threads,
            "processes": self._processes.count,
            "images": self._training_images,
            "test_images": len(self._test_set),
            "test_accuracy": state.epochs[-1]["test_accuracy"],
            "confusion": state.confusion,
            # without the times, so that the same training gives the same bytes
            "epochs": [{key: epoch[key] for key in epoch if key != "seconds"} for epoch in state.epochs],
        }
        Checkpoint.of(self._plan.architecture, self._network, facts).save(self._output)
        write_file(log, "".join(json.dumps(epoch) + "\n" for epoch in state.epochs).encode())

    def _confusion(self) -> list[list[int]]:
        """Test images by class shown and label given, by the network in float32, as it is deployed."""
        classes = len(data.LABELS)
        counts = np.zeros((classes, classes), np.int64)
        share = slice(self._processes.rank, None, self._processes.count)
        images, labels = self._test_set.images[share], self._test_set.labels[share]
        size = min(_EVALUATION_BATCH, self._recipe.batch_size)  # no more than training has memory for
        self._network.eval()
        with torch.inference_mode():
            for start in range(0, len(images), size):
                batch = torch.tensor(images[start : start + size], device=self._device)
                given = self._network(self._preprocessing(batch)).argmax(dim=1).cpu().numpy()
                np.add.at(counts, (labels[start : start + size], given), 1)
        total = self._processes.total(counts.ravel().tolist(), self._device)
        return np.array(total).astype(int).reshape(classes, classes).tolist()
