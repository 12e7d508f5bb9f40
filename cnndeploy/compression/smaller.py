"""Smaller checkpoints of a network, by a search over the training images of its data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression.repair import Lesson, repaired
from cnndeploy.compression.search import Search, Trial, judged_by
from cnndeploy.datasets import Images, require_labels
from cnndeploy.errors import OutOfTime
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.graph import Network
from cnndeploy.quantization.search import split_training
from cnndeploy.training.subject import layout_of
from cnndeploy.training.train import has_bfloat16
from cnndeploy.verification.reference import Reference

# What a network may be predicted to lose, as shares of the budget: few images predict, and int8 loses some too.
_SAFE, _SAFER = 0.7, 0.3
# What it may lose before it is repaired; each is tried if the one before could be.
_BEFORE_REPAIR = (4.0, 10.0, 25.0)
_EPOCHS = 2
# Images that give the components. Of few, those of a linear layer of thousands of outputs hold for these images only.
_KNOWN = 2048
# Multiply-adds of the original on the images that a network is repaired on.
_TO_TEACH, _FEWEST_TO_TEACH, _MOST_TO_TEACH = 1.2e13, 1000, 20_000
Found = tuple[Trial, Checkpoint]


class Smaller:
    """The smaller networks of a checkpoint that should keep a budget."""

    def __init__(
        self,
        source: Artifact,
        reference: Reference,
        exported: Artifact,
        *,
        tests: int,
        threads: int,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        """Search the ranks of the layers.

        Args:
            source: The checkpoint, which may have been compressed before.
            reference: The original, whose labels count; its data set has the training images.
            exported: An ONNX file of it, which says how much work it is.
            tests: How many test images will measure what comes of it.
            threads: Of ONNX Runtime, when layers are timed.
            deadline: Checked after every batch.
            progress: Called with what is done, of how much, and at what.

        Raises:
            CompressionError: No layer can be split so that it is faster.
            DataError: There are no training images, or too few.
            Stopped: The deadline passed.
        """
        manifest = source.require_manifest()
        train = reference.dataset.split("train", manifest.preprocessing.channels, manifest.labels)
        require_labels(train, reference.dataset)
        work = Network(onnx.load(exported.path)).work()
        judging = min(judged_by(work), len(train) // 2)
        wanted = int(min(_MOST_TO_TEACH, max(_FEWEST_TO_TEACH, _TO_TEACH // work)))
        count = min(wanted, len(train) - judging)
        self._taught, images = split_training(train, count, judging, manifest.preprocessing, progress)
        self._manifest, self._deadline, self._progress = manifest, deadline, progress
        self._search = Search(
            Checkpoint.load(source),
            Checkpoint.load(reference.artifact).network(),
            self._taught.first(min(_KNOWN, len(self._taught))),
            images,
            tests=tests,
            threads=threads,
            deadline=deadline,
            progress=progress,
        )

    def within(self, budget: float) -> Iterator[Found]:
        """Yield networks that should keep a budget, the smallest first: repaired ones, then others.

        Raise Stopped if the time is over before one was found.
        """
        safe = self._search.within(_SAFE * budget)
        for trial, network in (*reversed(self._repaired(budget)), *filter(None, [safe])):
            yield trial, self._search.checkpoint_of(network, trial.ranks)
        if safe is not None and (safer := self._search.within(_SAFER * budget)) is not None:
            yield safer[0], self._search.checkpoint_of(safer[1], safer[0].ranks)

    def _repaired(self, budget: float) -> list[tuple[Trial, torch.nn.Module]]:
        """Return ever smaller networks that keep the budget once they are repaired, by the images that judge."""
        good: list[tuple[Trial, torch.nn.Module]] = []
        lesson: Lesson | None = None
        try:
            for times in _BEFORE_REPAIR:
                found = self._search.within(times * budget)
                if found is None or (good and found[0].ranks == good[-1][0].ranks):
                    return good
                lesson = lesson or self._lesson(self._taught)
                network = self._repair(found[1], lesson)
                trial = self._search.judge(network, found[0].ranks, _SAFE * budget, len(self._taught))
                if trial.predicted_high_points > _SAFE * budget:
                    return good
                good.append((trial, network))
        except OutOfTime:  # what there is will do
            return good
        return good

    def _lesson(self, images: Images) -> Lesson:
        return Lesson(images, self._search.what_it_says(images), self._manifest)

    def _repair(self, network: torch.nn.Module, lesson: Lesson) -> torch.nn.Module:
        image = torch.zeros(1, *self._manifest.preprocessing.shape)
        return repaired(
            network,
            lesson,
            epochs=_EPOCHS,
            layout=layout_of(network, image, self._manifest.source.output),
            bfloat16=has_bfloat16(torch.device("cpu")),
            deadline=self._deadline,
            progress=self._progress,
        )


def write_smaller(found: Found, reference: Reference, budget: float, path: Path) -> Artifact:
    """Write a smaller checkpoint that says what it was made of."""
    trial, checkpoint = found
    compression = {
        "original_sha256": reference.artifact.sha256,
        "methods": ["low-rank"],
        "budget_points": budget,
        "training_images": trial.images,
        "repaired_on_images": trial.taught,
    }
    manifest = replace(checkpoint.manifest, compression=compression)
    return replace(checkpoint, manifest=manifest).save(path)
