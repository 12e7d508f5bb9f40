"""predict_on_ray(): classify image files by Ray, on all CPUs or GPUs of this machine or of a cluster.

Tasks read and decode a few files at a time, actors with a model each classify them, and this process writes a Parquet
file as soon as all of its images have come. Ray starts a task or an actor again that was killed; a result that comes
twice is the same, and counts once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnndeploy.classifier import load
from cnndeploy.deployment import resolve
from cnndeploy.errors import (
    ArtifactError,
    ClusterError,
    CnndeployError,
    DeviceUnavailableError,
    missing_dependency,
)
from cnndeploy.files import make_folder, replacing
from cnndeploy.machine import usable_cpus
from cnndeploy.own_warnings import CnndeployWarning, showing_own
from cnndeploy.prediction.chunks import MOST_IMAGES, Outcome, chunks, outcomes
from cnndeploy.progress import Progress, silent
from cnndeploy.run import Precision, Run
from cnndeploy.words import printable

if TYPE_CHECKING:
    from cnndeploy.classifier import Classifier

PART = 64 * MOST_IMAGES
"""The images in one Parquet file."""

_KEY = b"cnndeploy"  # of what made a file, in its schema's metadata
_MOST_BLOCKS = 2000  # of groups, each read by one task
_RETRIES = 3  # of what was killed: a file that kills whoever reads it must not be tried for ever
# An actor waits while tasks read, and they wait while it classifies, so they share CPUs.
_SHARE = 0.5
_PATIENCE_S = 10  # for a cluster to answer
# Ray would report its use to its makers, and prints bars and tables of its own.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of Ray's at ``address``, or if that is None this machine.

    ``workers`` is how many processes have a copy of the model, by default one for each CPU, or GPU if it runs there.
    """

    address: str | None = None
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """What each worker opens; its bytes must be those that this process saw."""

    path: Path
    sha256: str
    run: Run
    precision: Precision | None
    top: int
    invert: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What decides about the results, JSON-ready."""
        run = {name: value for name, value in self.run.to_dict().items() if name != "threads"}
        return {"sha256": self.sha256, "run": run, "top": self.top, "invert": self.invert}


@dataclass(frozen=True, slots=True)
class _Part:
    """A Parquet file and the images in it."""

    path: Path
    files: Sequence[str]


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
        run: How the file is run, as its plan says by default, with one thread.
        cluster: Where Ray runs, by default on this machine.
        top: The number of classes for each image.
        invert: Replace each pixel by 255 - pixel first.
        resume: Keep the Parquet files in ``output``, which must be of the same model, options and images.
        progress: A callback for the images that are done and all of them.

    Returns:
        Why images could not be read, those in files of an earlier run among them.

    Raises:
        ArtifactError: The model cannot be opened, or the output is not empty or cannot be written.
        ClusterError: Ray cannot be started or reached, or gave up.
        MissingDependencyError: Ray is not installed.
    """
    cluster = cluster or Cluster()
    candidate = resolve(model, run)
    if candidate.run.device not in ("cpu", "cuda"):
        raise DeviceUnavailableError(f"Ray chooses the GPU by itself: use cuda, not {candidate.run.device}")
    settled = replace(candidate.run, threads=candidate.run.threads or 1)  # of many calls at once
    manifest = candidate.artifact.require_manifest()
    path, most = Path(model).absolute(), min(top, len(manifest.labels))
    precision = None if run is None or run.options is None else run.options.precision
    opened = _Model(path, candidate.artifact.sha256, settled, precision, most, invert)
    table = _Table(opened)
    output = Path(output)
    parts = [
        _Part(output / f"part-{number:05}.parquet", files[start : start + PART])
        for number, start in enumerate(range(0, len(files), PART))
    ]
    errors, left = _begun(output, parts, table, resume=resume)
    done = len(files) - sum(len(part.files) for part in left)
    progress(done, len(files), "Starting Ray")
    waiting = {place: _Pieces(part) for place, part in enumerate(left)}
    results = _results(opened, left, cluster, manifest.preprocessing.channels)
    with contextlib.closing(results):
        for place, start, found in results:
            if place not in waiting:  # written before
                continue
            pieces = waiting[place]
            done += pieces.add(start, found)
            if pieces.are_all:
                del waiting[place]
                rows = pieces.in_order()
                table.write(pieces.part.path, rows)
                errors += [outcome.error for outcome in rows if outcome.error]
            progress(done, len(files), "Classifying")
    return errors


class _Pieces:
    """What has come of a part's images, by the place of the first one of each chunk."""

    def __init__(self, part: _Part) -> None:
        self.part = part
        self._by_start = dict[int, list[Outcome]]()

    def add(self, start: int, found: list[Outcome]) -> int:
        """Add a chunk, and return how many images it is of, 0 if it came before."""
        if start in self._by_start:
            return 0
        self._by_start[start] = found
        return len(found)

    @property
    def are_all(self) -> bool:
        """Whether every image's outcome has come."""
        return sum(map(len, self._by_start.values())) == len(self.part.files)

    def in_order(self) -> list[Outcome]:
        """Return the outcomes in the order of the files."""
        return [outcome for _, found in sorted(self._by_start.items()) for outcome in found]


class _Table:
    """The Parquet files' columns, and what they are of."""

    def __init__(self, model: _Model) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._top = model.top
        numbers = ["", *(f"_{number}" for number in range(2, model.top + 1))]
        text, number = pyarrow.string(), pyarrow.float32()
        columns = [("image", text)]
        for suffix in numbers:
            columns += [(f"label{suffix}", text), (f"probability{suffix}", number)]
        facts = json.dumps(model.facts, sort_keys=True).encode()
        self._schema = pyarrow.schema([*columns, ("error", text)], metadata={_KEY: facts})

    def write(self, path: Path, rows: list[Outcome]) -> None:
        """Write a file, whole or not at all."""
        columns: list[list[Any]] = [[printable(row.image) for row in rows]]
        for rank in range(self._top):
            ranked = [row.ranked[rank] if row.ranked else None for row in rows]
            columns.append([None if one is None else one.label for one in ranked])
            columns.append([None if one is None else one.probability for one in ranked])
        columns.append([printable(row.error) or None for row in rows])
        with replacing(path) as temporary:
            self._parquet.write_table(self._arrow.table(columns, schema=self._schema), temporary)

    def errors_in(self, part: _Part) -> list[str]:
        """Return why images in a file of an earlier run could not be read; raise ArtifactError if it is of another."""
        other = f"{part.path} is not of this model, these options and these images; choose another folder"
        try:
            table = self._parquet.read_table(part.path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            raise ArtifactError(f"{part.path} cannot be read: {error}") from error
        if not table.schema.equals(self._schema, check_metadata=True):
            raise ArtifactError(other)
        if table["image"].to_pylist() != [printable(file) for file in part.files]:
            raise ArtifactError(other)
        return [error for error in table["error"].to_pylist() if error]


def _begun(output: Path, parts: list[_Part], table: _Table, *, resume: bool) -> tuple[list[str], list[_Part]]:
    """Make the folder; return why images of its files could not be read, and the parts that are not in it yet."""
    if output.is_file():
        raise ArtifactError(f"{output} is a file; name a folder")
    make_folder(output)
    there = {path for path in output.iterdir() if not path.name.startswith(".")}
    if not resume and there:
        raise ArtifactError(
            f"{output} is not empty; choose another folder, or go on with what is there by resume=True"
        )
    if others := there - {part.path for part in parts}:
        raise ArtifactError(f"{min(others)} is not of this run; choose another folder")
    errors = [error for part in parts if part.path in there for error in table.errors_in(part)]
    return errors, [part for part in parts if part.path not in there]


def _results(
    model: _Model, parts: list[_Part], cluster: Cluster, channels: int
) -> Generator[tuple[int, int, list[Outcome]]]:
    """Yield outcomes as they come: which part they are of, the place of the first of them in it, and themselves."""
    groups = [
        {"group": pickle.dumps((place, start, part.files[start : start + MOST_IMAGES]))}
        for place, part in enumerate(parts)
        for start in range(0, len(part.files), MOST_IMAGES)
    ]
    if not groups:
        return
    said = set[str]()
    share = _SHARE * model.run.thread_count
    with _connected(cluster, share) as ray:
        dataset = (
            ray.data.from_items(groups, override_num_blocks=min(len(groups), _MOST_BLOCKS))
            .map_batches(
                _Reader(channels, str(Path.cwd())), batch_size=1, num_cpus=_SHARE, max_retries=_RETRIES
            )
            .map_batches(
                _Worker,
                fn_constructor_args=(model,),
                batch_size=1,
                compute=_pool(ray, model.run, cluster, share, len(groups)),
                num_cpus=share,
                num_gpus=1 if model.run.device == "cuda" else 0,
                max_task_retries=_RETRIES,
            )
        )
        for row in dataset.iter_rows():
            place, start, found, warned = pickle.loads(row["result"])  # noqa: S301 - of our own workers
            if isinstance(found, CnndeployError):
                raise found
            for text in warned:
                if text not in said:
                    said.add(text)
                    warnings.warn(text, CnndeployWarning, stacklevel=3)
            yield place, start, found


class _Reader:
    """Reads and decodes a group of files, in a task of Ray's."""

    def __init__(self, channels: int, folder: str) -> None:
        self._channels, self._folder = channels, folder

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Yield chunks of the group, each as soon as it is read."""
        place, start, files = pickle.loads(batch["group"][0])  # noqa: S301 - of our own process
        with contextlib.chdir(self._folder):
            for chunk in chunks(files, self._channels):
                yield {"chunk": [pickle.dumps((place, start, chunk), pickle.HIGHEST_PROTOCOL)]}
                start += len(chunk)


class _Worker:
    """Has a model open, in an actor of Ray's, and classifies chunks."""

    def __init__(self, model: _Model) -> None:
        self._top = model.top
        self._opened: Classifier | CnndeployError
        try:
            self._opened = _opened(model)
        except CnndeployError as error:  # for which Ray would print a page, and try again
            self._opened = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return what comes of a chunk's images."""
        place, start, chunk = pickle.loads(batch["chunk"][0])  # noqa: S301 - of our own task
        found: list[Outcome] | CnndeployError
        warned = list[str]()
        if isinstance(self._opened, CnndeployError):
            found = self._opened
        else:
            names = [printable(file) for file, image in chunk if not isinstance(image, str)]
            try:
                with showing_own(lambda warning: warned.append(_naming(warning, names))):
                    found = outcomes(self._opened, chunk, self._top)
            except CnndeployError as error:
                found = error
        return {"result": [pickle.dumps((place, start, found, warned))]}


def _naming(warning: CnndeployWarning, names: list[str]) -> str:
    naming = getattr(warning, "naming", None)
    return str(warning if naming is None else naming(names))


def _opened(model: _Model) -> Classifier:
    run = model.run
    threads = 1 if run.threads is None else run.threads
    classifier = load(
        model.path, runtime=run.runtime, device=run.device, threads=threads, invert=model.invert
    )
    if classifier.session.artifact.sha256 != model.sha256:
        classifier.close()
        raise ArtifactError(
            f"{model.path} on {socket.gethostname()} is another file than here; copy it there"
        )
    return classifier


def _pool(ray: Any, run: Run, cluster: Cluster, share: float, most: int) -> Any:
    """Return Ray's pool of workers: by default one for each GPU, or for the threads of a call.

    There are no more than ``most``, which is how many groups of files there are. The pool begins with those that leave
    room for a task, and grows if the cluster does.
    """
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
    room, usual = (gpus, gpus) if run.device == "cuda" else ((cpus - _SHARE) / share, cpus / run.thread_count)
    workers = min(most, cluster.workers or max(1, int(usual)))
    at_first = min(workers, max(1, int(room)))
    return ray.data.ActorPoolStrategy(min_size=at_first, max_size=workers)


@contextlib.contextmanager
def _connected(cluster: Cluster, share: float) -> Iterator[Any]:
    """Yield Ray, connected; raise ClusterError if that fails or if Ray gives up.

    ``share`` is what a worker takes of the CPUs.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised too
    where: dict[str, Any] = {}
    if cluster.address is not None:
        _check_reachable(cluster.address)
    else:  # room for all workers that are asked for, and for two tasks
        cpus = max(usable_cpus(), ceil(share * (cluster.workers or 0) + 2 * _SHARE))
        where = {"num_cpus": cpus, "include_dashboard": False}
    with _signals_kept(), _no_standard_error():
        try:
            ray.init(cluster.address or "local", log_to_driver=False, logging_level="ERROR", **where)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"Ray cannot be started or reached: {_reason(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray gave up: {_reason(error)}") from error
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ClusterError if nothing answers at ``HOST:PORT``, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):  # another form of Ray's, such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no cluster answers at {address} ({error}); start one with: ray start --head"
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what signals do, which Ray would change."""
    if threading.current_thread() is not threading.main_thread():  # which alone may, Ray too
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    """Hide what Ray's C++ prints while it starts; what goes wrong is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reason(error: BaseException) -> str:
    """Return the last line of an error's first cause, which Ray wraps in tracebacks of other processes."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
