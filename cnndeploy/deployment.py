"""Deployment: a folder with a model file, its certificate, and the plan by which it runs fastest, as tune wrote it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.machine import cpu_model, usable_cpus
from cnndeploy.runtimes import RuntimeOptions

PLAN_FILE = "plan.json"


class PlannedElsewhereWarning(UserWarning):
    """A plan was made on another kind of processor, where another one may be fastest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a deployment runs.

    ``file`` lies in the same folder and has the hash ``sha256``; ``runtime`` runs it on ``device`` with ``threads``
    and ``options``. ``machine`` is what it was measured on, ``figures`` what was measured of it, JSON-ready.
    ``command`` makes it anew.
    """

    file: str
    sha256: str
    runtime: str
    device: str
    threads: int
    options: RuntimeOptions
    machine: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return {**asdict(self), "options": self.options.changed}

    def to_json(self) -> str:
        """For ``plan.json``."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """What :meth:`to_dict` gave, unchecked."""
        return cls(**{**values, "options": RuntimeOptions.of(values["options"])})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote; raises ValueError where it did not."""
        try:
            plan = cls.of(json.loads(text))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a plan: {error!r}") from error
        texts = (plan.file, plan.sha256, plan.runtime, plan.device, plan.command, plan.date)
        mappings = (plan.machine, plan.figures)
        if not (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(each, dict) for each in mappings)
            and type(plan.threads) is int
            and plan.file == os.path.basename(plan.file)  # noqa: PTH119 - what is wanted is that it names no folder
        ):
            raise ValueError("not a plan: a value is not of its kind")
        return plan

    def __str__(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.options.changed.items())
        return f"{self.runtime} on {self.device}, {self.threads} threads{options}"

    @property
    def elsewhere(self) -> str:
        """Where the plan was made on another kind of processor, or for more CPUs: what to tell the user; else empty."""
        made, here = str(self.machine.get("cpu", "unknown")), cpu_model()
        again = f"; make it anew here with: {self.command}" if self.command else ""
        if made != here:
            return (
                f"the plan was made on another processor, {made}, and this is {here}. Another runtime, file or number "
                f"of threads may be faster here, and a quantised file may lose more accuracy{again}"
            )
        if self.device == "cpu" and self.threads > usable_cpus():
            return (
                f"the plan is for {self.threads} threads, and this process may use {usable_cpus()} CPUs; more threads "
                f"than CPUs are far slower{again}"
            )
        return ""


def is_deployment(path: str | os.PathLike[str]) -> bool:
    """Whether it is a folder with a plan."""
    return Path(path, PLAN_FILE).is_file()


def open_deployment(folder: str | os.PathLike[str]) -> tuple[Artifact, Plan]:
    """The model file in a folder, and its plan.

    Raises:
        ArtifactError: The plan cannot be read, or the file is not the one that it was made for.
    """
    path = Path(folder, PLAN_FILE)
    if Path(folder).is_dir() and not path.exists():
        raise ArtifactError(
            f"{folder} is a folder without a {PLAN_FILE}; give a model file, or what cnndeploy tune wrote"
        )
    try:
        plan = Plan.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Make it anew with: cnndeploy tune") from error
    artifact = Artifact.open(Path(folder, plan.file))
    if artifact.sha256 != plan.sha256:
        raise ArtifactError(
            f"{artifact.path} is not the file that {path} was made for. Make both anew with: cnndeploy tune"
        )
    return artifact, plan
