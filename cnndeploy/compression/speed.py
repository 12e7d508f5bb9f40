"""How fast one file is beside another, as a compression asks it again and again."""

from __future__ import annotations

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import bench
from cnndeploy.benchmark.report import Result
from cnndeploy.errors import CnndeployError, Stopped
from cnndeploy.progress import Progress, ShouldStop
from cnndeploy.run import Run


def speed_beside(
    before: Artifact,
    artifact: Artifact,
    run: Run,
    seconds: float,
    should_stop: ShouldStop,
    progress: Progress,
) -> tuple[Result | None, tuple[str, ...]]:
    """Return a file's row in a benchmark beside another, if it has figures, and what to doubt about it.

    Each file is timed for ``seconds``. ``should_stop`` is asked, and may raise.
    """
    try:
        report = bench(
            [before, artifact],
            runtimes=[run.runtime],
            threads=(run.thread_count,),
            precisions=(run.choices.precision,),
            seconds=seconds,
            cold_starts=0,
            should_stop=should_stop,
            progress=progress,
        )
    except Stopped:
        raise
    except CnndeployError as error:
        return None, (str(error),)
    row = report.results[-1]
    return (row, report.warnings) if row.ratio is not None else (None, (row.failure,))
