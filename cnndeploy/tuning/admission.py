"""Admission: may a contender be deployed? Lossless it must be equivalent, lossy within its budget."""

from __future__ import annotations

import math

from cnndeploy.data import TEST_IMAGES
from cnndeploy.errors import ArtifactError
from cnndeploy.tuning.contenders import Contender
from cnndeploy.tuning.files import Files
from cnndeploy.tuning.job import Job
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.budget_report import BudgetReport
from cnndeploy.verification.report import EquivalenceReport
from cnndeploy.verification.verify import verify

Report = EquivalenceReport | BudgetReport

# Where the time does not suffice for all test images, a lossless file is verified on no fewer than these.
_FEWEST_IMAGES = 256
# Verification runs the checkpoint in float64 on some images too, and starts two processes.
_ALLOWANCE = 1.5


def examine(
    job: Job, files: Files, contender: Contender, image_s: float, eager_image_s: float
) -> Report | str:
    """What verification finds of a contender, or why it came to no verdict.

    Args:
        job: What was asked for.
        files: Where the labels are that a lossy contender is held against.
        contender: What is to be deployed.
        image_s: Seconds that it takes for an image.
        eager_image_s: And that eager PyTorch does.
    """
    try:
        if contender.lossy:
            return _budget(job, files, contender, image_s)
        return _equivalence(job, files, contender, image_s, eager_image_s)
    except ArtifactError as error:  # its process died, say; another contender may do
        return f"it could not be verified: {error}"


def _equivalence(
    job: Job, files: Files, contender: Contender, image_s: float, eager_image_s: float
) -> EquivalenceReport:
    settings = contender.settings
    if files.labels_s is not None:  # in batches it is faster than alone
        eager_image_s = min(eager_image_s, files.labels_s / TEST_IMAGES)
    seconds = max(
        1e-6, _ALLOWANCE * (image_s + eager_image_s)
    )  # 0 where the time was over before it was timed
    affordable = int(max(0.0, job.left_s) / seconds)
    return verify(
        contender.artifact,
        job.checkpoint,
        runtime=settings.runtime,
        device=settings.device,
        threads=int(settings.threads),
        options=settings.options,
        images=None if affordable >= TEST_IMAGES else max(_FEWEST_IMAGES, affordable),
        data_dir=job.data_dir,
        on_batch=lambda done, total: job.report(done, total, f"Verifying {named(contender)}"),
    )


def _budget(job: Job, files: Files, contender: Contender, image_s: float) -> BudgetReport | str:
    settings, known = contender.settings, files.int8
    if known is not None and known.artifact.sha256 == contender.artifact.sha256:
        run = (known.runtime, known.device, known.threads, dict(known.options))
        if run == (settings.runtime, settings.device, settings.threads, settings.options.changed):
            return known
    if image_s * TEST_IMAGES > job.left_s:
        minutes = math.ceil(job.max_minutes + image_s * TEST_IMAGES / 60)
        return f"no time is left to see what it loses on the test images; --max-minutes {minutes}"
    return verify_budget(
        contender.artifact,
        job.checkpoint,
        budget=job.budget,
        runtime=settings.runtime,
        device=settings.device,
        threads=int(settings.threads),
        options=settings.options,
        data_dir=job.data_dir,
        reference_labels=files.labels,
        on_batch=lambda done, total: job.report(done, total, f"What {named(contender)} loses"),
    )


def passes(found: Report | str) -> bool:
    """Whether a contender of which this was found may be deployed."""
    if isinstance(found, BudgetReport):
        return found.within_budget
    return not isinstance(found, str) and found.equivalent


def named(contender: Contender) -> str:
    """For a message."""
    settings = contender.settings
    options = "".join(f", {name} {value}" for name, value in settings.options.changed.items())
    return f"{contender.variant} on {settings.runtime}, {settings.threads} threads{options}"
