"""Benchmarks: how fast candidates run, side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from cnndeploy.benchmark.candidates import candidates_of
from cnndeploy.benchmark.cold_start import cold_starts as start_afresh
from cnndeploy.benchmark.conditions import Watch, doubts
from cnndeploy.benchmark.engine import Measurement, measure
from cnndeploy.benchmark.intervals import ratio_interval, rounds_needed
from cnndeploy.benchmark.report import BenchmarkReport, Result, compared, summarise
from cnndeploy.benchmark.timer import BatchOf, Timer
from cnndeploy.deployment import Candidate, Source
from cnndeploy.errors import BenchmarkError
from cnndeploy.machine import environment
from cnndeploy.progress import Progress, ShouldStop, never, silent
from cnndeploy.run import Threads
from cnndeploy.serial import jsonable


@dataclass(frozen=True, slots=True)
class Limits:
    """When measuring ends.

    ``until``: rounds end when the interval of every ratio is narrower than this share of the ratio;
    ``seconds``: or when so many seconds for each candidate and batch size are used; ``timeout_s``: a candidate that
    takes longer for one answer is ended; ``cold_starts``: fresh processes for each candidate; ``seed``: of the order.
    """

    until: float
    seconds: float
    timeout_s: float
    cold_starts: int
    seed: int

    def __post_init__(self) -> None:
        values = (self.until, self.seconds, self.timeout_s)
        if not all(0 < value < math.inf for value in values) or self.cold_starts < 0:
            raise BenchmarkError(
                f"until, seconds and timeout are above 0, cold starts at least 0, but got {self}"
            )


def bench(
    sources: Sequence[Source],
    *,
    runtimes: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[Threads] = (),
    device: str = "",
    end_to_end: bool = False,
    until: float = 0.02,
    seconds: float = 20.0,
    cold_starts: int = 3,
    timeout_s: float = 600.0,
    seed: int = 0,
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> BenchmarkReport:
    """Time artifacts against each other; ratios refer to the first that runs.

    Each runs in a process of its own. They take turns, in random order, and a ratio is taken within every turn, so
    that a machine that slows down slows all of them. A candidate that fails is reported in its row, and the others
    go on. docs/BENCHMARKS.md has the method.

    Args:
        sources: Checkpoints, exported files, opened artifacts, and folders that ``cnndeploy tune`` wrote. A folder
            runs as its plan says, unless ``runtimes``, ``threads`` or ``device`` say something else.
        runtimes: What runs them: each file on each of these that opens its format; ``raw-onnxruntime`` and
            ``raw-openvino`` are as plain scripts use them, without our own layer. By default each format's own.
        batch_sizes: Images in one call; measured from the smallest up.
        threads: CPU threads, a candidate for each number, or ``auto``; by default all that the process may use.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``, the same for all.
        end_to_end: Time the whole way from raw uint8 images to labels, not the model alone.
        until: Rounds end when all intervals of ratios are narrower than this share of the ratio.
        seconds: Or when so many seconds for each candidate and batch size are used; but not before there are as
            many rounds as a verdict takes, which is six for two candidates.
        cold_starts: Fresh processes to start for each candidate, one after the other; 0 for none.
        timeout_s: A candidate that takes longer for one answer is ended.
        seed: Of the order in each round.
        should_stop: Asked after every turn; the report then has what was measured until then.
        progress: Called with what is done, of how much, and what is measured.

    Raises:
        ArtifactError, CheckpointError: A file is missing or damaged.
        BenchmarkError: No sources, or what is given does not go together.
        CnndeployError: No candidate could be opened; the first one's error.

    >>> report = cnndeploy.bench(["lenet.onnx"], batch_sizes=[1, 8], seconds=0.1, cold_starts=0)
    >>> [result.batch_size for result in report.results]
    [1, 8]
    """
    limits = Limits(until, seconds, timeout_s, cold_starts, seed)
    candidates = candidates_of(
        sources, runtimes=runtimes, threads=threads, device=device, end_to_end=end_to_end
    )
    if any(size < 1 for size in batch_sizes) or not batch_sizes:
        raise BenchmarkError(f"batch sizes are at least 1, got {list(batch_sizes)}")
    return bench_candidates(
        candidates,
        sorted(set(batch_sizes)),
        limits,
        end_to_end=end_to_end,
        should_stop=should_stop,
        progress=progress,
    )


def bench_candidates(
    candidates: Sequence[Candidate],
    sizes: Sequence[int],
    limits: Limits,
    *,
    end_to_end: bool = False,
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> BenchmarkReport:
    """Do what :func:`bench` does with candidates that are settled, at ``sizes`` from the smallest up."""
    comparisons = max(1, (len(candidates) - 1) * len(sizes))
    min_rounds = rounds_needed(len(candidates) * len(sizes))  # because a baseline judges every row
    turns = _Turns(limits, comparisons, min_rounds, should_stop, progress)
    rows: list[Result] = []
    with contextlib.ExitStack() as stack:

        def start(candidate: Candidate) -> Timer:
            timeout_s = limits.timeout_s
            timer = Timer(candidate, timeout_s=timeout_s, end_to_end=end_to_end, should_stop=should_stop)
            return stack.enter_context(timer)

        timers = [start(candidate) for candidate in candidates]  # all start at once; then wait for each
        errors = [error for timer in timers if (error := timer.try_to_open()) is not None]
        if len(errors) == len(timers):
            raise errors[0]
        watch = Watch()  # all candidates wait now, so whatever works is somebody else
        for batch_size in sizes:
            for index, timer in enumerate(timers):
                if timer.failure and batch_size != sizes[0] and not should_stop():
                    timers[index] = start(
                        timer.candidate
                    )  # what failed at one batch size may run at the next
                    timers[index].try_to_open()
            rows += compared(turns.at(batch_size, timers), comparisons)
        conditions = watch.facts()
    starts, failures = start_afresh(
        candidates,
        limits.cold_starts,
        sizes[0],
        limits.timeout_s,
        end_to_end=end_to_end,
        should_stop=should_stop,
        progress=progress,
    )
    report = BenchmarkReport(
        tuple(replace(row, cold_start=start) for row, start in zip(rows, cycle(starts), strict=False)),
        {**environment(), **conditions},
        settings=jsonable(limits),
        interrupted=should_stop(),
    )
    return replace(report, warnings=(*failures, *doubts(report)))


@dataclass(frozen=True, slots=True)
class _Turns:
    """How candidates take turns, and when they have had enough of them."""

    limits: Limits
    comparisons: int
    min_rounds: int
    should_stop: ShouldStop
    progress: Progress

    def at(self, batch_size: int, timers: Sequence[Timer]) -> list[Result]:
        """Measure those that still run at one batch size; return a row for each."""
        batches = {timer: BatchOf(timer, batch_size) for timer in timers if not timer.failure}
        measurements = measure(
            list(batches.values()),
            seconds=self.limits.seconds,
            min_rounds=self.min_rounds,
            is_enough=lambda so_far: is_precise(so_far, self.limits.until, self.comparisons),
            should_stop=self.should_stop,
            seed=self.limits.seed,
            on_round=lambda done, used: self.progress(
                int(1000 * used), 1000, f"Timing batch {batch_size}, round {done}"
            ),
        )
        measured = dict(zip(batches, measurements, strict=True))
        rows = []
        for timer in timers:
            row = timer.row(batch_size)
            if timer in measured:
                timer.failure = measured[timer].failure  # its process has ended with it
                row = replace(row, peak_memory_bytes=batches[timer].peak_memory_bytes)
                row = summarise(row, measured[timer])
            rows.append(row)
        return rows


def is_precise(measured: Sequence[Measurement], until: float, comparisons: int) -> bool:
    """Return whether all ratios are known well enough; with a single candidate, whether its time is."""
    medians = [measurement.medians for measurement in measured if not measurement.failure]
    if not medians:
        return True
    first, *others = medians
    series = [[a / b for a, b in zip(first, other, strict=True)] for other in others] or [first]
    for values in series:
        low, high = ratio_interval(values, comparisons)
        if high - low > until * statistics.median(values):
            return False
    return True
