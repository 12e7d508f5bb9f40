"""Repair by distillation: a smaller network learns from the original's outputs on training images, and from labels.

The loss is the mean of two. One is the divergence from the original's probabilities, at a temperature that lets small
probabilities count; these are computed once. The other is the cross-entropy with the labels. Source: Hinton, Vinyals,
Dean: Distilling the knowledge in a neural network, 2015, section 2. Dropout and the statistics of batch normalisation
stay as they are in deployment.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cnndeploy.compression.material import Material
from cnndeploy.errors import OutOfTime
from cnndeploy.simplification import copied
from cnndeploy.training.batches import generator
from cnndeploy.training.subject import is_unsafe

TEMPERATURE, LEARNING_RATE, BATCH = 2.0, 2e-4, 64
_WARM_UP = 0.1  # of the steps
_AT_ONCE = 1.3e11  # multiply-adds of the original on the images that are in memory at once
# The share of the time that is for training; of the steps at least; and those after which the pace is known.
_OF_THE_TIME, _FEWEST, _KNOWN = 0.85, 0.2, 4


def repaired(network: nn.Module, material: Material, *, epochs: int, bfloat16: bool) -> tuple[nn.Module, int]:
    """Return a copy of a network that was trained on the images that teach, and how many images it saw.

    If the time left does not suffice for all epochs, there are fewer steps.

    Raises:
        OutOfTime: It does not suffice for a fifth of the steps.
        Stopped: The caller asked to stop.
    """
    unsafe = any(map(is_unsafe, network.modules()))  # what the original was not, with more channels
    layout = torch.contiguous_format if unsafe else material.layout
    student = copied(network).eval().requires_grad_(True).to(memory_format=layout)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    images, prepare = material.taught, material.manifest.preprocessing
    count, lesson, labels = len(images), material.lesson, images.labels
    assert labels is not None  # noqa: S101 - Material.of() has looked
    steps, at_once = math.ceil(count / BATCH), int(min(BATCH, max(1, _AT_ONCE // material.work)))
    done, planned, started = 0, epochs * steps, time.monotonic()
    ends = started + _OF_THE_TIME * material.deadline.left_s  # judging takes time too
    total, order = planned, list[int]()
    while done < total:
        epoch, step = divmod(done, steps)
        if not step:
            order = torch.randperm(count, generator=generator("repair", 0, epoch)).tolist()
        material.progress(done, total, "Repairing")
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _share(done / total)
        optimizer.zero_grad(set_to_none=True)
        places = order[step * BATCH : (step + 1) * BATCH]
        for few in (places[at : at + at_once] for at in range(0, len(places), at_once)):
            material.deadline.check()
            batch = torch.from_numpy(images.prepared(few, prepare)).to(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = student(batch)
            (_loss(logits.float(), lesson[few], labels[few]) / len(places)).backward()
        optimizer.step()
        done += 1
        if done == 1:
            started = time.monotonic()  # the first step is slow
        if done > _KNOWN:
            now = time.monotonic()
            total = _fitting(planned, done, now - started, ends - now)
            if total < _FEWEST * planned:
                raise OutOfTime("the time does not suffice for a repair")
    return student.requires_grad_(False), min(count, done * BATCH)


def _fitting(planned: int, done: int, seconds: float, left_s: float) -> int:
    """Return how many steps there is time for; those done but the first took so many seconds."""
    fit = max(0.0, left_s) * (done - 1) / max(seconds, 1e-9)
    return planned if fit >= planned - done else done + int(fit)


def _share(done: float) -> float:
    """Return the share of the learning rate: it rises at first, and falls like half a cosine to nothing."""
    return min(1.0, done / _WARM_UP + 0.05) * (1 + math.cos(math.pi * done)) / 2


def _loss(logits: torch.Tensor, wanted: NDArray[np.float32], labels: NDArray[Any]) -> torch.Tensor:
    """Return the sum over images: the mean of the divergence from the wanted logits' probabilities, and of labels."""
    own, original = (
        functional.log_softmax(one / TEMPERATURE, dim=1) for one in (logits, torch.from_numpy(wanted))
    )
    divergence = functional.kl_div(own, original, log_target=True, reduction="sum") * TEMPERATURE**2
    truth = torch.from_numpy(labels.astype(np.int64))
    return (divergence + functional.cross_entropy(logits, truth, reduction="sum")) / 2
