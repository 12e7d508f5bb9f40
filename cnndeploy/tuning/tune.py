"""Tuning: try files, runtimes and settings, and write the fastest that is verified or within its budget."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Literal

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.candidate import BatchOf, Candidate
from cnndeploy.certificate import certify
from cnndeploy.deployment import PLAN_FILE, Plan
from cnndeploy.errors import ArtifactError, BenchmarkError, CnndeployError
from cnndeploy.files import write_file
from cnndeploy.machine import environment, usable_cpus
from cnndeploy.tuning.admission import Report, examine, named, passes
from cnndeploy.tuning.contenders import Contender, contenders, reference
from cnndeploy.tuning.files import Files, make_files
from cnndeploy.tuning.folder import check_folder, replacing_folder
from cnndeploy.tuning.job import Job, Progress
from cnndeploy.tuning.race import Race
from cnndeploy.tuning.report import Row, TuneReport
from cnndeploy.verification.budget_report import BudgetReport

Objective = Literal["latency", "throughput"]
_BATCH_SIZES = {"latency": 1, "throughput": 64}
# A contender that computes for so long at its first run, as torch.compile may, is left out.
_ANSWER_S = 120.0
# A lossless contender is preferred to a lossy one that is no faster than this.
_AS_FAST = 0.98
# Lossy contenders that the test images are asked about, beside what quantisation asked; each is one chance to err.
_MOST_LOSSY = 2
_ASKED_ENOUGH = f"the test images were asked about {_MOST_LOSSY} lossy contenders already"
# What is taken where nothing could be timed.
_UNTIMED = "onnxruntime"


def tune(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    budget: float = 0.5,
    objective: Objective = "latency",
    batch_size: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    max_minutes: float = 5.0,
    calibration: int = 512,
    data_dir: str | os.PathLike[str] | None = None,
    command: str = "",
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Progress | None = None,
) -> TuneReport:
    """Find the fastest way to deploy a checkpoint on this machine, and write it as a folder.

    Tried are its plain export, the simplified one and an int8 one, on every runtime that opens them, with one thread
    and with all, with and without spinning, and in bfloat16. Each runs in a process of its own; they take turns as in
    :func:`cnndeploy.bench`, and one that is surely slower than the fastest leaves early. The fastest is deployed only
    if it is equivalent, or where it is lossy within the budget on all 10,000 test images; else the next is looked at.

    Args:
        checkpoint: What ``cnndeploy train`` wrote.
        output: The folder to write, which may hold an earlier deployment; by default the checkpoint's name with
            ``.deploy``.
        budget: Percentage points of accuracy that may be lost, held against the upper end of the 95% interval. 0 admits
            equivalent files only.
        objective: ``latency`` of a call, or ``throughput`` in images a second; it chooses the batch size.
        batch_size: Images in a call, 1 for latency and 64 for throughput by default.
        threads: The most CPU threads to use, all that the process may use by default.
        device: Where everything runs.
        max_minutes: When these are over, the best so far is verified and written. A verification that has begun is
            finished.
        calibration: Training images to calibrate int8 on.
        data_dir: Folder of the data set.
        command: To make the folder anew, for its plan.
        should_stop: Asked again and again; where it is true nothing is written.
        on_progress: Called with what is done, of how much (0 where that is unknown), and at what.

    Returns:
        The report: every row with what became of it and why.

    Raises:
        ArtifactError, CheckpointError: The checkpoint cannot be read, or the folder not written.
        BenchmarkError: Nothing could be deployed, or it was to stop.
        DataError, DeviceUnavailableError: As they say.

    >>> report = cnndeploy.tune("lenet.pt", "lenet.deploy", budget=0, max_minutes=5)
    >>> with cnndeploy.load("lenet.deploy") as model:
    ...     model.labels[0]
    'T-shirt/top'
    """
    source = Artifact.open(checkpoint)
    if source.format != "checkpoint":
        raise ArtifactError(
            f"{source.path} is {source.format}; tune a checkpoint, as cnndeploy train writes it"
        )
    size = _BATCH_SIZES[objective] if batch_size is None else batch_size
    threads = usable_cpus() if threads is None else threads
    numbers = {
        "batch size": size,
        "threads": threads,
        "calibration images": calibration,
        "minutes": max_minutes,
    }
    if wrong := [name for name, value in numbers.items() if not 0 < value < math.inf]:
        raise BenchmarkError(f"{', '.join(wrong)} must be above 0")
    if not 0 <= budget <= 100:
        raise BenchmarkError(f"the budget is 0 to 100 percentage points, not {budget:g}")
    folder = Path(os.path.realpath(output if output is not None else source.path.with_suffix(".deploy")))
    check_folder(folder, source.path)
    job = Job(
        source,
        budget,
        size,
        threads,
        device,
        max_minutes,
        calibration,
        data_dir,
        should_stop,
        on_progress or _in_silence,
    )
    with tempfile.TemporaryDirectory(prefix="cnndeploy-tune-") as scratch:
        files = make_files(job, Path(scratch))
        job.end_if_stopped()
        found, missing = contenders(
            files.by_variant, threads=threads, device=device, lossy=files.labels is not None
        )
        first = reference(source, threads, device)
        everyone = [first, *(each for each in found if each != first)]
        outcome = _race(job, files, everyone)
        job.end_if_stopped()
        report = TuneReport(
            checkpoint=str(source.path),
            folder=str(folder),
            objective=objective,
            batch_size=size,
            budget_points=budget,
            rows=(*_rows(everyone, outcome, files), *files.rows, *missing),
            complete=outcome.race.decided and not files.notes,
            seconds=time.monotonic() - job.started,
            environment=environment(),
            notes=tuple(files.notes),
        )
        again = command or _command(job, report)
        _write(folder, everyone[outcome.chosen], outcome.report, report, again)
    return report


def _in_silence(done: int, total: int, text: str) -> None:
    """No progress is shown."""


def _command(job: Job, report: TuneReport) -> str:
    """To make the folder anew."""
    options = {
        "--output": report.folder,
        "--budget": f"{job.budget:g}",
        "--objective": report.objective,
        "--batch-size": str(job.batch_size),
        "--threads": str(job.threads),
        "--device": job.device,
        "--calibration": str(job.calibration),
        "--max-minutes": f"{job.max_minutes:g}",
        **({} if job.data_dir is None else {"--data-dir": os.fspath(job.data_dir)}),
    }
    return shlex.join(["cnndeploy", "tune", report.checkpoint, *chain.from_iterable(options.items())])


@dataclass(slots=True)
class _Outcome:
    """``chosen`` is the number of the contender that is deployed, ``report`` what verification found of it, and
    ``rejected`` of others.
    """

    race: Race
    chosen: int
    report: Report
    rejected: Mapping[int, Report | str] = field(default_factory=dict)


def _race(job: Job, files: Files, everyone: Sequence[Contender]) -> _Outcome:
    """Time all, and examine the fastest until one may be deployed."""
    with _opened(job, everyone) as (blocks, failures):
        if 0 in failures:
            raise BenchmarkError(f"eager PyTorch, which all are timed against, does not run: {failures[0]}")
        race = Race(
            blocks,
            should_stop=job.is_over,
            on_round=lambda rounds, running: job.report(0, 0, f"Timing {running} contenders, round {rounds}"),
        )
        race.failures |= failures
        rejected: dict[int, Report | str] = {}
        looks = 0
        while pool := [at for at in range(len(everyone)) if at not in rejected]:
            job.end_if_stopped()
            best = _best(pool, race, everyone)
            if best is None:
                break
            looks += everyone[best].lossy
            if looks > _MOST_LOSSY:
                rejected |= {at: _ASKED_ENOUGH for at in pool if everyone[at].lossy}
                continue
            seconds = [(race.median_s(at) or 0.0) / job.batch_size for at in (best, 0)]
            found = examine(job, files, everyone[best], *seconds)
            if not isinstance(found, str) and passes(found):
                return _Outcome(race, best, found, rejected)
            alike = {at for at, each in enumerate(everyone) if each.numbers == everyone[best].numbers}
            rejected |= dict.fromkeys(alike, found)
        job.end_if_stopped()
    why = dict.fromkeys([*race.failures.values(), *(_why(each) for each in rejected.values())])
    raise BenchmarkError(
        f"nothing can be deployed: {'; '.join(why) or 'no round was over in time; --max-minutes gives it more'}"
    )


@contextlib.contextmanager
def _opened(job: Job, everyone: Sequence[Contender]) -> Iterator[tuple[dict[int, BatchOf], dict[int, str]]]:
    """Every contender in a process of its own, by number, and why some could not be opened."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                Candidate(each.artifact, each.settings, timeout_s=_ANSWER_S, should_stop=job.should_stop)
            )
            for each in everyone
        ]
        failures = {}
        for at, candidate in enumerate(started):
            job.report(at, len(started), "Opening")
            try:
                candidate.wait_until_open()
            except CnndeployError as error:
                failures[at] = str(error)
        blocks = {
            at: BatchOf(candidate, job.batch_size)
            for at, candidate in enumerate(started)
            if at not in failures
        }
        yield blocks, failures


def _best(pool: Sequence[int], race: Race, everyone: Sequence[Contender]) -> int | None:
    """The fastest of those that the race leaves, or a lossless one that is as fast.

    Where the time was over before anything was timed, a lossless one that runs everywhere; None where there is none.
    """
    standing = race.run(pool)
    if not standing:
        plain = [at for at in pool if not everyone[at].lossy and at not in race.failures]
        return next((at for at in plain if everyone[at].settings.runtime == _UNTIMED), None)
    enough = _AS_FAST * race.ratio(standing[0])
    return next((at for at in standing if not everyone[at].lossy and race.ratio(at) >= enough), standing[0])


def _rows(everyone: Sequence[Contender], outcome: _Outcome, files: Files) -> list[Row]:
    """Fastest first."""
    rows = [_row(at, each, outcome, everyone, files) for at, each in enumerate(everyone)]
    return sorted(rows, key=lambda row: -(row.ratio or 0))


def _row(
    at: int, contender: Contender, outcome: _Outcome, everyone: Sequence[Contender], files: Files
) -> Row:
    race, leader = outcome.race, named(everyone[outcome.chosen])
    settings = contender.settings
    row = Row(
        contender.variant,
        settings.runtime,
        int(settings.threads),
        settings.options.changed,
        contender.lossy,
        "as fast",
        f"no faster than {leader}, as far as {race.rounds(at)} rounds tell",
    )
    row = _with_accuracy(row, contender, outcome, everyone, files)
    if (p50_s := race.median_s(at)) is not None:
        row = replace(row, ratio=race.ratio(at), ratio_interval=race.interval(at), p50_s=p50_s)
    if at == outcome.chosen:
        return replace(row, outcome="chosen", reason=_why(outcome.report))
    if at in outcome.rejected:
        return replace(row, outcome="rejected", reason=_why(outcome.rejected[at]))
    if at in race.failures:
        return replace(row, outcome="failed", reason=race.failures[at])
    if p50_s is None:
        return replace(row, outcome="not tried", reason="the time was over before its first round was")
    if at in race.slower:
        ratio, (low, high) = race.slower[at]
        return replace(
            row,
            outcome="slower",
            reason=f"{ratio:.3g} ({low:.3g} to {high:.3g}) of the leader's speed",
        )
    return row


def _with_accuracy(
    row: Row, contender: Contender, outcome: _Outcome, everyone: Sequence[Contender], files: Files
) -> Row:
    """On the test images, as far as it is known."""
    reports = {everyone[outcome.chosen].numbers: outcome.report}
    reports |= {
        everyone[at].numbers: found for at, found in outcome.rejected.items() if not isinstance(found, str)
    }
    found = reports.get(contender.numbers)
    int8 = files.int8
    if found is None and int8 is not None and contender.artifact.sha256 == int8.artifact.sha256:
        found = int8 if contender.settings.runtime == int8.runtime else None
    if isinstance(found, BudgetReport):
        return replace(row, accuracy=found.artifact_accuracy, loss_high_points=found.loss_high_points)
    if contender.lossy:
        return row
    stated = contender.artifact.require_manifest().training.get("test_accuracy")
    return replace(row, accuracy=stated if int8 is None else int8.checkpoint_accuracy)


def _why(found: Report | str) -> str:
    """What verification found, in words."""
    if isinstance(found, str):
        return found
    if not passes(found):
        return "; ".join(found.reasons)
    if isinstance(found, BudgetReport):
        return (
            f"within budget on {found.images:,} images: loses {found.loss_points:.2f} points "
            f"({found.loss_low_points:.2f} to {found.loss_high_points:.2f})"
        )
    return f"equivalent on {found.images:,} images"


def _write(folder: Path, contender: Contender, found: Report, report: TuneReport, command: str) -> None:
    """The file, its certificate, the plan, and what was tried."""
    settings, row = contender.settings, report.chosen
    figures = {
        "objective": report.objective,
        "batch_size": report.batch_size,
        "budget_points": report.budget_points,
        "times_as_fast_as_eager": row.ratio,
        "interval": row.ratio_interval,
        "p50_s": row.p50_s,
        "accuracy": row.accuracy,
        "verdict": row.reason,
        "tried": len(report.rows),
        "complete": report.complete,
    }
    plan = Plan(
        file=contender.artifact.path.name,
        sha256=contender.artifact.sha256,
        runtime=settings.runtime,
        device=settings.device,
        threads=int(settings.threads),
        options=settings.options,
        machine=report.environment,
        figures=figures,
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if found.against.sha256 != Artifact.open(report.checkpoint).sha256:
        raise ArtifactError(f"{report.checkpoint} was replaced while it was tuned; nothing was written")
    placed = replace(found, artifact=replace(found.artifact, path=str(folder / plan.file)))
    verify = shlex.join(["cnndeploy", "verify", str(folder), "--against", report.checkpoint])
    with replacing_folder(folder, Path(report.checkpoint)) as temporary:
        copy = temporary / plan.file
        shutil.copyfile(contender.artifact.path, copy)
        certify(placed, verify, beside=copy)
        write_file(temporary / PLAN_FILE, plan.to_json().encode())
        tried = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
        write_file(temporary / "tuning.json", tried.encode())
