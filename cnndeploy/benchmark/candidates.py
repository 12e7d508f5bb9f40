"""Which candidates a benchmark times: every source on every runtime that opens it, with every number of threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.raw import RAW
from cnndeploy.deployment import Candidate, Source, resolve
from cnndeploy.errors import BenchmarkError
from cnndeploy.run import Run, Threads
from cnndeploy.runtimes import RUNTIMES


def candidates_of(
    sources: Sequence[Source],
    *,
    runtimes: Sequence[str] = (),
    threads: Sequence[Threads] = (),
    device: str = "",
    end_to_end: bool = False,
) -> list[Candidate]:
    """Return the candidates in the order of threads, then sources, then runtimes.

    What is left empty is as a folder's plan says; without a plan it is each format's own runtime, all usable CPUs, and
    the CPU.

    Raises:
        ArtifactError, CheckpointError: A source is missing or damaged.
        BenchmarkError: No sources, or what is given does not go together.
    """
    if not sources or isinstance(sources, str | os.PathLike | Artifact) or isinstance(runtimes, str):
        raise BenchmarkError("give at least one model file, and lists of files and runtimes")
    if any(count != "auto" and count < 1 for count in threads):
        raise BenchmarkError(f"threads are at least 1, or auto, got {list(threads)}")
    resolved = [resolve(source, Run(device=device)) for source in sources]
    formats = {candidate.artifact.format for candidate in resolved}
    for runtime in runtimes:
        if not formats.intersection(_formats(runtime)):
            raise BenchmarkError(
                f"{runtime} opens {', '.join(_formats(runtime))}; none of the files is of that format"
            )
    return [
        _candidate(candidate, Run(runtime, threads=count), end_to_end)
        for count, candidate in product(dict.fromkeys(threads) or [None], resolved)
        for runtime in _fitting(candidate.artifact, runtimes)
    ]


def _formats(runtime: str) -> tuple[str, ...]:
    return ("onnx",) if runtime in RAW else RUNTIMES.get(runtime).formats


def _fitting(artifact: Artifact, runtimes: Sequence[str]) -> list[str]:
    """Return the runtimes that open a file; an empty name, for the planned or default one, if none were given."""
    fitting = [name for name in dict.fromkeys(runtimes) if artifact.format in _formats(name)]
    if runtimes and not fitting:
        raise BenchmarkError(f"{artifact.path} is {artifact.format}, which none of {list(runtimes)} opens")
    return fitting or [""]


def _candidate(resolved: Candidate, run: Run, end_to_end: bool) -> Candidate:
    run = run.over(resolved.run)
    run = replace(run, threads=run.threads or run.thread_count)
    if run.runtime in RAW and (run.device != "cpu" or end_to_end or run.threads == "auto"):
        raise BenchmarkError(f"{run.runtime} runs the model alone, on the CPU, with a number of threads")
    return replace(resolved, run=run)
