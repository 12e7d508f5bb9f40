"""Equivalence: does an artifact compute what its checkpoint computes, on real images?"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.equivalence.comparison import Comparison
from cnndeploy.equivalence.report import EquivalenceReport, FileIdentity
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.runtimes import Session, default_runtime, open_session
from cnndeploy.specs import Manifest

BATCH_SIZES = (1, 2, 3, 7, 256)
# Eager PyTorch keeps every activation of a layer at once; smaller batches bound the memory of large networks.
REFERENCE_BATCH = 64


def verify(
    artifact: str | os.PathLike[str] | Artifact,
    against: str | os.PathLike[str] | Artifact,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    images: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> EquivalenceReport:
    """Run test images through an artifact and through its checkpoint in eager PyTorch on the CPU.

    Images are streamed in batches of :data:`BATCH_SIZES` in turn, so that every size is used throughout and
    memory stays bounded.

    Args:
        artifact: The exported file.
        against: The checkpoint it was exported from.
        runtime: What runs the artifact; the first that opens its format by default.
        device: Where the artifact is run.
        threads: CPU threads for each side, all that the process may use by default.
        images: The first so many test images, all 10,000 by default.
        data_dir: Folder of the data set.
        on_batch: Called with the images done and the images in all.

    Returns:
        The report; nothing is raised where the two differ, see :meth:`EquivalenceReport.require`.

    Raises:
        ArtifactError, CheckpointError: A file cannot be opened.
        DeviceUnavailableError: ``device`` does not work here.
        DataError: The data set is missing or damaged.
    """
    # opened anew even where they are open, so that what is hashed is what is run
    artifact = Artifact.open(artifact.path if isinstance(artifact, Artifact) else artifact)
    against = Artifact.open(against.path if isinstance(against, Artifact) else against)
    if against.format != "checkpoint":
        raise ArtifactError(f"{against.path} is {against.format}; verify against the checkpoint it came from")
    runtime = runtime or default_runtime(artifact.format)
    manifest = against.require_manifest()
    test_images = data.load("test", data_dir).first(images).images

    with (
        open_session(artifact, runtime=runtime, device=device, threads=threads) as candidate,
        open_session(against, threads=threads) as reference,
    ):
        comparison = Comparison()
        reasons = _mismatches(artifact, against, candidate)
        if not reasons:
            error = _compare(candidate, reference, manifest, test_images, comparison, on_batch)
            reasons = [*([error] if error else []), *comparison.reasons()]
        for file in (artifact, against):
            if Artifact.open(file.path).sha256 != file.sha256:
                reasons.append(f"{file.path} was replaced while it was verified")
        return EquivalenceReport(
            artifact=FileIdentity(str(artifact.path), artifact.sha256),
            against=FileIdentity(str(against.path), against.sha256),
            runtime=runtime,
            device=candidate.device,
            threads=candidate.threads,
            images=comparison.images,
            batch_sizes=tuple(sorted(comparison.batch_sizes)),
            max_abs_error=comparison.max_abs_error,
            max_rel_error=comparison.max_rel_error,
            top1_agreement=comparison.top1_agreement,
            tolerance=comparison.tolerance,
            reasons=tuple(reasons),
        )


def _mismatches(artifact: Artifact, against: Artifact, candidate: Session) -> list[str]:
    """What can be said to differ before anything is run."""
    ours, theirs = artifact.require_manifest(), against.require_manifest()
    reasons = []
    source = artifact.sha256 if artifact.format == "checkpoint" else ours.checkpoint_sha256
    if source != against.sha256:
        reasons.append(f"it was exported from another checkpoint: {source}, not {against.sha256}")
    for field in ("architecture", "input", "output", "preprocessing", "labels", "training"):
        if getattr(ours, field) != getattr(theirs, field):
            reasons.append(f"the manifests differ in {field}")
    for kind, specs, expected in (
        ("input", candidate.inputs, theirs.input),
        ("output", candidate.outputs, theirs.output),
    ):
        if specs != (expected,):
            found = ", ".join(f"{spec.name} {spec}" for spec in specs)
            reasons.append(f"the graph's {kind} is {found}, not {expected.name} {expected}")
    return reasons


def _compare(
    candidate: Session,
    reference: Session,
    manifest: Manifest,
    images: NDArray[np.uint8],
    comparison: Comparison,
    on_batch: Callable[[int, int], None] | None,
) -> str | None:
    """Run both sides batch by batch; gives the reason where the candidate cannot go on."""
    name, output = manifest.input.name, manifest.output.name
    for batch in _batches(images, BATCH_SIZES):
        image = manifest.preprocessing(batch)
        parts = range(0, len(image), REFERENCE_BATCH)
        expected = np.concatenate(
            [reference.run({name: image[i : i + REFERENCE_BATCH]})[output] for i in parts]
        )
        try:
            actual = candidate.run({name: image})[output]
        except (ArtifactError, InputMismatchError) as error:
            return f"it fails on a batch of {len(batch)}: {error}"
        if (mismatch := comparison.add(expected, actual)) is not None:
            return mismatch
        if on_batch is not None:
            on_batch(comparison.images, len(images))
    return None


def _batches(images: NDArray[np.uint8], sizes: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The images in order, in batches of each size in turn; the last batch is what is left."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(images):
            return
        yield images[start : start + size]
        start += size
