"""Benchmarks: how fast artifacts run, side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.candidate import Candidate
from cnndeploy.benchmark.engine import measure
from cnndeploy.benchmark.report import BenchmarkReport, Result, summarise
from cnndeploy.errors import BenchmarkError
from cnndeploy.machine import busy_cpus, environment, usable_cpus
from cnndeploy.runtimes import default_runtime

_LISTEN_S, _BUSY = 0.5, 0.25


def bench(
    targets: Sequence[str | os.PathLike[str]],
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    device: str = "cpu",
    budget_s: float = 5.0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> BenchmarkReport:
    """Time artifacts against each other; the first is what the ratios refer to.

    Each artifact runs in a process of its own. They take turns, in random order, and a ratio is taken within
    every turn, so that a machine that slows down slows all of them.

    Args:
        targets: Checkpoints and exported files.
        batch_sizes: Images in one call.
        threads: CPU threads, all that the process may use by default.
        device: ``cpu``, ``cuda`` or ``cuda:N``, the same for all.
        budget_s: Seconds of measurement for each artifact and batch size.
        on_progress: Called with what is measured, the turns done, and the turns in all (0 until known).

    Raises:
        ArtifactError, CheckpointError: A file cannot be opened, or its process ended before it was measured.
        DeviceUnavailableError: ``device`` does not work here.
        BenchmarkError: No targets, or a batch size that cannot be fed.
    """
    if not targets:
        raise BenchmarkError("nothing to measure; give at least one model file")
    if any(size < 1 for size in batch_sizes):
        raise BenchmarkError(f"batch sizes are at least 1, got {list(batch_sizes)}")
    threads = usable_cpus() if threads is None else threads
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        candidates = []
        for target in targets:
            artifact = Artifact.open(target)
            runtime = default_runtime(artifact.format)
            candidate = Candidate(artifact, runtime=runtime, device=device, threads=threads)
            candidates.append(stack.enter_context(candidate))
        for candidate in candidates:  # all start at once; then wait for each
            candidate.wait_until_open()
        others = busy_cpus(_LISTEN_S)  # all candidates wait now, so whatever works is somebody else
        for batch_size in batch_sizes:
            blocks = [candidate.at(batch_size) for candidate in candidates]
            label = f"batch {batch_size}"
            rounds = measure(blocks, budget_s=budget_s, on_round=_labelled(on_progress, label))
            results += summarise(candidates, rounds, batch_size)
    return BenchmarkReport(tuple(results), {**environment(), "busy_cpus": others}, _warnings(others))


def _warnings(others: float | None) -> tuple[str, ...]:
    if others is None or others < _BUSY:
        return ()
    return (
        f"Other programs kept {others:.1f} CPUs busy just before. Programs with several threads suffer from that "
        "out of all proportion, so these figures may be far off; repeat them on an idle machine.",
    )


def _labelled(
    on_progress: Callable[[str, int, int], None] | None, label: str
) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(label, done, total)
