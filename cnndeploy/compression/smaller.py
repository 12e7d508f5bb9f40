"""A smaller checkpoint of a network, by a search over the training images of its data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression.search import Search, Trial, judged_by
from cnndeploy.datasets import require_labels
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.graph import Network
from cnndeploy.quantization.search import split_training
from cnndeploy.verification.reference import Reference

# What a network may be predicted to lose, as a share of the budget: few images predict, and int8 loses some too.
SHARE_OF_BUDGET = 0.7


def search_ranks(
    source: Artifact,
    reference: Reference,
    exported: Artifact,
    *,
    tests: int,
    threads: int,
    deadline: Deadline,
    progress: Progress,
) -> Search:
    """Search the ranks of a checkpoint's layers on the training images of the reference's data set.

    Args:
        source: The checkpoint, which may have been compressed before.
        reference: The original, whose labels count.
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
    known, judging = split_training(train, None, judged_by(work), manifest.preprocessing, progress)
    checkpoint, original = Checkpoint.load(source), Checkpoint.load(reference.artifact)
    return Search(
        checkpoint,
        original.network(),
        known,
        judging,
        tests=tests,
        threads=threads,
        deadline=deadline,
        progress=progress,
    )


def write_smaller(
    found: tuple[Trial, Checkpoint], reference: Reference, budget: float, path: Path
) -> Artifact:
    """Write a smaller checkpoint that says what it was made of."""
    trial, checkpoint = found
    compression = {
        "original_sha256": reference.artifact.sha256,
        "methods": ["low-rank"],
        "budget_points": budget,
        "training_images": trial.images,
    }
    manifest = replace(checkpoint.manifest, compression=compression)
    return replace(checkpoint, manifest=manifest).save(path)
