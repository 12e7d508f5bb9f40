"""Smaller checkpoints of a network, by a search over the training images of its data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression.channels import Channels
from cnndeploy.compression.low_rank import LowRank
from cnndeploy.compression.material import Material
from cnndeploy.compression.repair import repaired
from cnndeploy.compression.search import Judged, Reduction, Search
from cnndeploy.errors import Stopped
from cnndeploy.training.train import has_bfloat16
from cnndeploy.verification.reference import Reference

# What a network may be predicted to lose, as shares of the budget: few images predict, and int8 loses some too.
# The first of two methods may take the share FIRST.
SAFE, SAFER, FIRST = 0.7, 0.3, 0.5
# What it may lose before it is repaired; each is tried if the one before could be.
_BEFORE_REPAIR = (2.0, 4.0, 10.0, 25.0)
_EPOCHS = 2
_METHODS: Mapping[str, Callable[..., Reduction]] = {"low-rank": LowRank, "channels": Channels}
Found = tuple[Judged, Checkpoint]


class Smaller:
    """The smaller networks that one method makes of a checkpoint and that should keep a budget."""

    def __init__(
        self, method: str, source: Artifact, material: Material, *, tests: int, threads: int
    ) -> None:
        """Search the sizes of the layers.

        Args:
            method: ``low-rank`` or ``channels``.
            source: The checkpoint, which may have been compressed before.
            material: The images, and what the original says of them.
            tests: How many test images will measure what comes of it.
            threads: Of ONNX Runtime, when layers are timed.

        Raises:
            CompressionError: No layer can be made smaller so that it is faster.
            MissingDependencyError: The method needs a package.
            Stopped: The deadline passed.
        """
        self._material, checkpoint = material, Checkpoint.load(source)
        network = checkpoint.network().to(memory_format=material.layout)
        self._search = Search(
            checkpoint,
            network,
            _METHODS[method](
                network,
                next(material.tensors(material.judging.first(1), "")),
                material.tensors(material.known, "Looking at what layers compute"),
                threads=threads,
                deadline=material.deadline,
                progress=material.progress,
            ),
            material,
            tests=tests,
        )

    def within(self, points: float) -> Iterator[Found]:
        """Yield up to three networks that should lose no more than so many points, the smallest first.

        The first is repaired, if that gives a smaller one.

        Raise Stopped if the search is stopped or the time over before one was found.
        """
        safe = self._search.within(points)
        for trial, network in filter(None, (self._repaired(points), safe)):
            yield trial, self._search.checkpoint_of(network, trial.sizes)
        if safe is not None and (safer := self._search.within(points * SAFER / SAFE)) is not None:
            yield safer[0], self._search.checkpoint_of(safer[1], safer[0].sizes)

    def _repaired(self, points: float) -> tuple[Judged, torch.nn.Module] | None:
        """Return the smallest network that keeps the budget once it is repaired, by the images that judge.

        Its layers are refitted first, and only if that does not do, all of it is trained.
        """
        good: tuple[Judged, torch.nn.Module] | None = None
        try:
            for times in _BEFORE_REPAIR:
                found = self._search.within(times * points / SAFE)
                if found is None or (good is not None and found[0].sizes == good[0].sizes):
                    return good
                sizes, network = found[0].sizes, self._search.refitted(found[1], found[0].sizes)
                trial = self._search.judge(network, sizes, points)
                if trial.predicted_high_points > points:
                    network = self._repair(network)
                    trial = self._search.judge(network, sizes, points, len(self._material.taught))
                if trial.predicted_high_points > points:
                    return good
                good = replace(trial, refitted=True), network
        except Stopped:  # what there is will do
            return good
        return good

    def _repair(self, network: torch.nn.Module) -> torch.nn.Module:
        bfloat16 = has_bfloat16(torch.device("cpu"))
        return repaired(network, self._material, epochs=_EPOCHS, bfloat16=bfloat16)


def write_smaller(found: Found, method: str, reference: Reference, budget: float, path: Path) -> Artifact:
    """Write a smaller checkpoint that says what it was made of."""
    trial, checkpoint = found
    earlier = checkpoint.manifest.compression or {}
    compression = {
        "original_sha256": reference.artifact.sha256,
        "methods": list(dict.fromkeys([*earlier.get("methods", ()), method])),
        "budget_points": budget,
        "training_images": trial.images,
        "refitted": trial.refitted or earlier.get("refitted", False),
        "repaired_on_images": max(trial.taught, earlier.get("repaired_on_images", 0)),
    }
    manifest = replace(checkpoint.manifest, compression=compression)
    return replace(checkpoint, manifest=manifest).save(path)
