"""The training loop: fast, repeatable, and resumable after every step."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from cnndeploy import data
from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint, initialised
from cnndeploy.errors import Stopped, TrainingError
from cnndeploy.files import write_file
from cnndeploy.torch_preprocessing import TorchPreprocessing
from cnndeploy.training.batches import Batches, generator
from cnndeploy.training.distributed import Processes
from cnndeploy.training.records import Callbacks, Epoch, Step
from cnndeploy.training.rewrite import pool_first
from cnndeploy.training.state import State, log_path, state_path

_EVALUATION_BATCH = 256


class Loop:
    """One training on one device, from a state to its end."""

    def __init__(
        self,
        output: Path,
        state: State,
        training_set: data.Images,
        test_set: data.Images,
        device: torch.device,
        processes: Processes,
        callbacks: Callbacks,
    ) -> None:
        self._output, self._state, self._callbacks = output, state, callbacks
        self._device, self._processes = device, processes
        self._plan = plan = state.plan
        self._recipe = plan.recipe
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
            self._take_up()
        if processes.rank > 0:  # the sums of what was done before count once
            state.sums = [0.0, 0.0, 0.0]

    def _take_up(self) -> None:
        try:
            self._network.load_state_dict(self._state.network)
            self._optimizer.load_state_dict(self._state.optimizer)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainingError(
                f"{state_path(self._output)} holds weights of another network, as of another version; "
                "remove it to begin anew."
            ) from error

    def run(self) -> Artifact:
        """Train to the last epoch; the checkpoint is written after every one."""
        network = self._processes.wrapped(self._network)
        if self._plan.compiled:
            network = torch.compile(network)  # type: ignore[assignment]
        self._write()  # if it was killed between state and checkpoint, only the former knows the last epoch
        for number in range(len(self._state.epochs) + 1, self._recipe.epochs + 1):
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                self._train_epoch(network, number)
            epoch = self._complete(number, time.perf_counter() - start)
            if self._callbacks.on_epoch is not None and self._processes.rank == 0:
                self._callbacks.on_epoch(epoch)
        if self._processes.rank == 0:
            state_path(self._output).unlink(missing_ok=True)
        self._processes.wait()
        return Artifact.open(self._output)

    def _train_epoch(self, network: torch.nn.Module, number: int) -> None:
        state, callbacks, steps = self._state, self._callbacks, len(self._batches)
        start, images_done = time.perf_counter(), 0
        network.train()
        for images, labels, batch_size in self._batches.epoch(number, state.step):
            sums = self._step(network, images, labels, batch_size, (number - 1) * steps + state.step)
            state.sums = [total + value for total, value in zip(state.sums, sums, strict=True)]
            state.step += 1
            images_done += batch_size
            if callbacks.on_step is not None and self._processes.rank == 0:
                loss, right, seen = state.sums
                means = (loss / seen, right / seen, images_done / (time.perf_counter() - start))
                callbacks.on_step(Step(number, self._recipe.epochs, state.step, steps, *means))
            # all processes learn of both, so that they go on or end together
            loss, stops = self._processes.total([sums[0], float(callbacks.should_stop())], self._device)
            where = f"step {state.step} of epoch {number}"
            if not math.isfinite(loss):
                raise self._diverged(f"The loss is {loss / batch_size} at {where}")
            if stops:
                state.sums = self._processes.total(state.sums, self._device)
                self._save_state()
                raise Stopped(f"Training stopped at {where}; train with resume=True to go on.")

    def _step(
        self,
        network: torch.nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        number: int,
    ) -> tuple[float, int, int]:
        """Train on this process's share of a batch; returns its summed loss, right answers and images.

        ``number`` is that of the step in the whole training, from 0.
        """
        recipe, rank = self._recipe, self._processes.rank
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(number, recipe.epochs * len(self._batches))
        # dropout's, so that a step is the same whatever came before it
        torch.manual_seed(generator("dropout", self._plan.seed, number, rank).initial_seed())
        self._optimizer.zero_grad(set_to_none=True)
        in_bfloat16 = self._plan.precision == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
            logits = network(images)  # (share of the batch, 10)
            smoothing = recipe.label_smoothing
            summed = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        # gradients are averaged over the processes, whose shares may differ by one
        (summed * (self._processes.count / batch_size)).backward()
        self._optimizer.step()
        right = int((logits.argmax(dim=1) == labels).sum())
        return summed.item(), right, len(labels)

    def _diverged(self, what: str) -> TrainingError:
        rate = self._recipe.learning_rate
        return TrainingError(
            f"{what}. The learning rate is probably too high; begin anew with a tenth of it, "
            f"learning_rate={rate / 10:g}."
        )

    def _complete(self, number: int, seconds: float) -> Epoch:
        """Record an epoch, then write the state and after it the checkpoint."""
        state, steps = self._state, len(self._batches)
        loss, right, seen = self._processes.total(state.sums, self._device)
        state.confusion = self._confusion()
        epoch = Epoch(
            epoch=number,
            epochs=self._recipe.epochs,
            train_loss=loss / seen,
            train_accuracy=right / seen,
            test_accuracy=float(np.trace(state.confusion)) / len(self._test_set),
            test_images=len(self._test_set),
            learning_rate=self._recipe.learning_rate_at(number * steps - 1, self._recipe.epochs * steps),
            seconds=seconds,
        )
        state.epochs.append(asdict(epoch))
        state.step, state.sums = 0, [0.0, 0.0, 0.0]
        self._save_state()
        self._write()
        return epoch

    def _save_state(self) -> None:
        weights = self._network.state_dict()
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise self._diverged(f"Weights became NaN or infinite after epoch {len(self._state.epochs)}")
        if self._processes.rank == 0:
            self._state.network = {name: value.detach().cpu() for name, value in weights.items()}
            self._state.optimizer = self._optimizer.state_dict()
            self._state.save(self._output)

    def _write(self) -> None:
        """Write the checkpoint and its log, as of the last completed epoch; before the first, untrained weights."""
        state, log = self._state, log_path(self._output)
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
            "train_images": self._training_images,
            "test_images": len(self._test_set),
            "test_accuracy": state.epochs[-1]["test_accuracy"],
            "confusion": state.confusion,
            # without the times, so that the same training writes the same bytes
            "epochs": [{key: epoch[key] for key in epoch if key != "seconds"} for epoch in state.epochs],
        }
        Checkpoint.of(self._plan.architecture, self._network, facts).save(self._output)
        write_file(log, "".join(json.dumps(epoch) + "\n" for epoch in state.epochs).encode())

    def _confusion(self) -> list[list[int]]:
        """Count test images by class shown and class answered, by the network in float32, as it is deployed."""
        classes = len(data.LABELS)
        counts = np.zeros((classes, classes), np.int64)
        share = slice(self._processes.rank, None, self._processes.count)
        images, labels = self._test_set.images[share], self._test_set.labels[share]
        size = min(_EVALUATION_BATCH, self._recipe.batch_size)  # no more than training has memory for
        self._network.eval()
        with torch.inference_mode():
            for start in range(0, len(images), size):
                batch = torch.tensor(images[start : start + size], device=self._device)
                answers = self._network(self._preprocessing(batch)).argmax(dim=1).cpu().numpy()
                np.add.at(counts, (labels[start : start + size], answers), 1)
        total = self._processes.total(counts.ravel().tolist(), self._device)
        return np.array(total).astype(int).reshape(classes, classes).tolist()
