"""Open an artifact on the runtime, device and threads that were asked for, or on none."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cnndeploy.artifact import Artifact
from cnndeploy.deployment import resolve
from cnndeploy.devices import device_index
from cnndeploy.errors import ArtifactError, CnndeployError, DeviceUnavailableError, MissingDependencyError
from cnndeploy.formats import FORMATS
from cnndeploy.machine import usable_cpus
from cnndeploy.preprocessing import RAW_SIDE
from cnndeploy.run import MOST_THREADS, Run
from cnndeploy.runtimes._session import RUNTIMES, Arrays, Session

# For threads="auto": above so many seconds an image all threads are taken untried; all must be so many times as fast.
_LARGE_S, _WORTH_IT = 0.005, 1.1
_TRIAL_S, _FEWEST_TRIALS = 0.001, 5


def open_session(artifact: Artifact, run: Run | None = None) -> Session:
    """Open an artifact as ``run`` says; what it leaves open is the default.

    ``auto`` threads times one image with one thread and with all that the process may use, and takes one if all are
    not a tenth faster.

    Raises:
        ArtifactError, DeviceUnavailableError: As :meth:`Runtime.open`; the latter too if a part of the model is seen
            to be elsewhere than on the device.
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
    """Open an artifact once its runtime is known to be able to do what is asked for."""
    name, runtime = run.runtime, RUNTIMES.get(run.runtime)
    if artifact.format not in runtime.formats:
        raise ArtifactError(
            f"the runtime {name} opens {', '.join(runtime.formats)}, but {artifact.path} is {artifact.format}. "
            f"Use the runtime {FORMATS.get(artifact.format).default_runtime}."
        )
    if importlib.util.find_spec(runtime.package) is None:
        raise MissingDependencyError(runtime.package)
    # before the runtime is asked, because one that ignores its device would open the file all the same
    index = device_index(run.device, name, runtime.devices())
    for option, value in run.choices.changed.items():
        if value not in runtime.options.get(option, ()):
            raise ArtifactError(f"the runtime {name} has no {option} {value}; leave it out")
    if run.choices.precision == "tf32" and index is None:
        raise DeviceUnavailableError("TF32 is a format of CUDA GPUs; leave it out, or use the device cuda")
    run = replace(run, device="cpu" if index is None else f"cuda:{index}")
    session = runtime.open(artifact, run)
    try:
        _check_opened(session, run)
    except CnndeployError:
        session.close()
        raise
    return session


def _check_opened(session: Session, run: Run) -> None:
    path, placement = session.artifact.path, session.placement()
    if session.options != run.choices:
        raise DeviceUnavailableError(f"{run.runtime} opened {path} with other options")
    if not placement:
        raise DeviceUnavailableError(f"{run.runtime} shows no part of {path} that it computes; is there any?")
    elsewhere = [part for part, where in placement.items() if where != session.placed_on]
    if elsewhere or session.device != run.device:
        raise DeviceUnavailableError(
            f"{run.runtime} put {len(elsewhere)} of {len(placement)} parts of {path} elsewhere than "
            f"on {run.device}: {', '.join(elsewhere[:5])}. Use the device cpu, or a build that has these operators."
        )


def _fewest_threads(opened_with: Callable[[int], Session]) -> Session:
    """Return the session with all threads, or with one if that is no slower: it leaves the other CPUs to the app."""
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
    # its shape is not known, its type not numpy's, or it does not run
    except (ValueError, TypeError, CnndeployError):
        return session
    session.close()
    if one_s < _WORTH_IT * all_s:
        return alone
    alone.close()  # and opened again: torch has one number of threads for the whole process, the last one set
    return opened_with(usable_cpus())


def _median_seconds(session: Session, feeds: Arrays) -> float:
    """Return the median over many runs; of a large model, over few."""
    seconds: list[float] = []
    while len(seconds) < _FEWEST_TRIALS or sum(seconds) < _TRIAL_S:
        start = time.perf_counter()
        session.run(feeds)
        seconds.append(time.perf_counter() - start)
    return statistics.median_high(seconds)
