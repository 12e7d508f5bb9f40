"""What a compression learns from: training images, and what the original network says of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets import Images, require_labels
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.graph import Network
from cnndeploy.quantization.search import split_training
from cnndeploy.specs import Manifest
from cnndeploy.training.subject import layout_of
from cnndeploy.training.train import has_bfloat16
from cnndeploy.verification.reference import Reference

# Multiply-adds of the original on the images that judge a network, and on those that it is repaired on; fewer images
# for larger networks.
_TO_JUDGE, _FEWEST_TO_JUDGE, _MOST_TO_JUDGE = 2e12, 768, 4000
_TO_TEACH, _FEWEST_TO_TEACH, _MOST_TO_TEACH = 2.4e13, 1000, 20_000
# The same for images that say what layers compute. Of few, what a linear layer of thousands of outputs does holds for
# these only.
_TO_KNOW, _FEWEST_TO_KNOW, _MOST_TO_KNOW = 4e12, 500, 2048
_BATCH, _BATCH_VALUES = 64, 2**23  # images at once, and values of the network's input


@dataclass(frozen=True)
class Material:
    """Training images: those in ``taught`` make smaller networks, those in ``judging`` say what these lose.

    ``original`` is the network whose labels count. ``work`` is the number of multiply-adds that it takes for an image.
    ``layout`` is the memory format in which batches are, channels last if the network runs so: that is faster.
    The ``deadline`` is checked after every batch. What the original says is computed once, for copies too.
    """

    original: nn.Module
    taught: Images
    judging: Images
    manifest: Manifest
    work: int
    layout: torch.memory_format
    deadline: Deadline
    progress: Progress = field(repr=False)
    said: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, reference: Reference, exported: Artifact, deadline: Deadline, progress: Progress) -> Material:
        """Choose the images.

        Args:
            reference: The original, whose labels count; its data set has the training images.
            exported: An ONNX file of it, which says how much work it is.
            deadline: Checked after every batch.
            progress: Called with what is done, of how much, and at what.

        Raises:
            DataError: There are no training images, or too few.
            Stopped: The deadline passed.
        """
        manifest = reference.artifact.require_manifest()
        train = reference.dataset.split("train", manifest.preprocessing.channels, manifest.labels)
        require_labels(train, reference.dataset)
        work = max(1, Network(onnx.load(exported.path)).work())
        judging = min(_within(_TO_JUDGE // work, _FEWEST_TO_JUDGE, _MOST_TO_JUDGE), len(train) // 2)
        count = min(_within(_TO_TEACH // work, _FEWEST_TO_TEACH, _MOST_TO_TEACH), len(train) - judging)

        def reading(done: int, total: int, text: str) -> None:
            progress(done, total, text)
            deadline.check()

        taught, images = split_training(train, count, judging, manifest.preprocessing, reading)
        original = Checkpoint.load(reference.artifact).network()
        image = torch.zeros(1, *manifest.preprocessing.shape)
        layout = layout_of(original, image, manifest.source.output)
        return cls(original, taught, images, manifest, work, layout, deadline, progress)

    @property
    def known(self) -> Images:
        """Those of ``taught`` that say what layers compute."""
        count = _within(_TO_KNOW // self.work, _FEWEST_TO_KNOW, _MOST_TO_KNOW)
        return self.taught.first(min(count, len(self.taught)))

    @property
    def expected(self) -> NDArray[np.float32]:
        """The original's logits of the images that judge, (images, classes)."""
        return self._said("judging", self.judging)

    @property
    def lesson(self) -> NDArray[np.float32]:
        """The original's logits of the images that teach, (images, classes), in bfloat16 if this machine has that."""
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            return self._said("taught", self.taught)

    def tensors(self, images: Images, text: str) -> Iterator[torch.Tensor]:
        """Yield images as the network takes them, in batches; a text is shown as progress."""
        prepare = self.manifest.preprocessing
        size = max(1, min(_BATCH, _BATCH_VALUES // math.prod(prepare.shape)))
        for start in range(0, len(images), size):
            if text:
                self.progress(start, len(images), text)
            self.deadline.check()
            batch = images.prepared(range(start, min(start + size, len(images))), prepare)
            yield torch.from_numpy(batch).to(memory_format=self.layout)

    def run(self, network: nn.Module, tensors: Iterable[torch.Tensor]) -> Iterator[NDArray[np.float32]]:
        """Yield a network's logits of each batch, (batch, classes)."""
        for batch in tensors:
            self.deadline.check()
            with torch.inference_mode():
                logits = network(batch)
            yield logits.float().numpy()

    def _said(self, name: str, images: Images) -> NDArray[np.float32]:
        if name not in self.said:
            tensors = self.tensors(images, "Running the original network")
            self.said[name] = np.concatenate(list(self.run(self.original, tensors)))
        return self.said[name]


def _within(count: float, fewest: int, most: int) -> int:
    return int(min(most, max(fewest, count)))
