"""predict_on_ray(): classify image files by Ray, on all CPUs or GPUs of this machine or of a cluster.

Tasks read and decode a few files at a time, actors with a model each classify them, and this process writes a Parquet
file as soon as all of its images have come. Ray starts a task or an actor again that was killed; an answer that comes
twice is the same, and counts once.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from cnndeploy.deployment import PlannedElsewhereWarning, resolve
from cnndeploy.errors import ClusterError, DeviceUnavailableError
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.prediction.chunks import MOST_IMAGES, Outcome
from cnndeploy.prediction.parquet import Part, Table
from cnndeploy.prediction.ray_connection import SHARE, Cluster, check_reachable, connected, pool, results
from cnndeploy.prediction.workers import Answer, Model, Reader, Worker, answer_in, group_row
from cnndeploy.progress import Progress, silent
from cnndeploy.run import Run
from cnndeploy.words import counted

PART = 64 * MOST_IMAGES
"""The images in one Parquet file."""

_MOST_BLOCKS = 2000  # of groups, each read by one task
_RETRIES = 3  # of what was killed: a file that kills whoever reads it must not be tried for ever


def predict_on_ray(
    model: str | os.PathLike[str],
    files: Sequence[str],
    output: str | os.PathLike[str],
    *,
    run: Run | None = None,
    cluster: Cluster | None = None,
    top: int = 1,
    invert: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Classify image files, and write their classes to the folder ``output``, in Parquet files of 4,096 images.

    A row has the columns ``image``, ``label``, ``probability`` (float32, 0 to 1), ``label_2`` and so on up to ``top``,
    and ``error``, which says why an image could not be read, and is null if it could.

    Args:
        model: What :func:`~cnndeploy.load` opens. On a cluster each machine must have it, and the images, at these
            paths.
        files: Names of image files; relative ones begin at the current folder.
        output: A folder that is new or empty. The files in it are written whole or not at all, each as soon as its
            images are done; they stay if an exception such as KeyboardInterrupt ends the work.
        run: How the file is run, as its plan says by default, else with one thread.
        cluster: Where Ray runs, by default on this machine.
        top: The number of classes for each image.
        invert: Replace each pixel by 255 - pixel first.
        resume: Keep the Parquet files in ``output``, which must be of the same model, options and images.
        progress: A callback for the images that are done and all of them.

    Returns:
        Why images could not be read: those of an earlier run first.

    Raises:
        ArtifactError: The model cannot be opened, or the output is not empty or cannot be written.
        ClusterError: Ray cannot be started or reached, gave up, or is in use by this process already.
        DeviceUnavailableError: There is no GPU, or ``cuda:N`` was asked for.
        MissingDependencyError: Ray is not installed.
    """
    cluster = cluster or Cluster()
    candidate = resolve(model, run)
    if candidate.run.device not in ("cpu", "cuda"):
        raise DeviceUnavailableError(f"Ray chooses the GPU by itself: use cuda, not {candidate.run.device}")
    if candidate.plan is not None and candidate.plan.elsewhere:
        warnings.warn(f"{model}: {candidate.plan.elsewhere}", PlannedElsewhereWarning, stacklevel=2)
    settled = replace(candidate.run, threads=candidate.run.threads or 1)  # of many calls at once
    manifest = candidate.artifact.require_manifest()
    path, most = candidate.artifact.path.absolute(), min(top, len(manifest.labels))
    opened = Model(path, candidate.artifact.sha256, settled, most, invert)
    table, output = Table(most, opened.facts), Path(output)
    check_reachable(cluster)
    parts = [
        Part(output / f"part-{number:05}.parquet", files[start : start + PART])
        for number, start in enumerate(range(0, len(files), PART))
    ]
    errors, left = table.begin(output, parts, resume=resume)
    done = len(files) - sum(len(part.files) for part in left)
    progress(done, len(files), "Starting Ray")
    waiting = {place: _Pieces(part) for place, part in enumerate(left)}
    with contextlib.closing(_answers(opened, left, cluster, manifest.preprocessing.channels)) as answers:
        for answer in answers:
            if (pieces := waiting.get(answer.part)) is None:  # written before
                continue
            done += pieces.add(answer)
            if pieces.is_complete:
                del waiting[answer.part]
                rows = pieces.in_order()
                table.write(pieces.part.path, rows)
                errors += [outcome.error for outcome in rows if outcome.error]
            progress(done, len(files), "Classifying")
    if waiting:
        missing = counted(sum(len(pieces.part.files) for pieces in waiting.values()), "image")
        raise ClusterError(
            f"Ray ended before all results came: files of {missing} were not written; use resume=True"
        )
    return errors


class _Pieces:
    """What has come of a part's images, by the place of the first one of each chunk."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._by_start = dict[int, Sequence[Outcome]]()

    def add(self, answer: Answer) -> int:
        """Add an answer, and return how many images it is of, 0 if it came before."""
        if answer.start in self._by_start:
            return 0
        self._by_start[answer.start] = answer.outcomes
        return len(answer.outcomes)

    @property
    def is_complete(self) -> bool:
        """Whether every image's outcome has come, and none twice."""
        end = 0
        for start, found in sorted(self._by_start.items()):
            if start != end:
                return False
            end += len(found)
        return end == len(self.part.files)

    def in_order(self) -> list[Outcome]:
        """Return the outcomes in the order of the files."""
        return [outcome for _, found in sorted(self._by_start.items()) for outcome in found]


def _answers(model: Model, parts: Sequence[Part], cluster: Cluster, channels: int) -> Generator[Answer]:
    """Yield what workers answer, as it comes; warn of what they warn of, once of each kind."""
    groups = [
        group_row(place, start, part.files[start : start + MOST_IMAGES])
        for place, part in enumerate(parts)
        for start in range(0, len(part.files), MOST_IMAGES)
    ]
    if not groups:
        return
    run, said = model.run, set[str]()
    with connected(cluster, run) as ray:
        dataset = (
            ray.data.from_items(groups, override_num_blocks=min(len(groups), _MOST_BLOCKS))
            .map_batches(Reader(channels, Path.cwd()), batch_size=1, num_cpus=SHARE, max_retries=_RETRIES)
            .map_batches(
                Worker,
                fn_constructor_args=(model,),
                batch_size=1,
                compute=pool(ray, cluster, run, len(groups)),
                num_cpus=SHARE * run.thread_count,
                num_gpus=1 if run.device == "cuda" else 0,
                max_task_retries=_RETRIES,
            )
        )
        for answer in map(answer_in, results(ray, dataset)):
            if answer.error is not None:
                raise answer.error
            for kind, text in answer.warned:
                if kind not in said:
                    said.add(kind)
                    warnings.warn(text, CnndeployWarning, stacklevel=3)
            yield answer
