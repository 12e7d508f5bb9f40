"""The training loop: fast, repeatable, and resumable after every step."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint, initialised
from cnndeploy.errors import Stopped, TrainingError
from cnndeploy.evaluation import TOP, ranks
from cnndeploy.files import write_file
from cnndeploy.preprocessing import border_contrast
from cnndeploy.simplification.pool_before_activation import pool_first
from cnndeploy.training.batches import Batch, Batches, HeldOut, generator
from cnndeploy.training.decoded import Held
from cnndeploy.training.distributed import Processes
from cnndeploy.training.state import Epoch, State, Step, log_path, state_path
from cnndeploy.training.subject import Subject, logits_of

_EVALUATION_BATCH = 256
_BACKGROUND_IMAGES = 1000
# The confusion matrix is copied into every exported file, so it is kept only for classes that somebody looks at.
_MOST_RECORDED = 100


@dataclass(frozen=True, slots=True)
class Calls:
    """The callbacks of :func:`cnndeploy.train`."""

    should_stop: Callable[[], bool]
    on_step: Callable[[Step], None] | None
    on_epoch: Callable[[Epoch], None] | None


def steps_between_reads(device: torch.device, processes: Processes) -> int:
    """Return after how many steps the loss is read.

    Each read waits for the GPU, and the wait may take longer than a step. Several processes tell each other after every
    step whether they go on, so they wait anyway.
    """
    return 50 if device.type == "cuda" and processes.count == 1 else 1


class Sums:
    """Loss, right answers and images of the steps of an epoch so far, added up on the device.

    In float64 they are the same numbers however often they are read.
    """

    def __init__(self, values: Sequence[float], device: torch.device) -> None:
        loss, right, self._images = values
        self._loss = torch.tensor(loss, dtype=torch.float64, device=device)
        self._right = torch.tensor(right, dtype=torch.float64, device=device)

    def add(self, loss: torch.Tensor, right: torch.Tensor, images: int) -> None:
        """Add the sums of a step; a GPU is not waited for."""
        self._loss += loss
        self._right += right
        self._images += images

    def read(self) -> tuple[float, float, float]:
        """Return the sums; a GPU finishes all its steps first."""
        loss, right = torch.stack((self._loss, self._right)).tolist()
        return loss, right, self._images


@dataclass
class Loop:
    """One training on one device, from a state to its end."""

    output: Path
    state: State
    subject: Subject
    training_set: Held
    test_set: Held
    device: torch.device
    processes: Processes
    calls: Calls

    def __post_init__(self) -> None:
        self.plan = plan = self.state.plan
        self.recipe = plan.recipe
        self.manifest = self.subject.manifest
        preprocessing = self.manifest.preprocessing
        self.held_out = HeldOut(self.test_set, preprocessing, self.device)
        self.batches = Batches(
            self.training_set, preprocessing, plan.recipe, plan.seed, self.device, self.processes
        )
        network = initialised(self.manifest, plan.seed, plan.recipe.initialisation)
        network.load_state_dict(self.subject.start, strict=False)
        if plan.architecture in ARCHITECTURES.names():  # others may call the parts of a Sequential one by one
            pool_first(network)
        self.network = network.to(self.device).to(memory_format=self.subject.layout)
        weights = self.network.parameters()
        self.optimizer = torch.optim.AdamW(weights, weight_decay=plan.recipe.weight_decay, fused=True)
        if self.state.network:
            try:
                self.network.load_state_dict(self.state.network)
                _restore(self.optimizer, self.state.optimizer)
                if self.state.step > len(self.batches):
                    raise ValueError("there are not so many steps in an epoch")
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise TrainingError(
                    f"{state_path(self.output)} holds weights of another network, perhaps of another version. "
                    "Train with overwrite=True to begin again."
                ) from error
        if self.processes.rank > 0:  # the sums of what was done before count once
            self.state.sums = (0.0, 0.0, 0.0)

    def run(self) -> Artifact:
        """Train to the last epoch; the checkpoint is written after every one."""
        network = self.processes.wrapped(self.network)
        if self.plan.compiled:
            network = self._compiled(network)
        self._write()  # if it was killed between state and checkpoint, only the former knows the last epoch
        for number in range(len(self.state.epochs) + 1, self.recipe.epochs + 1):
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                self._train_epoch(network, number)
            epoch = self._complete(number, time.perf_counter() - start)
            if self.calls.on_epoch is not None and self.processes.rank == 0:
                self.calls.on_epoch(epoch)
        if self.processes.rank == 0:
            state_path(self.output).unlink(missing_ok=True)
        self.processes.wait()
        return Artifact.open(self.output)

    def _train_epoch(self, network: torch.nn.Module, number: int) -> None:
        state, steps = self.state, len(self.batches)
        start, images_done, first = time.perf_counter(), 0, state.step + 1
        sums, read_every = Sums(state.sums, self.device), steps_between_reads(self.device, self.processes)
        network.train()
        for batch in self.batches.epoch(number, state.step):
            sums.add(*self._step(network, batch, (number - 1) * steps + state.step))
            state.step += 1
            images_done += batch[2]
            if is_read := state.step in (first, steps) or state.step % read_every == 0:
                loss, right, seen = state.sums = sums.read()
                means = (loss / seen, right / seen, images_done / (time.perf_counter() - start))
            if self.calls.on_step is not None and self.processes.rank == 0:
                self.calls.on_step(Step(number, self.recipe.epochs, state.step, steps, *means))
            stops = self.calls.should_stop()
            if stops and not is_read:
                state.sums = sums.read()
            if is_read or stops:
                self._check(f"step {state.step} of epoch {number}", stops)

    def _check(self, where: str, stops: bool) -> None:
        """Raise TrainingError if the loss is infinite or NaN, or has been since the epoch began.

        Save and raise Stopped if a process ``stops``.
        """
        state = self.state
        # all processes learn of both, so that they go on or end together
        loss, seen, stopping = self.processes.total([state.sums[0], state.sums[2], float(stops)], self.device)
        if not math.isfinite(loss):  # a sum stays so
            raise self._diverged(f"The loss is {loss / seen} at {where}")
        if stopping:
            state.sums = tuple(self.processes.total(state.sums, self.device))
            self._save_state()
            raise Stopped(f"Training stopped at {where}; train with resume=True to go on.")

    def _step(
        self, network: torch.nn.Module, batch: Batch, number: int
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Train on a share of a batch, step ``number`` from 0; return its summed loss, right answers and images.

        The first two stay on the device.
        """
        images, labels, batch_size = batch
        recipe, rank = self.recipe, self.processes.rank
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(number, recipe.epochs * len(self.batches))
        # dropout's, so that a step is the same whatever came before it
        torch.manual_seed(generator("dropout", self.plan.seed, number, rank).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            logits = logits_of(network(images), self.manifest.source.output)  # (share, classes)
            smoothing = recipe.label_smoothing
            summed = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        # gradients are averaged over the processes, whose shares may differ by one
        (summed * (self.processes.count / batch_size)).backward()
        self.optimizer.step()
        return summed.detach(), (logits.argmax(dim=1) == labels).sum(), len(labels)

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what}. The learning rate is probably too high. Train again with overwrite=True and a tenth of it, "
            f"learning_rate={self.recipe.learning_rate / 10:g}."
        )

    def _complete(self, number: int, seconds: float) -> Epoch:
        """Record an epoch, then write the state and after it the checkpoint."""
        state, steps = self.state, len(self.batches)
        loss, right, seen = self.processes.total(state.sums, self.device)
        state.confusion, correct, among_five = self._tested()
        images = len(self.held_out)
        epoch = Epoch(
            epoch=number,
            epochs=self.recipe.epochs,
            train_loss=loss / seen,
            train_accuracy=right / seen,
            test_accuracy=correct / images,
            test_images=images,
            learning_rate=self.recipe.learning_rate_at(number * steps - 1, self.recipe.epochs * steps),
            seconds=seconds,
            test_top5_accuracy=among_five / images if len(self.manifest.labels) > TOP else None,
        )
        state.epochs.append(asdict(epoch))
        state.step, state.sums = 0, (0.0, 0.0, 0.0)
        self._save_state()
        self._write()
        return epoch

    def _save_state(self) -> None:
        weights = self.network.state_dict()
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise self._diverged(f"Weights became NaN or infinite after epoch {len(self.state.epochs)}")
        if self.processes.rank == 0:
            self.state.network = {name: value.detach().cpu() for name, value in weights.items()}
            self.state.optimizer = self.optimizer.state_dict()
            self.state.save(self.output)

    def _write(self) -> None:
        """Write the checkpoint and its log, as of the last completed epoch; before the first, untrained weights."""
        state, log = self.state, log_path(self.output)
        if self.processes.rank > 0:
            return
        if not state.epochs:
            if self.recipe.epochs == 0:
                log.unlink(missing_ok=True)
                Checkpoint.of(self.manifest, self.network).save(self.output)
            return
        if state.step > 0:  # in the middle of an epoch; what was written after the last one stands
            return
        facts = {
            **asdict(self.plan),
            "device": state.device,
            "threads": state.threads,
            "processes": self.processes.count,
            "train_images": len(self.training_set),
            "test_images": len(self.held_out),
            **(
                {"background": _background(self.training_set)}
                if self.manifest.preprocessing.channels == 1
                else {}
            ),
            "test_accuracy": state.epochs[-1]["test_accuracy"],
            "confusion": state.confusion,
            # without the times, so that the same training writes the same bytes
            "epochs": [{key: epoch[key] for key in epoch if key != "seconds"} for epoch in state.epochs],
        }
        Checkpoint.of(self.manifest, self.network, facts).save(self.output)
        write_file(log, "".join(json.dumps(epoch) + "\n" for epoch in state.epochs).encode())

    def _compiled(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return the network as torch.compile runs it, in the layout that it was tried in and no other."""
        # it warns of a CUDA toolkit without a GPU, which does not matter on a CPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        kept = self.subject.layout == torch.contiguous_format  # else it puts channels last by itself
        options: dict[str, Any] | None = {"layout_optimization": False} if kept else None
        compiled: torch.nn.Module = torch.compile(network, options=options)  # type: ignore[assignment]
        return compiled

    def _tested(self) -> tuple[list[list[int]], int, int]:
        """Run the test images through the network in float32, as it is deployed.

        Return how many there are by class shown and class answered, empty for many classes; how many answers are right;
        and for how many images the right class is among the five likeliest.
        """
        classes, rank, count = len(self.manifest.labels), self.processes.rank, self.processes.count
        confused = classes <= _MOST_RECORDED
        counts, right, among = np.zeros((classes, classes) if confused else (0, 0), np.int64), 0, 0
        size = min(_EVALUATION_BATCH, self.recipe.batch_size)  # no more than training has memory for
        labels = self.held_out.labels
        self.network.eval()
        with torch.inference_mode():
            for start in range(rank, len(labels), size * count):
                places = slice(start, start + size * count, count)  # this process's share
                shown = torch.tensor(labels[places], device=self.device)
                logits = logits_of(self.network(self.held_out.batch(places)), self.manifest.source.output)
                answers = logits.argmax(dim=1)
                right += int((answers == shown).sum())
                among += int((ranks(logits.float().cpu().numpy(), labels[places]) < TOP).sum())
                if confused:
                    np.add.at(counts, (labels[places], answers.cpu().numpy()), 1)
        total = self.processes.total([*counts.ravel().tolist(), right, among], self.device)
        *cells, right, among = map(int, total)
        return np.array(cells, np.int64).reshape(counts.shape).tolist(), right, among


def _restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer; raise ValueError, which torch does not, if it is of other weights or settings."""
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(state)
    for before, after in zip(settings, optimizer.state_dict()["param_groups"], strict=True):
        if any(before[key] != after[key] for key in before.keys() & after.keys() - {"lr"}):
            raise ValueError("the optimizer has other settings")
    for group in optimizer.param_groups:
        for weights in group["params"]:
            moments = optimizer.state[weights]
            if any(torch.is_tensor(one) and one.shape not in ((), weights.shape) for one in moments.values()):
                raise ValueError("the optimizer's moments have other shapes than the weights")


def _background(images: Held) -> str:
    """Return ``dark`` or ``light``: what most images show at their border, so that apps can be warned of others."""
    return "light" if float(np.median(border_contrast(images.images[:_BACKGROUND_IMAGES]))) > 0 else "dark"
