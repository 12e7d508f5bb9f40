"""Repair by distillation: a smaller network learns to reproduce the original's outputs on training images.

The original's probabilities are computed once. The loss is their cross-entropy with the smaller network's, at a
temperature that lets small probabilities count. Source: Hinton, Vinyals, Dean: Distilling the knowledge in a neural
network, 2015. Dropout and the statistics of batch normalisation stay as they are in deployment.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional

from cnndeploy.compression.material import Material
from cnndeploy.training.batches import generator

TEMPERATURE, LEARNING_RATE, BATCH = 2.0, 2e-4, 64
_WARM_UP = 0.1  # of the steps
_AT_ONCE = 1.3e11  # multiply-adds of the original on the images that are in memory at once


def repaired(network: nn.Module, material: Material, *, epochs: int, bfloat16: bool) -> nn.Module:
    """Return a copy of a network that was trained to say what the original says of the images that teach.

    Raise Stopped if the material's deadline passed.
    """
    student = copy.deepcopy(network).eval().requires_grad_(True).to(memory_format=material.layout)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    images, prepare = material.taught, material.manifest.preprocessing
    count, lesson = len(images), material.lesson
    steps, at_once = math.ceil(count / BATCH), int(min(BATCH, max(1, _AT_ONCE // material.work)))
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator("repair", 0, epoch)).tolist()
        for step in range(steps):
            number = epoch * steps + step
            material.progress(number, epochs * steps, f"Repairing, epoch {epoch + 1} of {epochs}")
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _share(number / (epochs * steps))
            optimizer.zero_grad(set_to_none=True)
            places = order[step * BATCH : (step + 1) * BATCH]
            for few in (places[at : at + at_once] for at in range(0, len(places), at_once)):
                material.deadline.check()
                batch = torch.from_numpy(images.prepared(few, prepare)).to(memory_format=material.layout)
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    logits = student(batch)
                (_divergence(logits.float(), torch.from_numpy(lesson[few])) / len(places)).backward()
            optimizer.step()
    return student.requires_grad_(False).to(memory_format=torch.contiguous_format)


def _share(done: float) -> float:
    """Return the share of the learning rate: it rises at first, and falls like half a cosine to nothing."""
    return min(1.0, done / _WARM_UP + 0.05) * (1 + math.cos(math.pi * done)) / 2


def _divergence(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the sum over images of the divergence from the wanted probabilities."""
    own, original = (functional.log_softmax(one / TEMPERATURE, dim=1) for one in (logits, wanted))
    return functional.kl_div(own, original, log_target=True, reduction="sum") * TEMPERATURE**2
