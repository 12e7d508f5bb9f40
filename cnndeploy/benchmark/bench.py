"""Benchmarks: how fast candidates run, side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.conditions import Watch, doubts
from cnndeploy.benchmark.engine import Measurement, measure
from cnndeploy.benchmark.intervals import ratio_interval, rounds_needed
from cnndeploy.benchmark.raw import RAW, RAW_ONNXRUNTIME, RAW_OPENVINO
from cnndeploy.benchmark.report import BenchmarkReport, Result, compared, summarise, unjudged
from cnndeploy.benchmark.timer import BatchOf, Timer, cold_starts
from cnndeploy.datasets import Data
from cnndeploy.deployment import ArtifactLike, Candidate, resolve
from cnndeploy.errors import BenchmarkError
from cnndeploy.machine import environment
from cnndeploy.progress import Progress, ShouldStop, never, silent
from cnndeploy.run import Precision, Run, Threads
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.serial import jsonable


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a benchmark, and the seed of its order; :func:`bench` says what each means."""

    until: float
    seconds: float
    timeout_s: float
    cold_starts: int
    seed: int

    def __post_init__(self) -> None:
        values = (self.until, self.seconds, self.timeout_s)
        if not all(0 < value < math.inf for value in values) or self.cold_starts < 0:
            limits = "until, seconds and timeout are above 0, cold starts at least 0"
            raise BenchmarkError(f"{limits}, not {self}")


def bench(
    sources: Sequence[ArtifactLike],
    *,
    runtimes: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[Threads] = (),
    device: str = "",
    precisions: Sequence[Precision] = (),
    cuda_graphs: bool = False,
    end_to_end: bool = False,
    data: Data | None = None,
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
        runtimes: What runs them: each file on each of these that opens its format. By default each format's own.
            ``raw-onnxruntime`` and ``raw-openvino`` run a file as a plain script does. On CUDA ``raw-onnxruntime``
            computes in TF32, its default, and ``raw-openvino`` does not run.
        batch_sizes: Images in one call; measured from the smallest up.
        threads: CPU threads, a candidate for each number, or ``auto``; by default all that the process may use.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``, the same for all.
        precisions: What float32 files are computed in, a candidate for each that its runtime can: ``float32``, ``tf32``
            on CUDA, ``bfloat16`` by OpenVINO. By default as a folder's plan says, else float32.
        cuda_graphs: On a GPU, time each candidate with CUDA graphs too, if its runtime has them.
        end_to_end: Time the whole way from raw uint8 images to labels, not the model alone.
        data: With ``end_to_end``, whose test images are classified: ``fashion-mnist`` or a folder of images; by default
            what the file was made on, if it says so, else random images.
        until: Stop when the intervals of all ratios are narrower than this share of the ratio.
        seconds: Stop, at the latest, after so many seconds for each candidate and batch size; but not before there are
            as many rounds as a verdict takes, which is seven for two candidates.
        cold_starts: Fresh processes to start for each candidate, one after the other; 0 for none.
        timeout_s: A candidate that takes longer for one answer is ended.
        seed: Draws the order in each round.
        should_stop: Asked after every turn; once it returns True, the report has what was measured until then.
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
    candidates = candidates_of(sources, runtimes, threads, device, end_to_end, precisions)
    if cuda_graphs:
        candidates = _with_graphs(candidates)
    if any(size < 1 for size in batch_sizes) or not batch_sizes:
        raise BenchmarkError(f"batch sizes are at least 1, got {list(batch_sizes)}")
    sizes = sorted(set(batch_sizes))
    if data is not None and not end_to_end:
        raise BenchmarkError("data is for end_to_end=True; the model alone is timed on random input")
    images = None if data is None else os.fspath(data)
    return bench_candidates(
        candidates,
        sizes,
        limits,
        end_to_end=end_to_end,
        data=images,
        should_stop=should_stop,
        progress=progress,
    )


def bench_candidates(
    candidates: Sequence[Candidate],
    sizes: Sequence[int],
    limits: Limits,
    *,
    end_to_end: bool = False,
    data: str | None = None,
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> BenchmarkReport:
    """Do what :func:`bench` does with candidates that are settled, at ``sizes`` from the smallest up."""
    comparisons = max(1, (len(candidates) - 1) * len(sizes))
    run = partial(
        measure,
        seconds=limits.seconds,
        min_rounds=rounds_needed(len(candidates) * len(sizes)),  # because a baseline judges every row
        is_enough=lambda measured: is_precise(measured, limits.until, comparisons),
        should_stop=should_stop,
        seed=limits.seed,
    )
    start = partial(
        Timer, timeout_s=limits.timeout_s, end_to_end=end_to_end, data=data, should_stop=should_stop
    )
    rows: list[Result] = []
    with contextlib.ExitStack() as stack:
        # all start at once; then wait for each
        timers = [stack.enter_context(start(candidate)) for candidate in candidates]
        errors = [error for timer in timers if (error := timer.try_to_open()) is not None]
        if len(errors) == len(timers):
            raise errors[0]
        gpus = {gpu for timer in timers if (gpu := timer.facts.get("gpu")) is not None}
        watch = Watch(gpus)  # all candidates wait now, so any work is another program's
        for batch_size in sizes:
            for index, timer in enumerate(timers):
                if timer.failure and batch_size != sizes[0] and not should_stop():
                    # what failed at one batch size may run at the next
                    timers[index] = stack.enter_context(start(timer.candidate))
                    timers[index].try_to_open()
            rows += compared(_rows(batch_size, timers, run, watch, progress), comparisons)
            if not should_stop():
                watch.listen()  # what began in between is still there, mostly
        conditions = watch.conditions()
    starts, failures = cold_starts(
        candidates, limits.cold_starts, sizes[0], start, should_stop=should_stop, progress=progress
    )
    report = BenchmarkReport(
        tuple(replace(row, cold_start=cold) for row, cold in zip(rows, cycle(starts), strict=False)),
        {**environment(), **conditions},
        settings=jsonable(limits),
        interrupted=should_stop(),
    )
    if report.was_busy:
        report = replace(report, results=tuple(map(unjudged, report.results)))
    return replace(report, warnings=(*failures, *doubts(report)))


def _rows(
    batch_size: int,
    timers: Sequence[Timer],
    run: Callable[..., list[Measurement]],
    watch: Watch,
    progress: Progress,
) -> list[Result]:
    """Measure those that still run at one batch size; return a row for each."""
    text = f"Timing batch {batch_size}, round"
    batches = {timer: BatchOf(timer, batch_size) for timer in timers if not timer.failure}
    rows = {timer: timer.row(batch_size) for timer in timers}

    def on_round(done: int, used: float) -> None:
        watch.look()
        progress(int(1000 * used), 1000, f"{text} {done}")

    measurements = run(list(batches.values()), on_round=on_round)
    for (timer, batch), measured in zip(batches.items(), measurements, strict=True):
        timer.failure = measured.failure  # its process has ended with it
        host, gpu = batch.peak_memory_bytes, timer.gpu_memory_bytes()
        row = replace(rows[timer], peak_memory_bytes=host, gpu_memory_bytes=gpu)
        rows[timer] = summarise(row, measured)
    return list(rows.values())


def is_precise(measured: Sequence[Measurement], until: float, comparisons: int) -> bool:
    """Return whether all ratios are known well enough; with a single candidate, whether its time is."""
    first, *others = [each.medians for each in measured if not each.failure] or [[]]
    series = [[a / b for a, b in zip(first, other, strict=True)] for other in others] or [first]

    def is_narrow(values: Sequence[float]) -> bool:
        low, high = ratio_interval(values, comparisons)
        return high - low <= until * statistics.median(values)

    return not first or all(map(is_narrow, series))


def candidates_of(
    sources: Sequence[ArtifactLike],
    runtimes: Sequence[str] = (),
    threads: Sequence[Threads] = (),
    device: str = "",
    end_to_end: bool = False,
    precisions: Sequence[Precision] = (),
) -> list[Candidate]:
    """Return the candidates in the order of threads, then sources, then runtimes, then precisions.

    What is left empty is as a folder's plan says; without a plan it is each format's own runtime, all usable CPUs, and
    the CPU. Errors are those of :func:`bench`.
    """
    if not sources or isinstance(sources, str | os.PathLike | Artifact) or isinstance(runtimes, str):
        raise BenchmarkError("give at least one model file, and lists of files and runtimes")
    if any(count != "auto" and count < 1 for count in threads):
        raise BenchmarkError(f"threads are at least 1, or auto, got {list(threads)}")
    resolved = [resolve(source, Run(device=device)) for source in sources]
    formats = {candidate.artifact.format for candidate in resolved}
    for runtime in runtimes:
        if formats.isdisjoint(known := _formats(runtime)):
            raise BenchmarkError(f"{runtime} opens {', '.join(known)}; none of the files is of that format")
    candidates = [
        _candidate(candidate, Run(runtime, threads=count, precision=precision), end_to_end)
        for count, candidate in product(dict.fromkeys(threads) or [None], resolved)
        for runtime in _fitting(candidate.artifact, runtimes)
        for precision in _precisions(runtime or candidate.run.runtime, candidate.run.device, precisions)
    ]
    for source in resolved:
        if source.artifact not in [candidate.artifact for candidate in candidates]:
            wanted = " or ".join(precisions)
            can = "tf32" if source.run.device != "cpu" and set(runtimes) == {RAW_ONNXRUNTIME} else "float32"
            raise BenchmarkError(f"no runtime of {source.artifact.path} computes in {wanted}; add {can}")
    for precision in precisions:
        if precision not in {candidate.run.choices.precision for candidate in candidates}:
            raise BenchmarkError(f"none of the runtimes of these files computes in {precision}")
    return candidates


def _precisions(runtime: str, device: str, precisions: Sequence[Precision]) -> list[Precision | None]:
    """Return each of the precisions that a runtime can compute in; None, as planned, if none is given."""
    if runtime == RAW_ONNXRUNTIME and device != "cpu":
        # ONNX Runtime's default there, as plain scripts leave it
        return ["tf32"] if not precisions or "tf32" in precisions else []
    can = ("float32",) if runtime in RAW else ("float32", *RUNTIMES.get(runtime).options.get("precision", ()))
    return (
        [precision for precision in dict.fromkeys(precisions) if precision in can] if precisions else [None]
    )


def _with_graphs(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates, each followed by a copy with CUDA graphs if it can have them and has none."""
    can = [name for name in RUNTIMES.names() if "cuda_graph" in RUNTIMES.get(name).options]
    both = list[Candidate]()
    for candidate in candidates:
        run = candidate.run
        both.append(candidate)
        if run.device != "cpu" and run.runtime in can and not run.choices.cuda_graph:
            both.append(replace(candidate, run=replace(run, options=replace(run.choices, cuda_graph=True))))
    if not any(candidate.run.choices.cuda_graph for candidate in both):
        raise BenchmarkError(
            f"CUDA graphs are for CUDA GPUs and the runtimes {', '.join(can)}; use device='cuda' and one of these"
        )
    return both


def _formats(runtime: str) -> tuple[str, ...]:
    return ("onnx",) if runtime in RAW else RUNTIMES.get(runtime).formats


def _fitting(artifact: Artifact, runtimes: Sequence[str]) -> list[str]:
    """Return the runtimes that open a file; an empty name, for the planned or default one, if none were given."""
    fitting = [name for name in dict.fromkeys(runtimes) if artifact.format in _formats(name)]
    if runtimes and not fitting:
        raise BenchmarkError(
            f"{artifact.path} is {artifact.kind}, which none of the runtimes {', '.join(runtimes)} opens"
        )
    return fitting or [""]


def _candidate(resolved: Candidate, run: Run, end_to_end: bool) -> Candidate:
    run = run.over(resolved.run)
    run = replace(run, threads=run.threads or run.thread_count)
    if run.runtime in RAW and (end_to_end or run.threads == "auto"):
        raise BenchmarkError(f"{run.runtime} times the model alone, with a fixed number of threads")
    if run.runtime == RAW_OPENVINO and run.device != "cpu":
        raise BenchmarkError(f"{RAW_OPENVINO} runs on the CPU alone, not on {run.device}; leave it out")
    return replace(resolved, run=run)
