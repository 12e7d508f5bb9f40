"""Equivalence: does an artifact compute what its checkpoint computes, on real images?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.datasets import Data
from cnndeploy.deployment import ArtifactLike, resolve
from cnndeploy.errors import ArtifactError, CnndeployError, Stopped
from cnndeploy.files import scratch_folder
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.run import Precision, Run
from cnndeploy.specs import Manifest
from cnndeploy.verification import checks
from cnndeploy.verification.checks import Comparison, Tolerance
from cnndeploy.verification.divergence import IMAGES, Divergence, find_divergence
from cnndeploy.verification.examination import Examination, examination
from cnndeploy.verification.prepared import has_moves
from cnndeploy.verification.reference import AS_IT_IS, Computation, NotRun, Reference, Runner, rows_of
from cnndeploy.verification.report import EquivalenceReport

BATCH_SIZES = (1, 2, 3, 7, 64, 256)
# float64 takes eager several times as long: it runs all images if they are no more work than 10,000 of 28 x 28 pixels,
# else so many.
ORACLE_IMAGES, ORACLE_SEED, _MOST_VALUES = 256, 0, 10_000 * 28 * 28
# onnx.reference takes thousands of times as long. What it computes may be another function than the runtime's, if one
# of the two is wrong: so much of an error is no rounding of float32.
_DEFINITION_IMAGES, _FLOAT32_ERROR = 16, 1e-3
# A file that takes raw images takes them of any size: it is also run on so many of other heights and widths.
IMAGE_SIZES, _IMAGES_OF_A_SIZE = ((45, 33), (17, 60)), 7
# Of a network's own height and width, for other preprocessing than LeNet's: tall, wide, and too small.
_OTHER_SIZES = ((2.3, 1.25), (1.1, 2.7), (0.7, 0.6))
# Another computation explains an artifact's logits if it leaves less than this of their error.
_EXPLAINED = 0.1
_SMALLER: tuple[Precision, ...] = ("float16", "bfloat16")


def verify(
    artifact: ArtifactLike,
    against: ArtifactLike | Reference,
    *,
    run: Run | None = None,
    images: int | None = None,
    data: Data | None = None,
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> EquivalenceReport:
    """Run test images through an artifact and through its checkpoint, and compare.

    If an ONNX file was imported, what is made from it is compared with that file, on ONNX Runtime's CPU provider, and
    on a few images in float64 too, by the definition of ONNX's operators. If that cannot be computed, there is the
    tolerance alone.

    The artifact is opened from disk in a process of its own, which loads no torch for an ONNX file; its
    checkpoint, in eager PyTorch on the CPU, in another. Images are run in batches of :data:`BATCH_SIZES` in
    turn, so that every size is used throughout and memory stays bounded. Nothing is raised if the two differ; the
    report says so, see :meth:`EquivalenceReport.require`.

    Args:
        artifact: The exported file, or a deployment's folder.
        against: The checkpoint it was exported from, or a :class:`Reference` of it, which runs it once for many files.
        run: How the artifact is run; its precision is float32, or on CUDA ``tf32``, as ONNX Runtime's default lets
            products be taken. The tolerance is TF32's then, and the artifact's error is compared with that of the
            checkpoint computed in TF32.
        images: The first so many test images, all of them by default. Those that cannot be read are left out, with a
            warning.
        data: ``fashion-mnist`` or a folder of images, which need no labels; what the checkpoint was made on by
            default. A Reference has its own.
        deadline: Checked after every batch.
        progress: Called with the images run and the images to run in all, on both sides together.

    Raises:
        ArtifactError, CheckpointError: A file cannot be opened, or the artifact is lossy: that is verify_budget's.
        DeviceUnavailableError: The device does not work here.
        DataError: The data set is missing or damaged.
        Stopped: The deadline passed.

    >>> cnndeploy.verify("lenet.onnx", "lenet.pt", images=64).require()
    """
    candidate = resolve(artifact, run)
    candidate.artifact.require_manifest()
    if candidate.lossy:
        raise ArtifactError(
            f"{candidate.artifact.path} gives up accuracy on purpose, so it is never equivalent. Measure what it loses "
            "with verify_budget"
        )
    with examination(candidate, against, images, data, deadline, progress) as opened:
        with scratch_folder() as folder:
            evidence = _Evidence(opened, Path(folder))
            reasons = opened.mismatches() or evidence.gather()
            if reasons and (parts := candidate.artifact.lossy_parts()):
                changed = "another program changed its precision after cnndeploy wrote it"
                reasons = [*reasons, f"{changed}: it has {', '.join(parts)}"]
        return replace(
            evidence.report,
            reasons=(*reasons, *opened.replaced()),
            artifact_side=opened.runner.facts,
            against_side=opened.reference.start().opened().facts,
        )


def image_sizes(manifest: Manifest) -> tuple[tuple[int, int], ...]:
    """Return the heights and widths of raw images that a file is run on besides the test images' own."""
    own = manifest.preprocessing
    if not manifest.takes_images:
        return ()
    if own.channels == 1 and not own.antialias:
        return IMAGE_SIZES
    height, width = own.size
    return tuple((math.ceil(height * tall), math.ceil(width * wide)) for tall, wide in _OTHER_SIZES)


class _Evidence:
    """Runs both sides, one after the other, and notes in ``report`` what each check found."""

    def __init__(self, opened: Examination, folder: Path) -> None:
        self._opened, self._folder = opened, folder
        self._test = range(len(opened.test))
        self._maths = opened.candidate.run.choices.precision
        manifest = opened.candidate.artifact.require_manifest()
        self._exact = Computation("float64", from_raw=manifest.takes_images)
        self._resizing, self._sizes = manifest.resizing, image_sizes(manifest)
        # that raw images of several sizes are resampled to, for no runtime takes them in one batch
        self._one_size: tuple[int, int] | None = None
        # then its modules are compared with those of the simplified checkpoint; its logits are not
        self._simplified = bool(manifest.rewrites)
        tolerance = Tolerance.of_tf32() if self._maths == "tf32" else Tolerance()
        self.report = EquivalenceReport(**opened.identity(), tolerance=tolerance)
        self._sample = self._oracle_sample()
        self._probes = checks.probes(len(self._test))
        oracle_runs = 2 if self._maths == "tf32" else 1
        runs = 2 if self._resizing is None else 3  # the checkpoint's images, and those that the file got
        opened.total = runs * len(self._test) + oracle_runs * len(self._sample) + sum(map(len, self._probes))

    def gather(self) -> list[str]:
        """Return the reasons against equivalence; none if there are none."""
        try:
            own = self._with_moves(AS_IT_IS, "own")
            artifact = self._artifact_logits(own)
            self._whole = frozenset(self._opened.runner.whole)
            if self._opened.runner.split:
                self._one_size = self._sizes[0]
                self._opened.total += min(len(self._test), sum(BATCH_SIZES))
            ends = np.cumsum([len(probe) for probe in self._probes])
            probed = np.split(self._opened.logits(self._probes, Computation(size=self._one_size)), ends[:-1])
            self._opened.runner.check_noise()
        except NotRun as error:
            return [str(error)]
        unmoved = self._reference(self._test)
        expected = self._as_moved(self._test, own, unmoved)
        self._typical = checks.typical_logit(expected)
        if self._sample:
            self._compute_oracle(expected)
        reasons = self._compare(artifact, expected)
        if self.report.max_abs_error is not None:
            limit = self.report.tolerance.relative
            invariance = checks.check_invariance(self._probes, probed, limit, self._typical)
            oracle = self._oracle(artifact) if self._sample else None
            self.report = replace(self.report, oracle=oracle, batch_invariance=invariance)
            reasons += oracle.reasons() if oracle is not None else ()
            reasons += [*invariance.reasons(), *self._check_other_sizes()]
            decisions = checks.decide(artifact, unmoved, self._opened.test.labels)
            self.report = replace(self.report, decisions=decisions)
            if self._resizing is not None:
                change = checks.probability_change(artifact, unmoved)
                prepared = replace(self._opened.runner.prepared, probability_change=change)
                self.report = replace(self.report, prepared=prepared)
        if not reasons or not self._opened.reference.has_modules:
            return reasons
        return [*reasons, *self._look_inside(artifact, expected)]

    def _artifact_logits(self, computation: Computation) -> NDArray[np.float32]:
        """Run the artifact on all images, in batches of each size in turn.

        On a GPU those of one size run one after the other: ONNX Runtime plans all convolutions again when it changes.
        """
        batches = list(_batches(len(self._test), BATCH_SIZES))
        if self._opened.runner.device == "cpu":
            return self._opened.logits(batches, computation)
        batches.sort(key=len)
        logits = self._opened.logits(batches, computation)
        ordered = np.empty_like(logits)
        ordered[list(itertools.chain(*batches))] = logits
        return ordered

    def _compute_oracle(self, expected: NDArray[np.float32]) -> None:
        """Compute what the artifact's error is compared with, in float64, and widen the tolerance to it."""
        self._exact = self._with_moves(self._exact, "own")
        imported = not self._opened.reference.has_modules
        try:
            self._exact_logits = self._reference(self._sample, self._exact)
        except ArtifactError:
            if not imported:
                raise
            self._sample = ()  # an operator that onnx.reference does not know, or a file in float16
            return
        self._rounded_logits = self._rounded(expected)
        with np.errstate(all="ignore"):  # of a checkpoint that gives NaN, which is said below
            own_error = float(checks.relative_errors(self._rounded_logits, self._exact_logits).max())
        if imported and own_error > _FLOAT32_ERROR:
            self._sample = ()
            return
        self.report = replace(self.report, tolerance=self.report.tolerance.at_least(own_error))

    def _with_moves(self, computation: Computation, name: str) -> Computation:
        """Return the computation on the images that a file's network gets, if these are a little off."""
        if self._resizing is None:
            return computation
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return replace(computation, moves=str(folder))

    def _as_moved(
        self, images: Sequence[int], computation: Computation, unmoved: NDArray[Any]
    ) -> NDArray[Any]:
        """Return the checkpoint's logits (images, classes) for what the file's network got."""
        folder, numbers = Path(computation.moves), self._opened.reference.numbers(images)
        pairs = zip(images, numbers, strict=True) if computation.moves else ()
        moved = [place for place, number in pairs if has_moves(folder, number)]
        if not moved:
            return unmoved
        logits = unmoved.copy()
        logits[np.isin(images, moved)] = self._reference(moved, computation)
        self._opened.reference.forget(computation)
        return logits

    def _reference(self, images: Sequence[int], computation: Computation = AS_IT_IS) -> NDArray[Any]:
        return self._opened.reference.logits(images, computation, progress=self._opened.counting())

    def _compare(self, artifact: NDArray[np.float32], expected: NDArray[np.float32]) -> list[str]:
        """Compare the logits (images, classes) within the tolerance, batch by batch."""
        comparison = Comparison(self.report.tolerance, self._typical)
        reasons = _added(comparison, _batches(len(self._test), BATCH_SIZES), expected, artifact)
        self.report = replace(
            self.report,
            images=comparison.images,
            batch_sizes=tuple(sorted(comparison.batch_sizes & self._whole)),
            max_abs_error=None if reasons else comparison.max_abs_error,
            max_rel_error=None if reasons else comparison.max_rel_error,
            top1_agreement=comparison.top1_agreement,
        )
        return reasons or comparison.reasons()

    def _rounded(self, expected: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return eager's logits of the sample, rounded in the artifact's maths."""
        if self._maths == "float32":
            return rows_of(expected, self._sample)
        return self._reference(self._sample, self._with_moves(Computation(self._maths), "own"))

    def _oracle(self, artifact: NDArray[np.float32]) -> checks.OracleCheck:
        """Compare the artifact's error from float64 with eager's own, in the artifact's maths."""
        return checks.check_against_oracle(
            rows_of(artifact, self._sample), self._rounded_logits, self._exact_logits, ORACLE_SEED
        )

    def _check_other_sizes(self) -> list[str]:
        """See whether a file that takes raw images gives the checkpoint's logits for those of other sizes too.

        If the test images are of several sizes, batches of all sizes are run here.
        """
        for size in self._sizes:
            batches = [list(self._test[:_IMAGES_OF_A_SIZE])]
            if size == self._one_size:
                batches = list(_batches(min(len(self._test), sum(BATCH_SIZES)), BATCH_SIZES))
            images = range(sum(map(len, batches)))
            comparison, plain = Comparison(self.report.tolerance, self._typical), Computation(size=size)
            computation = self._with_moves(plain, "{}x{}".format(*size))
            try:
                logits = self._opened.logits(batches, computation)
                expected = self._as_moved(images, computation, self._reference(images, plain))
                reasons = _added(comparison, batches, expected, logits) or comparison.reasons()
            except NotRun as error:
                reasons = [str(error)]
            if reasons:
                return [f"on images of {size[0]} x {size[1]}: {reasons[0]}"]
            ran = {*self.report.batch_sizes, *(comparison.batch_sizes if size == self._one_size else ())}
            others = (*self.report.other_image_sizes, size)
            self.report = replace(self.report, batch_sizes=tuple(sorted(ran)), other_image_sizes=others)
        return []

    def _look_inside(self, artifact: NDArray[Any], expected: NDArray[Any]) -> list[str]:
        """Say which module departs first, on the images whose logits (images, classes) differ most, and why."""
        with np.errstate(all="ignore"):
            difference = np.abs(artifact - expected).max(axis=1) / checks.scales(expected, self._typical)
        worst = np.argsort(np.where(np.isfinite(difference), -difference, -np.inf))[:IMAGES].tolist()
        eager = self._with_moves(Computation(self._maths, simplified=self._simplified), "own")
        exact = replace(self._exact, simplified=self._simplified)
        reference = self._opened.reference
        sides: list[tuple[Runner | Reference, Computation]] = [(self._opened.runner, AS_IT_IS)]
        sides += (reference, eager), (reference, exact)
        try:
            with scratch_folder() as folder:
                activations = [
                    side.activations(worst, Path(folder, str(number)), computation)
                    for number, (side, computation) in enumerate(sides)
                ]
                divergence = find_divergence(worst, *activations)
        except Stopped:
            raise
        except (NotRun, CnndeployError) as error:  # the verdict stands without
            divergence = Divergence(tuple(worst), (), None, f"which module departs is not known: {error}")
        self.report = replace(self.report, divergence=divergence)
        return [*divergence.reasons(), *self._rounded_weights(artifact[worst], worst, exact)]

    def _rounded_weights(self, artifact: NDArray[Any], images: list[int], exact: Computation) -> list[str]:
        """Say whether the checkpoint with its weights rounded to a smaller dtype explains the logits."""
        try:
            unrounded, *errors = (
                float(np.abs(artifact - self._reference(images, replace(exact, weights=dtype))).max())
                for dtype in (exact.weights, *_SMALLER)
            )
        except Stopped:
            raise
        except CnndeployError:  # the verdict stands without
            return []
        return [
            f"it computes what the checkpoint computes with its weights rounded to {dtype}"
            for dtype, error in zip(_SMALLER, errors, strict=True)
            if error < _EXPLAINED * unrounded
        ]

    def _oracle_sample(self) -> Sequence[int]:
        """Return the images that float64 is run on, in order."""
        reference = self._opened.reference
        if not reference.has_modules:
            few = 0 if self._maths == "tf32" else min(len(self._test), _DEFINITION_IMAGES)
            return sorted(np.random.default_rng(ORACLE_SEED).permutation(len(self._test))[:few].tolist())
        values = math.prod(reference.artifact.require_manifest().preprocessing.shape)
        if len(self._test) * values <= _MOST_VALUES or len(self._test) <= ORACLE_IMAGES:
            return self._test
        drawn = np.random.default_rng(ORACLE_SEED).choice(len(self._test), ORACLE_IMAGES, replace=False)
        return sorted(drawn.tolist())


def _added(
    comparison: Comparison, batches: Iterable[list[int]], expected: NDArray[Any], actual: NDArray[Any]
) -> list[str]:
    """Add logits (images, classes) batch by batch; return the reason if one cannot be compared, and no more is."""
    parts = (slice(batch[0], batch[-1] + 1) for batch in batches)
    found = (comparison.add(expected[part], actual[part]) for part in parts)
    return list(itertools.islice(filter(None, found), 1))


def _batches(images: int, sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the images' numbers in order, in batches of each size in turn; the last batch is what is left."""
    numbers = iter(range(images))
    for size in itertools.cycle(sizes):
        if not (batch := list(itertools.islice(numbers, size))):
            return
        yield batch
