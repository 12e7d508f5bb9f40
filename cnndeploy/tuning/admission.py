"""Admission: may a contender be deployed? Lossless it must be equivalent, lossy within its budget."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from cnndeploy.data import TEST_IMAGES
from cnndeploy.equivalence import verify
from cnndeploy.equivalence.budget import verify_budget
from cnndeploy.equivalence.budget_report import BudgetReport
from cnndeploy.equivalence.report import EquivalenceReport
from cnndeploy.tuning.contenders import Contender
from cnndeploy.tuning.files import Files
from cnndeploy.tuning.job import Job

Report = EquivalenceReport | BudgetReport

# Where the time does not suffice for all test images, a lossless file is verified on no fewer than these.
_FEWEST_IMAGES = 256
# Verification runs the checkpoint in float64 on some images too, and starts two processes.
_ALLOWANCE = 1.5


def examine(
    job: Job, files: Files, contender: Contender, image_s: float, eager_image_s: float
) -> Report | str:
    """What verification finds of a contender, or why there is no time for it.

    Args:
        job: What was asked for.
        files: Where the labels are that a lossy contender is held against.
        contender: What is to be deployed.
        image_s: Seconds that it takes for an image.
        eager_image_s: And that eager PyTorch does.
    """
    artifact, settings = contender.artifact, contender.settings
    if not contender.lossy:
        if files.labels_s is not None:  # in batches it is faster than alone
            eager_image_s = min(eager_image_s, files.labels_s / TEST_IMAGES)
        affordable = int(job.left_s / (_ALLOWANCE * (image_s + eager_image_s)))
        images = None if affordable >= TEST_IMAGES else max(_FEWEST_IMAGES, affordable)
        return verify(
            artifact,
            job.checkpoint,
            runtime=settings.runtime,
            device=settings.device,
            threads=int(settings.threads),
            options=settings.options,
            images=images,
            data_dir=job.data_dir,
            on_batch=lambda done, total: job.on_progress(f"Verifying {named(contender)}", done, total),
        )
    known = files.int8
    if known is not None and (known.artifact.sha256, known.runtime) == (artifact.sha256, settings.runtime):
        return known
    if image_s * TEST_IMAGES > job.left_s:
        minutes = math.ceil(job.max_minutes + image_s * TEST_IMAGES / 60)
        return f"no time is left to see what it loses on the test images; --max-minutes {minutes}"
    return verify_budget(
        artifact,
        job.checkpoint,
        budget=job.budget,
        runtime=settings.runtime,
        device=settings.device,
        threads=int(settings.threads),
        options=settings.options,
        data_dir=job.data_dir,
        reference_labels=files.labels,
        on_batch=lambda done, total: job.on_progress(f"What {named(contender)} loses", done, total),
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


def placed_at(report: Report, path: Path) -> Report:
    """The same report, of the same bytes where they will lie."""
    return replace(report, artifact=replace(report.artifact, path=str(path)))
