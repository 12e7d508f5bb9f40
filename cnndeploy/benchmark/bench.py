"""Benchmarks: how fast artifacts run, side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.candidate import RAW, BatchOf, Candidate, Settings, cold_start
from cnndeploy.benchmark.conditions import Watch, doubts
from cnndeploy.benchmark.engine import Measurement, measure
from cnndeploy.benchmark.intervals import ratio_interval, rounds_needed
from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result, compared, summarise
from cnndeploy.deployment import is_deployment, open_deployment
from cnndeploy.errors import BenchmarkError, CnndeployError
from cnndeploy.formats import FORMATS
from cnndeploy.machine import environment, usable_cpus
from cnndeploy.run import Threads
from cnndeploy.runtimes import RUNTIMES

Stop = Callable[[], bool]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """When measuring ends.

    ``precision``: rounds end when the interval of every ratio is narrower than this share of the ratio;
    ``budget_s``: or when so many seconds for each candidate and batch size are used; ``timeout_s``: a candidate that
    takes longer for one answer is ended; ``cold_starts``: fresh processes for each candidate; ``seed``: of the order.
    """

    precision: float
    budget_s: float
    timeout_s: float
    cold_starts: int
    seed: int

    def __post_init__(self) -> None:
        durations = (self.precision, self.budget_s, self.timeout_s)
        if not all(0 < value < math.inf for value in durations) or self.cold_starts < 0:
            raise BenchmarkError(
                f"precision, budget and timeout are above 0, cold starts at least 0, but got {self}"
            )


def bench(
    targets: Sequence[str | os.PathLike[str]],
    *,
    runtimes: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[Threads] = (),
    device: str = "cpu",
    end_to_end: bool = False,
    precision: float = 0.02,
    budget_s: float = 20.0,
    cold_starts: int = 3,
    timeout_s: float = 600.0,
    seed: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Progress | None = None,
) -> BenchmarkReport:
    """Time artifacts against each other; ratios refer to the first that runs.

    Each runs in a process of its own. They take turns, in random order, and a ratio is taken within every turn, so
    that a machine that slows down slows all of them. A candidate that fails is reported in its row, and the others
    go on. docs/BENCHMARKS.md has the method.

    Args:
        targets: Checkpoints, exported files, and folders that ``cnndeploy tune`` wrote, which run as their plan says
            and come last.
        runtimes: What runs them: each file on each of these that opens its format; ``raw-onnxruntime`` and
            ``raw-openvino`` are as plain scripts use them, without our own layer. Each format's default where none are
            given.
        batch_sizes: Images in one call; measured from the smallest up.
        threads: CPU threads, a candidate for each number, or ``auto``; all that the process may use by default.
        device: ``cpu``, ``cuda`` or ``cuda:N``, the same for all.
        end_to_end: Time the whole way from raw uint8 images to labels, not the model alone.
        precision: Rounds end when all intervals of ratios are narrower than this share of the ratio.
        budget_s: Or when so many seconds for each candidate and batch size are used; but not before there are as
            many rounds as a verdict takes, which is six for two candidates.
        cold_starts: Fresh processes to start for each candidate, one after the other; 0 for none.
        timeout_s: A candidate that takes longer for one answer is ended.
        seed: Of the order in each round.
        should_stop: Asked after every turn; the report then has what was measured until then.
        on_progress: Called with what is measured, what is done, and of how much.

    Raises:
        ArtifactError, CheckpointError: A file is not there or damaged.
        BenchmarkError: No targets, or what is asked for does not go together.
        CnndeployError: No candidate could be opened; the first one's error.

    >>> report = cnndeploy.bench(["lenet.onnx"], batch_sizes=[1, 8], budget_s=0.1, cold_starts=0)
    >>> [result.batch_size for result in report.results]
    [1, 8]
    """
    limits = Limits(precision, budget_s, timeout_s, cold_starts, seed)
    asked = _asked(targets, runtimes, Settings("", device, 1, end_to_end), threads)
    if any(size < 1 for size in batch_sizes) or not batch_sizes:
        raise BenchmarkError(f"batch sizes are at least 1, got {list(batch_sizes)}")
    if any(count != "auto" and count < 1 for count in threads):
        raise BenchmarkError(f"threads are at least 1, or auto, got {list(threads)}")
    return bench_candidates(asked, sorted(set(batch_sizes)), limits, should_stop, on_progress)


def bench_candidates(
    asked: Sequence[tuple[Artifact, Settings]],
    sizes: Sequence[int],
    limits: Limits,
    should_stop: Stop = lambda: False,
    on_progress: Progress | None = None,
) -> BenchmarkReport:
    """As :func:`bench`, of any files each with settings of its own, at ``sizes`` from the smallest up."""
    comparisons = max(1, (len(asked) - 1) * len(sizes))
    min_rounds = rounds_needed(len(asked) * len(sizes))  # for a baseline judges every row
    rows: list[Result] = []
    with contextlib.ExitStack() as stack:

        def started(artifact: Artifact, settings: Settings) -> Candidate:
            return stack.enter_context(
                Candidate(artifact, settings, timeout_s=limits.timeout_s, should_stop=should_stop)
            )

        candidates = [started(*each) for each in asked]  # all start at once; then wait for each
        errors = [error for candidate in candidates if (error := _wait_until_open(candidate)) is not None]
        if len(errors) == len(candidates):
            raise errors[0]
        watch = Watch()  # all candidates wait now, so whatever works is somebody else
        for batch_size in sizes:
            found = _at(batch_size, candidates, limits, comparisons, min_rounds, should_stop, on_progress)
            rows += compared(found, comparisons)
            for at, candidate in enumerate(candidates):
                if candidate.failure and batch_size != sizes[-1] and not should_stop():
                    candidates[at] = started(*asked[at])  # what failed at one batch size may run at the next
                    _wait_until_open(candidates[at])
        conditions = watch.facts()
    starts, failures = _cold_starts(asked, sizes[0], limits, should_stop, on_progress)
    rows = [replace(row, cold_start=starts[at % len(starts)]) for at, row in enumerate(rows)]
    report = BenchmarkReport(
        tuple(rows), {**environment(), **conditions}, settings=asdict(limits), interrupted=should_stop()
    )
    return replace(report, warnings=(*failures, *doubts(report)))


def _asked(
    targets: Sequence[str | os.PathLike[str]],
    runtimes: Sequence[str],
    settings: Settings,
    threads: Sequence[Threads],
) -> list[tuple[Artifact, Settings]]:
    """Every file on every runtime that opens it, with every number of threads."""
    if not targets or isinstance(targets, str) or isinstance(runtimes, str):
        raise BenchmarkError("give at least one model file, and lists of files and runtimes")
    if (raw := RAW.keys() & runtimes) and (
        settings.device != "cpu" or settings.end_to_end or "auto" in threads
    ):
        raise BenchmarkError(
            f"{', '.join(sorted(raw))} runs the model alone, on the CPU, with a number of threads"
        )
    planned = [(target, *open_deployment(target)) for target in targets if is_deployment(target)]
    opened = [Artifact.open(target) for target in targets if not is_deployment(target)]
    found = {artifact.format for artifact in opened}
    for runtime in runtimes:
        if opened and not found.intersection(_formats(runtime)):
            raise BenchmarkError(
                f"{runtime} opens {', '.join(_formats(runtime))}; none of the files is of that format"
            )
    asked = []
    for count, artifact in product(dict.fromkeys(threads or [usable_cpus()]), opened):
        fitting = [name for name in dict.fromkeys(runtimes) if artifact.format in _formats(name)]
        if runtimes and not fitting:
            raise BenchmarkError(
                f"{artifact.path} is {artifact.format}, which none of {list(runtimes)} opens"
            )
        for runtime in fitting or [FORMATS.get(artifact.format).default_runtime]:
            asked.append((artifact, replace(settings, runtime=runtime, threads=count)))
    for folder, artifact, plan in planned:  # as it says, whatever the others are run on
        of_plan = replace(
            settings,
            runtime=plan.runtime,
            device=plan.device,
            threads=plan.threads,
            options=plan.options,
            deployment=os.fspath(folder),
        )
        asked.append((artifact, of_plan))
    return asked


def _formats(runtime: str) -> tuple[str, ...]:
    return ("onnx",) if runtime in RAW else RUNTIMES.get(runtime).formats


def _wait_until_open(candidate: Candidate) -> CnndeployError | None:
    """The error that kept it from opening its file."""
    try:
        candidate.wait_until_open()
    except CnndeployError as error:
        candidate.failure = str(error)
        return error
    return None


def _at(
    batch_size: int,
    candidates: Sequence[Candidate],
    limits: Limits,
    comparisons: int,
    min_rounds: int,
    should_stop: Stop,
    on_progress: Progress | None,
) -> list[Result]:
    """Measure the candidates at one batch size, those that still run."""
    running = [candidate for candidate in candidates if not candidate.failure]
    blocks = [BatchOf(candidate, batch_size) for candidate in running]
    measured = measure(
        blocks,
        budget_s=limits.budget_s,
        min_rounds=min_rounds,
        is_enough=lambda so_far: _is_precise(so_far, limits.precision, comparisons),
        should_stop=should_stop,
        seed=limits.seed,
        on_round=lambda done, used: (
            on_progress(f"Timing batch {batch_size}, round {done}", int(1000 * used), 1000)
            if on_progress is not None
            else None
        ),
    )
    of_candidate = {
        id(each): (block, found) for each, block, found in zip(running, blocks, measured, strict=True)
    }
    rows = []
    for candidate in candidates:
        row = candidate.row(batch_size)
        if id(candidate) in of_candidate:
            block, found = of_candidate[id(candidate)]
            candidate.failure = found.failure  # its process has ended with it
            row = summarise(replace(row, peak_memory_bytes=block.peak_memory_bytes), found)
        rows.append(row)
    return rows


def _is_precise(measured: Sequence[Measurement], precision: float, comparisons: int) -> bool:
    """Whether all ratios are known well enough; where there is but one candidate, its time."""
    medians = [each.medians for each in measured if not each.failure]
    if not medians:
        return True
    first, *others = medians
    series = [[a / b for a, b in zip(first, other, strict=True)] for other in others] or [first]
    for values in series:
        low, high = ratio_interval(values, comparisons)
        if high - low > precision * statistics.median(values):
            return False
    return True


def _cold_starts(
    asked: Sequence[tuple[Artifact, Settings]],
    batch_size: int,
    limits: Limits,
    should_stop: Stop,
    on_progress: Progress | None,
) -> tuple[list[ColdStart | None], list[str]]:
    """The median of some cold starts of each candidate, in turns; and what kept one from starting."""
    found: list[list[ColdStart]] = [[] for _ in asked]
    failures: dict[int, str] = {}
    total = limits.cold_starts * len(asked)
    for done, (_, at) in enumerate(product(range(limits.cold_starts), range(len(asked)))):
        artifact, settings = asked[at]
        if should_stop():
            break
        if on_progress is not None:
            on_progress("Cold starts", done, total)
        if at in failures:
            continue
        try:
            start = cold_start(artifact, settings, batch_size, limits.timeout_s, should_stop)
            found[at].append(start)
        except CnndeployError as error:
            failures[at] = f"{artifact.path.name} on {settings.runtime} did not start afresh: {error}"
    return [ColdStart.median(starts) if starts else None for starts in found], list(failures.values())
