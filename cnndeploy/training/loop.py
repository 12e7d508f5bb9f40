"""The training loop: fast, repeatable, and resumable after every step.

Source of each recipe's parts: :class:`~cnndeploy.training.recipe.Recipe`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cnndeploy import data, registry
from cnndeploy.artifact import Artifact, check_writable, write_file
from cnndeploy.errors import TrainingError, UnknownNameError
from cnndeploy.machine import usable_cpus
from cnndeploy.runtimes._torch import last_line, open_device
from cnndeploy.specs import Preprocessing
from cnndeploy.training.batches import Batches, generator, preprocess
from cnndeploy.training.checkpoint import Checkpoint, initialised
from cnndeploy.training.distributed import Processes, from_environment, joined
from cnndeploy.training.recipe import Recipe
from cnndeploy.training.state import State, state_path

Precision = Literal["float32", "bf16"]

_EVALUATION_BATCH = 256
_TOO_FAST = "The learning rate is probably too high; try a tenth of it with --lr."


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
    device: str = "cpu",
    threads: int | None = None,
    precision: Precision | None = None,
    compiled: bool = False,
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
    that all share.

    Args:
        architecture: A name in ``cnndeploy list``.
        output: The checkpoint file.
        recipe: ``tuned``, the default, or ``original``.
        epochs: Passes over the training images; 0 writes untrained weights. The recipe's by default, as
            ``batch_size``, over all processes, and ``learning_rate`` are.
        seed: Of the initial weights, the order of the images, their variation and dropout; 0 by default.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads, all that the process may use by default.
        precision: ``float32``, the default, or ``bf16``, by autocast where the hardware has it.
        compiled: Run the network through torch.compile.
        limit: Train on the first ``limit`` images only, and test on at most as many.
        data_dir: Folder of the data set, see :func:`cnndeploy.data.data_folder`.
        resume: Go on where the training that wrote to ``output`` stopped, by its own recipe; the weights at the
            end are those of an unbroken one. Begins anew where there is nothing to resume.
        recipe_of: A checkpoint whose recipe, seed, limit, precision and threads are taken where none are given.
        should_stop: Asked after every step; training then saves its state and raises KeyboardInterrupt.
        on_step: Called after every step.
        on_epoch: Called after every epoch, when its checkpoint is on disk.

    Raises:
        UnknownNameError, DeviceUnavailableError, DataError: As they say.
        TrainingError: The loss became infinite or NaN, or ``output`` cannot be resumed so.
        ArtifactError: ``output`` cannot be written; found out before training, where it can be.
    """
    path = Path(output)
    state = State.load(path) if resume and state_path(path).exists() else None
    asked = {"recipe": recipe, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    asked |= {"seed": seed, "precision": precision, "limit": limit}
    begun: Mapping[str, Any] | None = None if state is None else state.plan
    if recipe_of is not None and begun is None:
        begun = _training_of(recipe_of, architecture)
        threads = begun["threads"] if threads is None else threads
    plan = make_plan(architecture, asked, begun)
    training_set = data.load("train", data_dir).first(plan["limit"])
    test_set = data.load("test", data_dir)
    test_set = test_set.first(min(plan["limit"] or len(test_set), len(test_set)))
    plan["dataset_sha256"] = {**training_set.sha256, **test_set.sha256}
    if state is None:
        if resume and _is_complete(path, plan):
            return Artifact.open(path)
        state = State(plan)
    elif state.plan != plan:
        raise TrainingError(
            f"{state_path(path)} was begun otherwise: {_differences(state.plan, plan)}.{_ANEW}"
        )
    processes = from_environment()
    if threads is None:
        threads = max(1, usable_cpus() // processes.local_count)
    if processes.count > 1 and device == "cuda":
        device = f"cuda:{processes.local_rank}"
    torch_device = open_device(device, "training", threads)
    if plan["precision"] == "bf16" and not _has_bf16(torch_device):
        raise TrainingError(f"{torch_device} does not compute in bfloat16; leave --precision out")
    for target in (path, state_path(path)):
        check_writable(target)
    run = _Run(path, state, training_set, test_set, torch_device, processes, compiled)
    with joined(processes, torch_device):
        return run.train(should_stop, on_step, on_epoch)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_ANEW = " Leave --resume out to begin anew."


def make_plan(
    architecture: str, asked: Mapping[str, Any], begun: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """JSON-ready: all that decides the weights but machine, threads and data set; None in ``asked`` is left open.

    What is open is taken from the plan ``begun`` earlier, else from the recipe of the architecture.
    """
    design = registry.get("architectures", architecture)
    open_to_choose = {} if begun is None else {**begun["recipe"], **begun}
    name = asked["recipe"] or open_to_choose.get("recipe_name") or "tuned"
    if name not in design.recipes:
        raise UnknownNameError("recipe", name, sorted(design.recipes))
    same = begun is not None and begun["recipe_name"] == name and begun["architecture"] == architecture
    recipe = Recipe(**begun["recipe"]) if same and begun is not None else design.recipes[name]
    fields = {each.name for each in dataclasses.fields(Recipe)}
    recipe = replace(
        recipe, **{key: value for key, value in asked.items() if key in fields and value is not None}
    )
    if recipe.epochs < 0 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
        raise TrainingError(f"epochs from 0, batch size from 1, learning rate above 0, but got {recipe}")
    chosen = {
        key: open_to_choose.get(key, default) if asked[key] is None else asked[key]
        for key, default in (("seed", 0), ("precision", "float32"), ("limit", None))
    }
    return {"architecture": architecture, "recipe_name": name, "recipe": asdict(recipe), **chosen}


def _training_of(path: str | os.PathLike[str], architecture: str) -> Mapping[str, Any]:
    """How a checkpoint was trained."""
    manifest = Artifact.open(path).require_manifest()
    if "recipe_name" not in manifest.training:
        raise TrainingError(f"{path} does not say how it was trained; give a checkpoint of cnndeploy train")
    if manifest.architecture != architecture:
        raise TrainingError(f"{path} is a {manifest.architecture}, not a {architecture}")
    return {**manifest.training, "architecture": architecture}


def _differences(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    flat = [{**plan["recipe"], **plan} for plan in (begun, asked)]
    keys = [key for key in flat[0] if key != "recipe" and flat[0][key] != flat[1].get(key)]
    return ", ".join(f"{key} {flat[0][key]}, not {flat[1].get(key)}" for key in keys)


def _is_complete(path: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the checkpoint there is this training's own and at its end."""
    if not path.exists():
        return False
    training = Artifact.open(path).require_manifest().training
    done = len(training.get("epochs", ()))
    if any(training.get(key) != plan[key] for key in plan) or done != plan["recipe"]["epochs"]:
        raise TrainingError(f"{path} is the end of another training, and there is nothing to resume.{_ANEW}")
    return True


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
        compiled: bool,
    ) -> None:
        plan = state.plan
        self._output = output
        self._state = state
        self._test_set = test_set
        self._images = len(training_set)
        self._device = device
        self._processes = processes
        self._compiled = compiled
        self._recipe = Recipe(**plan["recipe"])
        self._preprocessing = registry.get("architectures", plan["architecture"]).preprocessing
        self._network = initialised(plan["architecture"], plan["seed"], self._recipe.initialisation).to(
            device
        )
        if state.network:
            self._network.load_state_dict(state.network)
        self._batches = Batches(
            training_set, self._preprocessing, self._recipe, plan["seed"], device, processes
        )
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(),
            lr=self._recipe.learning_rate,
            weight_decay=self._recipe.weight_decay,
            fused=True,
        )
        if state.optimizer:
            self._optimizer.load_state_dict(state.optimizer)

    def train(
        self,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step], None] | None,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> Artifact:
        wrapped = self._processes.wrapped(self._network)
        if self._compiled:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        for number in range(len(self._state.epochs) + 1, self._recipe.epochs + 1):
            started = time.perf_counter()
            try:
                with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                    self._train_epoch(wrapped, number, should_stop, on_step)
            except RuntimeError as error:  # torch's own; memory is by far the likeliest
                advice = f"If memory ran out, try --batch-size {max(1, self._recipe.batch_size // 2)}."
                raise TrainingError(
                    f"torch stopped in epoch {number}: {last_line(error)} {advice}"
                ) from error
            self._complete(number, time.perf_counter() - started, on_epoch)
        if self._processes.rank == 0:
            self._checkpoint().save(self._output)
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
            torch.manual_seed(generator(state.plan["seed"], at, self._processes.rank).initial_seed())
            self._optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                logits = network(images)  # (share of the batch, 10)
                summed = functional.cross_entropy(
                    logits, labels, label_smoothing=recipe.label_smoothing, reduction="sum"
                )
            # gradients are averaged over the processes, whose shares may differ by one
            (summed * (self._processes.count / batch_size)).backward()
            self._optimizer.step()
            right = (logits.argmax(dim=1) == labels).sum()
            loss = summed.item()
            state.sums = [a + b for a, b in zip(state.sums, (loss, right.item(), len(labels)), strict=True)]
            state.step += 1
            images_done += batch_size
            if not math.isfinite(loss):
                raise TrainingError(f"The loss is {loss} at step {state.step} of epoch {number}. {_TOO_FAST}")
            if on_step is not None and self._processes.rank == 0:
                loss_sum, right_sum, seen = state.sums
                speed = images_done / (time.perf_counter() - started)
                on_step(
                    Step(number, recipe.epochs, state.step, steps, loss_sum / seen, right_sum / seen, speed)
                )
            self._stop_if_asked(should_stop)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._state.plan["precision"] == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _stop_if_asked(self, should_stop: Callable[[], bool]) -> None:
        """All processes stop at the same step; the state of rank 0 is everyone's but for its sums."""
        (asked,) = self._processes.total([float(should_stop())], self._device)
        if asked:
            self._save_state()
            raise KeyboardInterrupt

    def _save_state(self) -> None:
        if self._processes.rank == 0:
            self._state.network = _on_cpu(self._network.state_dict())
            self._state.optimizer = self._optimizer.state_dict()
            self._state.save(self._output)

    def _complete(self, number: int, seconds: float, on_epoch: Callable[[Epoch], None] | None) -> None:
        """Record an epoch, save the state, then the checkpoint: killed between, the state is the later one."""
        state, recipe = self._state, self._recipe
        loss, right, seen = self._processes.total(state.sums, self._device)
        done = Epoch(
            number,
            recipe.epochs,
            loss / seen,
            right / seen,
            self._test_accuracy(),
            len(self._test_set),
            recipe.learning_rate_at(number * len(self._batches) - 1, recipe.epochs * len(self._batches)),
            seconds,
        )
        state.epochs.append(asdict(done))
        state.step, state.sums = 0, [0.0, 0.0, 0.0]
        checkpoint = self._checkpoint()
        if not checkpoint.is_finite():
            raise TrainingError(f"Weights became NaN or infinite in epoch {number}. {_TOO_FAST}")
        if self._processes.rank == 0:
            self._save_state()
            checkpoint.save(self._output)
            lines = "".join(json.dumps(epoch) + "\n" for epoch in state.epochs)
            write_file(f"{self._output}.jsonl", lines.encode())
            if on_epoch is not None:
                on_epoch(done)

    def _checkpoint(self) -> Checkpoint:
        """The network as it is, with what is known of its training; the same training gives the same bytes."""
        epochs = [
            {key: value for key, value in epoch.items() if key != "seconds"} for epoch in self._state.epochs
        ]
        if not epochs:
            return Checkpoint.of(self._state.plan["architecture"], self._network)
        facts = {
            **self._state.plan,
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "processes": self._processes.count,
            "images": self._images,
            "test_images": len(self._test_set),
            "epochs": epochs,
            "test_accuracy": epochs[-1]["test_accuracy"],
        }
        return Checkpoint.of(self._state.plan["architecture"], self._network, facts)

    def _test_accuracy(self) -> float:
        """Of the network in float32, as it is deployed; each process runs its share."""
        right = _correct(
            self._network,
            self._test_set.images[self._processes.rank :: self._processes.count],
            self._test_set.labels[self._processes.rank :: self._processes.count],
            self._preprocessing,
            self._device,
        )
        return self._processes.total([float(right)], self._device)[0] / len(self._test_set)


def _correct(
    network: torch.nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    device: torch.device,
) -> int:
    network.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(images), _EVALUATION_BATCH):
            batch = torch.tensor(images[start : start + _EVALUATION_BATCH], device=device)
            predicted = network(preprocess(batch, preprocessing)).argmax(dim=1).cpu().numpy()
            correct += int((predicted == labels[start : start + _EVALUATION_BATCH]).sum())
    return correct


def _on_cpu(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in weights.items()}
