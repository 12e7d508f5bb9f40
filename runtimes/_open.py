"""Opening an artifact on the runtime, device and threads that were asked for, or on none."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cnndeploy.artifact import Artifact
from cnndeploy.deployment import resolve
from cnndeploy.devices import last_line, require_device
from cnndeploy.errors import ArtifactError, CnndeployError, DeviceUnavailableError, MissingDependencyError
from cnndeploy.formats import FORMATS
from cnndeploy.machine import usable_cpus
from cnndeploy.preprocessing import RAW_SIDE
from cnndeploy.run import MOST_THREADS, Run
from cnndeploy.runtimes._session import RUNTIMES, Arrays, Session, words_of

# For threads="auto". A model that takes more than _LARGE_S seconds an image gets all threads without a trial. Otherwise
# it gets all threads only if they are _WORTH_IT times as fast as one.
_LARGE_S, _WORTH_IT = 0.005, 1.1
_TRIAL_S, _FEWEST_TRIALS = 0.001, 5


def open_session(artifact: Artifact, run: Run | None = None) -> Session:
    """Open an artifact as ``run`` says; what ``run`` leaves open is the default.

    For ``auto`` threads, time one image with one thread and with all that the process may use, and take one unless all
    are at least a tenth faster.

    Raises:
        ArtifactError, DeviceUnavailableError: As in :meth:`Runtime.open`; the latter also if a part of the model is
            not on the device.
        MissingDependencyError: The runtime's package is not installed.
    """
    run = resolve(artifact, run).run
    threads, most = (
        run.threads,
        max(MOST_THREADS, usable_cpus()),
    )  # all CPUs are the default, so never too many
    if threads not in (None, "auto") and not (type(threads) is int and 1 <= threads <= most):
        raise DeviceUnavailableError(
            f"threads are a whole number from 1 to {most}, or 'auto', not {threads!r}"
        )
    if threads == "auto":
        return _fewest_threads(lambda count: _open(artifact, replace(run, threads=count)))
    return _open(artifact, replace(run, threads=run.thread_count))


def _open(artifact: Artifact, run: Run) -> Session:
    """Check that the runtime can do what is asked for, then open the artifact."""
    name, runtime = run.runtime, RUNTIMES.get(run.runtime)
    if artifact.format not in runtime.formats:
        raise ArtifactError(
            f"the runtime {name} opens {', '.join(runtime.formats)}, but {artifact.path} is {artifact.kind}. "
            f"Use the runtime {FORMATS.get(artifact.format).default_runtime}."
        )
    if importlib.util.find_spec(runtime.package) is None:
        raise MissingDependencyError(runtime.package)
    # before the runtime opens the file, because one that ignores its device would open it all the same
    index = require_device(run.device, name, runtime)
    for option, value in run.choices.changed.items():
        if value not in runtime.options.get(option, ()):
            raise ArtifactError(f"the runtime {name} does not support {option} {value}; leave it out")
    if index is None and (run.choices.precision == "tf32" or run.choices.cuda_graph):
        graphs, tf32 = "CUDA graphs are for CUDA GPUs; leave them", "TF32 is a format of CUDA GPUs; leave it"
        what = graphs if run.choices.cuda_graph else tf32
        raise DeviceUnavailableError(f"{what} out, or use the device cuda")
    run = replace(run, device="cpu" if index is None else f"cuda:{index}")
    try:
        session = runtime.open(artifact, run)
        try:
            _check_opened(session, run)
        except Exception:
            session.close()
            raise
    except CnndeployError:
        raise
    except Exception as error:  # a damaged or hostile file may make a runtime raise anything
        reason = words_of(error, last_line)
        raise ArtifactError(f"{name} cannot open {artifact.path}; it is damaged: {reason}") from error
    return session


def _check_opened(session: Session, run: Run) -> None:
    path, placement = session.artifact.path, session.placement()
    if session.options != run.choices:
        raise DeviceUnavailableError(f"{run.runtime} opened {path} with other options")
    if not placement:
        raise DeviceUnavailableError(
            f"{run.runtime} shows no part of {path} that it computes; is the model empty?"
        )
    on_cpu = run.device == "cpu"
    elsewhere = [
        part
        for part, where in placement.items()  # names are the runtime's, as CPUExecutionProvider
        if where != session.placed_on or where.lower().startswith("cpu") != on_cpu
    ]
    if elsewhere or session.device != run.device:
        raise DeviceUnavailableError(
            f"{run.runtime} put {len(elsewhere)} of {len(placement)} parts of {path} elsewhere than on {run.device}: "
            f"{', '.join(elsewhere[:5])}. Use the device cpu, or a build that has these operators."
        )


def _fewest_threads(opened_with: Callable[[int], Session]) -> Session:
    """Return the session with all threads, or with one if that is as fast, which leaves the other CPUs to the app."""
    session = opened_with(usable_cpus())
    if usable_cpus() == 1 or session.device != "cpu":
        return session
    try:
        image = {spec.name: np.zeros(spec.with_batch(1, RAW_SIDE), spec.dtype) for spec in session.inputs}
        all_s = _median_seconds(session, image)
        if all_s > _LARGE_S:
            return session
        alone = opened_with(1)
        one_s = _median_seconds(alone, image)
    # the input's shape is not known, its type is not numpy's, or the model does not run
    except (ValueError, TypeError, CnndeployError):
        return session
    session.close()
    if one_s < _WORTH_IT * all_s:
        return alone
    alone.close()  # open again: torch has one number of threads for the whole process, the one that was set last
    return opened_with(usable_cpus())


def _median_seconds(session: Session, feeds: Arrays) -> float:
    """Return the median over many runs, or over few runs of a large model."""
    seconds: list[float] = []
    while len(seconds) < _FEWEST_TRIALS or sum(seconds) < _TRIAL_S:
        start = time.perf_counter()
        session.run(feeds)
        seconds.append(time.perf_counter() - start)
    return statistics.median_high(seconds)
