"""Equivalence: does an artifact compute what its checkpoint computes, on real images?"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.equivalence.comparison import Comparison, Tolerance
from cnndeploy.equivalence.decisions import Decisions, decide
from cnndeploy.equivalence.divergence import IMAGES, Divergence, find_divergence
from cnndeploy.equivalence.invariance import BatchInvariance, check_invariance, probes
from cnndeploy.equivalence.oracle import OracleCheck, check_against_oracle
from cnndeploy.equivalence.report import EquivalenceReport, FileIdentity, SideFacts
from cnndeploy.equivalence.side import NotRun, Precision, Side
from cnndeploy.equivalence.structure import is_unchanged, mismatches
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.machine import usable_cpus
from cnndeploy.runtimes import RuntimeOptions, default_runtime

BATCH_SIZES = (1, 2, 3, 7, 64, 256)
# Eager PyTorch keeps every activation of a layer at once; smaller batches bound the memory of large networks.
REFERENCE_BATCH = 64
# float64 takes eager several times as long: all images of a small network, so many of a larger one.
ORACLE_IMAGES, ORACLE_BATCH, ORACLE_SEED, _SMALL = 256, 32, 0, 28 * 28
# A file that takes raw images takes them of any size: it is also run on so many of other heights and widths.
IMAGE_SIZES, _IMAGES_OF_A_SIZE = ((45, 33), (17, 60)), 7
# Another computation explains an artifact's logits where it leaves less than this of their error.
_EXPLAINED = 0.1

Progress = Callable[[int, int], None]
_DEFAULT_OPTIONS = RuntimeOptions()


def verify(
    artifact: str | os.PathLike[str] | Artifact,
    against: str | os.PathLike[str] | Artifact,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    tf32: bool = False,
    options: RuntimeOptions = _DEFAULT_OPTIONS,
    images: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    on_batch: Progress | None = None,
) -> EquivalenceReport:
    """Run test images through an artifact and through its checkpoint, and compare.

    The artifact is opened from disk in a process of its own, which loads no torch for an ONNX file; its
    checkpoint, in eager PyTorch on the CPU, in another. Images are run in batches of :data:`BATCH_SIZES` in
    turn, so that every size is used throughout and memory stays bounded.

    Args:
        artifact: The exported file.
        against: The checkpoint it was exported from.
        runtime: What runs the artifact; its format's own by default.
        device: Where the artifact is run.
        threads: CPU threads for each side, all that the process may use by default.
        tf32: Verify as many apps deploy on CUDA, where ONNX Runtime's default lets products be taken in TF32. The
            tolerance is TF32's then, and the artifact's error is held against that of the checkpoint computed in
            TF32. The default is strict: float32 on both sides.
        options: Of the runtime, which must compute in float32.
        images: The first so many test images, all 10,000 by default.
        data_dir: Folder of the data set.
        on_batch: Called with the images run and the images to run in all, on both sides together.

    Returns:
        The report; nothing is raised where the two differ, see :meth:`EquivalenceReport.require`.

    Raises:
        ArtifactError, CheckpointError: A file cannot be opened, or the artifact is lossy: that is verify_budget's.
        DeviceUnavailableError: ``device`` does not work here.
        DataError: The data set is missing or damaged.

    >>> cnndeploy.verify("lenet.onnx", "lenet.pt", images=64).require()
    """
    # opened anew even where they are open, so that what is hashed is what is run
    artifact = Artifact.open(artifact.path if isinstance(artifact, Artifact) else artifact)
    against = Artifact.open(against.path if isinstance(against, Artifact) else against)
    if against.format != "checkpoint":
        raise ArtifactError(f"{against.path} is {against.format}; verify against the checkpoint it came from")
    if artifact.require_manifest().lossy:
        raise ArtifactError(
            f"{artifact.path} gives up accuracy on purpose, so it is never equivalent. Measure what it loses with "
            f"verify_budget, or: cnndeploy verify {artifact.path} --against {against.path}"
        )
    test = data.load("test", data_dir).first(images)
    runtime = runtime or default_runtime(artifact.format)
    takes_images = artifact.require_manifest().takes_images
    shared: dict[str, Any] = {
        "threads": usable_cpus() if threads is None else threads,
        "data_dir": None if data_dir is None else os.fspath(data_dir),
    }
    with (
        Side(artifact, runtime=runtime, device=device, tf32=tf32, options=options, **shared) as candidate,
        Side(
            against, runtime=default_runtime("checkpoint"), device="cpu", from_raw=takes_images, **shared
        ) as reference,
    ):
        candidate.wait_until_open()
        reference.wait_until_open()
        evidence = _Evidence(candidate, reference, test, tf32, on_batch)
        reasons = mismatches(candidate, reference) or evidence.gather()
        for side in (candidate, reference):
            if not is_unchanged(side.artifact):
                reasons.append(f"{side.artifact.path} was replaced while it was verified")
    comparison = evidence.comparison
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
        oracle=evidence.oracle,
        decisions=evidence.decisions,
        batch_invariance=evidence.invariance,
        divergence=evidence.divergence,
        other_image_sizes=evidence.image_sizes,
        artifact_side=SideFacts(candidate.placement, candidate.settings),
        against_side=SideFacts(reference.placement, reference.settings),
    )


class _Evidence:
    """Runs both sides, one after the other, and keeps what each check found."""

    def __init__(
        self, candidate: Side, reference: Side, test: data.Images, tf32: bool, on_batch: Progress | None
    ) -> None:
        self.comparison = Comparison(Tolerance.of_tf32() if tf32 else Tolerance())
        self._maths: Precision = "tf32" if tf32 else "float32"
        # what a simplified file computes inside is held against the checkpoint simplified alike, its logits never
        self._simplified = bool(candidate.artifact.require_manifest().rewrites)
        self.oracle: OracleCheck | None = None
        self.decisions: Decisions | None = None
        self.invariance: BatchInvariance | None = None
        self.divergence: Divergence | None = None
        self.image_sizes: tuple[tuple[int, int], ...] = ()
        self._candidate = candidate
        self._reference = reference
        self._test = test
        self._on_batch = on_batch
        self._sample = _oracle_sample(test, reference.artifact)
        self._probes = probes(len(test))
        self._done = 0
        oracle_runs = 2 if tf32 else 1
        self._total = 2 * len(test) + oracle_runs * len(self._sample) + sum(map(len, self._probes))

    def gather(self) -> list[str]:
        """The reasons against equivalence; empty where there are none."""
        plan = list(_batches(len(self._test), BATCH_SIZES))
        try:
            ours = list(self._counted(self._candidate.logits(plan)))
            invariance = list(self._counted(self._candidate.logits(self._probes)))
        except NotRun as error:
            return [str(error)]
        theirs = self._all(self._reference, range(len(self._test)), REFERENCE_BATCH, "float32")
        for batch, logits in zip(plan, ours, strict=True):
            if (reason := self.comparison.add(theirs[batch], logits)) is not None:
                fits = all(logits.shape[1:] == theirs.shape[1:] for logits in ours)
                return [reason, *(self._look_inside(np.concatenate(ours), theirs) if fits else ())]
        artifact = np.concatenate(ours)
        exact = self._all(self._reference, self._sample, ORACLE_BATCH, "float64")
        limit = self.comparison.tolerance.relative
        self.invariance = check_invariance(self._probes, invariance, limit)
        rounded = theirs[self._sample]  # as eager rounds, where it computes in the artifact's maths
        if self._maths != "float32":
            rounded = self._all(self._reference, self._sample, ORACLE_BATCH, self._maths)
        self.oracle = check_against_oracle(artifact[self._sample], rounded, exact, ORACLE_SEED)
        self.decisions = decide(artifact, theirs, self._test.labels)
        reasons = [
            *self.comparison.reasons(),
            *self.oracle.reasons(),
            *self.invariance.reasons(),
            *self._other_sizes(),
        ]
        return [*reasons, *self._look_inside(artifact, theirs)] if reasons else []

    def _other_sizes(self) -> list[str]:
        """Whether a file that takes raw images gives the checkpoint's logits for those of other sizes too."""
        if not self._candidate.artifact.require_manifest().takes_images:
            return []
        batch = list(range(min(_IMAGES_OF_A_SIZE, len(self._test))))
        for size in IMAGE_SIZES:
            compared = Comparison(self.comparison.tolerance)
            try:
                (ours,), (theirs,) = (
                    side.logits([batch], size=size) for side in (self._candidate, self._reference)
                )
            except NotRun as error:
                return [f"on images of {size[0]} x {size[1]}: {error}"]
            reason = compared.add(theirs, ours)
            for each in [reason] if reason is not None else compared.reasons():
                return [f"on images of {size[0]} x {size[1]}: {each}"]
            self.image_sizes += (size,)
        return []

    def _look_inside(self, artifact: NDArray[Any], theirs: NDArray[Any]) -> list[str]:
        """Which module departs first, on the images (images, classes) whose logits differ most, and why."""
        with np.errstate(all="ignore"):
            difference = np.abs(artifact - theirs).max(axis=1) / np.abs(theirs).max(axis=1)
        worst = np.argsort(np.where(np.isfinite(difference), -difference, -np.inf))[:IMAGES].tolist()
        try:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                self.divergence = find_divergence(
                    worst,
                    self._candidate.activations(worst, folder / "artifact"),
                    self._reference.activations(worst, folder / "eager", self._maths, self._simplified),
                    self._reference.activations(worst, folder / "exact", "float64", self._simplified),
                )
            return [*self.divergence.reasons(), *self._rounded_weights(artifact[worst], worst)]
        except (NotRun, CnndeployError) as error:  # the verdict stands without
            self.divergence = Divergence(
                tuple(worst), (), None, f"which module departs is not known: {error}"
            )
            return []

    def _rounded_weights(self, artifact: NDArray[Any], images: list[int]) -> list[str]:
        """Whether the checkpoint with its weights rounded to a smaller dtype explains the logits."""

        def error(weights: str) -> float:
            (exact,) = self._reference.logits([images], "float64", weights, simplified=self._simplified)
            return float(np.abs(artifact - exact).max())

        unrounded = error("float32")
        return [
            f"it computes what the checkpoint computes with its weights rounded to {dtype}"
            for dtype in ("float16", "bfloat16")
            if error(dtype) < _EXPLAINED * unrounded
        ]

    def _all(self, side: Side, images: Sequence[int], batch: int, precision: Precision) -> NDArray[Any]:
        numbers = list(images)
        plan = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]
        return np.concatenate(list(self._counted(side.logits(plan, precision))))

    def _counted(self, logits: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for batch in logits:
            self._done += len(batch) if batch.ndim else 0
            if self._on_batch is not None:
                self._on_batch(self._done, self._total)
            yield batch


def _oracle_sample(test: data.Images, checkpoint: Artifact) -> list[int]:
    """The images that float64 is run on, in order."""
    height, width = checkpoint.require_manifest().preprocessing.size
    if height * width <= _SMALL or len(test) <= ORACLE_IMAGES:
        return list(range(len(test)))
    drawn = np.random.default_rng(ORACLE_SEED).choice(len(test), ORACLE_IMAGES, replace=False)
    return sorted(drawn.tolist())


def _batches(images: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """The images' numbers in order, in batches of each size in turn; the last batch is what is left."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= images:
            return
        yield list(range(start, min(start + size, images)))
        start += size
