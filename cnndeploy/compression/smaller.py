"""Smaller checkpoints of a network, by a search over the training images of its data set, and their repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression.channels import Channels
from cnndeploy.compression.low_rank import LowRank
from cnndeploy.compression.material import Material
from cnndeploy.compression.repair import repaired
from cnndeploy.compression.search import Judged, Reduction, Search, Sizes, judged
from cnndeploy.training.train import has_bfloat16
from cnndeploy.verification.reference import Reference

_EPOCHS = 2
_METHODS: Mapping[str, Callable[..., Reduction]] = {"low-rank": LowRank, "channels": Channels}


class Smaller:
    """The smaller networks that one method makes of a checkpoint."""

    def __init__(
        self, method: str, source: Artifact, material: Material, *, tests: int, threads: int, int8: bool
    ) -> None:
        """Search the sizes of the layers.

        Args:
            method: ``low-rank`` or ``channels``.
            source: The checkpoint, which may have been compressed before.
            material: The images, and what the original says of them.
            tests: How many test images will measure what comes of it.
            threads: Of ONNX Runtime, when layers are timed.
            int8: Whether the network will be quantised, so that layers are timed in int8 too.

        Raises:
            CompressionError: No layer can be made smaller so that it is faster.
            MissingDependencyError: The method needs a package.
            Stopped: The deadline passed.
        """
        checkpoint = Checkpoint.load(source)
        network = checkpoint.network().to(memory_format=material.layout)
        self._search = Search(
            checkpoint,
            network,
            _METHODS[method](
                network,
                next(material.tensors(material.judging.first(1), "")),
                material.tensors(material.known, "Looking at what layers compute"),
                threads=threads,
                int8=int8,
                deadline=material.deadline,
                progress=material.progress,
            ),
            material,
            tests=tests,
        )

    def within(self, material: Material, points: float) -> tuple[Sizes, Checkpoint] | None:
        """Return the smallest network that should lose no more than so many points; None if there is none.

        Raise Stopped if the search is stopped or the time over before one was found.
        """
        found = self._search.within(material, points)
        if found is None:
            return None
        sizes, network = found
        return sizes, self._search.checkpoint_of(network, sizes)


class Searches:
    """Searches by their method and the SHA-256 of their checkpoint, each made once; so is the error if it fails."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Smaller | Exception] = {}

    def of(self, method: str, source: Artifact, material: Material, **settings: Any) -> Smaller:
        """Return the search, made with ``settings`` of :class:`Smaller` if it is the first time, or raise its error."""
        key = method, source.sha256
        if key not in self.known:
            try:
                self.known[key] = Smaller(method, source, material, **settings)
            except Exception as error:  # noqa: BLE001 - a forward() may do anything
                self.known[key] = error.with_traceback(None)  # which would hold the memory of the search
        found = self.known[key]
        if isinstance(found, Exception):
            raise found
        return found


def repaired_checkpoint(
    source: Artifact, material: Material, points: float, *, tests: int
) -> tuple[Judged, Checkpoint, int]:
    """Train a smaller network, then judge it, stopping early if it surely loses more than the points.

    Return the verdict, the checkpoint, and how many images it was trained on. Raise Stopped if the caller asked to stop
    or the time was over.
    """
    checkpoint, bfloat16 = Checkpoint.load(source), has_bfloat16(torch.device("cpu"))
    network, taught = repaired(checkpoint.network(), material, epochs=_EPOCHS, bfloat16=bfloat16)
    of_it = judged(network.to(memory_format=material.layout), material, points, tests=tests)
    return of_it, Checkpoint.of(checkpoint.manifest, network, checkpoint.manifest.training), taught


def write_smaller(
    checkpoint: Checkpoint,
    path: Path,
    reference: Reference,
    budget: float,
    *,
    method: str = "",
    taught: int = 0,
) -> Artifact:
    """Write a smaller checkpoint that says what it was made of, by which method, or on how many images repaired."""
    earlier = checkpoint.manifest.compression or {}
    methods = [*earlier.get("methods", ()), *([method] if method else [])]
    compression = {
        "original_sha256": reference.artifact.sha256,
        "methods": list(dict.fromkeys(methods)),
        "budget_points": budget,
        "repaired_on_images": max(taught, earlier.get("repaired_on_images", 0)),
    }
    return replace(checkpoint, manifest=replace(checkpoint.manifest, compression=compression)).save(path)
