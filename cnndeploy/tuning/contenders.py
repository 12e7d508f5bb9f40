"""Contenders: each file on each runtime that opens it, with each setting that may be fastest."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cnndeploy.artifact import Artifact
from cnndeploy.deployment import Candidate, resolve
from cnndeploy.devices import device_index
from cnndeploy.errors import CnndeployError, MissingDependencyError
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.tuning.report import Outcome, Row
from cnndeploy.verification.report import Verdict


@dataclass(slots=True, eq=False)
class Contender:
    """A candidate that may be deployed, and the verdict on it once there is one.

    ``variant`` says which of the files it is, as in :class:`Row`.
    """

    variant: str
    candidate: Candidate
    verdict: Verdict | None = None

    @property
    def lossy(self) -> bool:
        """Whether it gives up accuracy on purpose, so that it has a budget to keep."""
        return self.candidate.lossy

    @property
    def rejected(self) -> bool:
        """Whether it may not be deployed."""
        return self.verdict is not None and not self.verdict.passed

    @property
    def numbers(self) -> tuple[str, str, str]:
        """What its logits depend on: not the threads, nor whether they spin."""
        run = self.candidate.run
        return self.candidate.artifact.sha256, run.runtime, run.choices.precision

    def row(self, outcome: Outcome, reason: str) -> Row:
        """Return its row of a report, without figures."""
        run = self.candidate.run
        settings = run.thread_count, run.choices.changed
        return Row(self.variant, run.runtime, *settings, self.lossy, outcome, reason)

    def __str__(self) -> str:
        run = self.candidate.run
        return f"{self.variant} on {run.runtime}, {run.threads} threads{run.choices}"


def eager(checkpoint: Artifact, threads: int, device: str) -> Contender:
    """Return eager PyTorch, which all are timed against."""
    return Contender("checkpoint", resolve(checkpoint, Run(device=device, threads=threads)))


def contenders(
    files: Mapping[str, Sequence[Artifact]], *, threads: int, device: str, lossy: bool
) -> tuple[list[Contender], list[Row]]:
    """Return all that may be deployed, and a row for each runtime that cannot be had here, which says why.

    Args:
        files: Variant to its files, one for each format.
        threads: The most that a contender may use; one alone is tried too.
        device: Where all of them run.
        lossy: Whether contenders may give up accuracy.
    """
    available: list[Contender] = []
    missing: list[Row] = []
    for name in RUNTIMES.names():
        fitting = [
            Contender(variant, Candidate(artifact, run))
            for variant, artifacts in files.items()
            for artifact in artifacts
            if artifact.format in RUNTIMES.get(name).formats
            and (lossy or not artifact.require_manifest().lossy)
            for run in _runs(name, artifact, threads, device, lossy)
        ]
        if fitting and (why := _unavailable(name, device)):
            missing.append(Row("all", name, threads, {}, False, "not tried", why))
        else:
            available += fitting
    return available, missing


def _unavailable(runtime: str, device: str) -> str:
    """Say why a runtime cannot be used here; empty if it can."""
    known = RUNTIMES.get(runtime)
    try:
        if importlib.util.find_spec(known.package) is None:
            raise MissingDependencyError(known.package)
        device_index(device, runtime, known.devices())
    except CnndeployError as error:
        return str(error)
    return ""


def _runs(runtime: str, artifact: Artifact, threads: int, device: str, lossy: bool) -> Iterator[Run]:
    options = RUNTIMES.get(runtime).options
    # A network that runs from its checkpoint needs all of PyTorch and compiles for long: one setting of it will do.
    counts = [threads] if artifact.format == "checkpoint" or device != "cpu" else sorted({1, threads})
    choices = [RuntimeOptions()]
    if lossy and "bfloat16" in options.get("precision", ()):
        choices.append(RuntimeOptions(precision="bfloat16"))
    for count, chosen in product(counts, choices):
        yield Run(runtime, device, count, chosen)
        if False in options.get("spinning", ()) and count > 1:
            yield Run(runtime, device, count, RuntimeOptions(False, chosen.precision))
