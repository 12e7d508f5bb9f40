"""Contenders: each file on each runtime that opens it, with each setting that may be fastest."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.candidate import Settings
from cnndeploy.devices import device_index
from cnndeploy.errors import CnndeployError, MissingDependencyError
from cnndeploy.formats import FORMATS
from cnndeploy.run import Precision, RuntimeOptions
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.tuning.report import Row


@dataclass(frozen=True, slots=True)
class Contender:
    """A file as it may be deployed; ``variant`` says which of the files it is, as in :class:`Row`."""

    variant: str
    artifact: Artifact
    settings: Settings

    @property
    def lossy(self) -> bool:
        """Whether it gives up accuracy on purpose, so that it has a budget to keep."""
        return self.artifact.require_manifest().lossy or self.settings.options.lossy

    @property
    def numbers(self) -> tuple[str, str, str]:
        """What its logits depend on: not the threads, nor whether they spin."""
        return self.artifact.sha256, self.settings.runtime, self.settings.options.precision


def reference(checkpoint: Artifact, threads: int, device: str) -> Contender:
    """Eager PyTorch, which all are timed against."""
    return Contender(
        "checkpoint", checkpoint, Settings(FORMATS.get("checkpoint").default_runtime, device, threads)
    )


def contenders(
    files: Mapping[str, Sequence[Artifact]], *, threads: int, device: str, lossy: bool
) -> tuple[list[Contender], list[Row]]:
    """All that may be deployed, and a row for each runtime that cannot be had here, which says why.

    Args:
        files: Variant to its files, one for each format.
        threads: The most that a contender may use; one alone is tried too.
        device: Where all of them run.
        lossy: Whether contenders may give up accuracy.
    """
    found, missing = [], []
    for name in RUNTIMES.names():
        formats = RUNTIMES.get(name).formats
        fitting = [
            (variant, artifact)
            for variant, artifacts in files.items()
            for artifact in artifacts
            if artifact.format in formats and (lossy or not artifact.require_manifest().lossy)
        ]
        if not fitting:
            continue
        if why := _unavailable(name, device):
            missing.append(Row("all", name, threads, {}, False, "not tried", why))
            continue
        found += [
            Contender(variant, artifact, settings)
            for variant, artifact in fitting
            for settings in _settings(name, artifact, threads, device, lossy)
        ]
    return found, missing


def _unavailable(runtime: str, device: str) -> str:
    """Why a runtime cannot be used here; empty where it can."""
    chosen = RUNTIMES.get(runtime)
    if importlib.util.find_spec(chosen.package) is None:
        return str(MissingDependencyError(chosen.package))
    try:
        device_index(device, runtime, chosen.devices())
    except CnndeployError as error:
        return str(error)
    return ""


def _settings(runtime: str, artifact: Artifact, threads: int, device: str, lossy: bool) -> Iterator[Settings]:
    options = RUNTIMES.get(runtime).options
    # A network that runs from its checkpoint needs all of PyTorch and compiles for long: one setting of it will do.
    counts = [threads] if artifact.format == "checkpoint" or device != "cpu" else sorted({1, threads})
    precisions: list[Precision] = ["float32"]
    if "precision" in options and lossy:
        precisions.append("bfloat16")
    for count, precision in product(counts, precisions):
        yield Settings(runtime, device, count, options=RuntimeOptions(precision=precision))
        if "spinning" in options and count > 1:
            yield Settings(runtime, device, count, options=RuntimeOptions(False, precision))
