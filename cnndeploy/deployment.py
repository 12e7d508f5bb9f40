"""Deployment: a folder that tune wrote, with a model file, its certificate, and the plan by which it runs fastest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.formats import FORMATS
from cnndeploy.limits import read_text
from cnndeploy.machine import cpu_model, cuda_driver, usable_cpus
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.run import Run
from cnndeploy.serial import dumps, jsonable, structure

PLAN_FILE = "plan.json"
ArtifactLike = str | os.PathLike[str] | Artifact
"""The path of a model file or of a deployment's folder, or an opened file."""


class PlannedElsewhereWarning(CnndeployWarning):
    """The plan was made on another kind of processor; here another plan may be faster."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a deployment runs.

    ``file`` is in the same folder and has the hash ``sha256``. It is run as ``run`` says. ``machine`` is what the
    plan was measured on, and ``figures`` what was measured; both are JSON-ready. ``command`` makes the plan again.
    """

    file: str
    sha256: str
    run: Run
    machine: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict of the fields; those of ``run`` stand among the plan's own."""
        values = jsonable(self)
        del values["run"]
        return {**values, **self.run.to_dict()}

    def to_json(self) -> str:
        """Return the content of ``plan.json``."""
        return dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote; raise ValueError if it is something else."""
        try:
            values = json.loads(text)
            plan = structure(cls, {**values, "run": Run.from_dict(values)})
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a plan: {error!r}") from error
        if missing := plan.to_dict().keys() - values.keys():
            raise ValueError(f"not a plan: it lacks {', '.join(sorted(missing))}")
        if unknown := values.keys() - plan.to_dict().keys():
            raise ValueError(f"not a plan: this version does not know {', '.join(sorted(unknown))}")
        names_folder = plan.file != os.path.basename(plan.file)  # noqa: PTH119 - a Path drops what ends in a slash
        if names_folder or type(plan.run.threads) is not int:
            raise ValueError("not a plan: a value is not of its kind")
        return plan

    @property
    def elsewhere(self) -> str:
        """A warning if the plan does not fit this machine, else an empty text."""
        on_gpu = self.run.device.startswith("cuda")
        kind, made, here = "processor", str(self.machine.get("cpu", "unknown")), cpu_model()
        if on_gpu:
            kind, made, here = (
                "GPU",
                _gpu(self.run.device, self.machine.get("gpus")),
                _gpu(self.run.device, cuda_driver().gpus),
            )
        again = f"; make it again here with: {self.command}" if self.command else ""
        if made != here:
            return (
                f"the plan was made on another {kind}, {made}, and this is {here}. Another runtime, file or number "
                f"of threads may be faster here, and a quantised file may lose more accuracy{again}"
            )
        cpus, threads = usable_cpus(), self.run.thread_count
        if self.run.device == "cpu" and threads > cpus:
            reason = "more threads than CPUs are far slower"
            return f"the plan is for {threads} threads, and this process may use {cpus} CPUs; {reason}{again}"
        return ""


def _gpu(device: str, names: Any) -> str:
    """Return the name of the GPU that a device is, among the names of all of a machine's."""
    index = int(device.partition(":")[2] or 0)
    return str(names[index]) if isinstance(names, list | tuple) and index < len(names) else "unknown"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact and how it is run; ``plan`` and ``folder`` are its deployment's, if it comes from one."""

    artifact: Artifact
    run: Run
    plan: Plan | None = None
    folder: Path | None = None

    @property
    def lossy(self) -> bool:
        """Whether it trades accuracy for speed or size, and so must keep a budget and is never equivalent."""
        manifest = self.artifact.manifest
        return (manifest is not None and manifest.lossy) or self.run.choices.lossy

    @property
    def is_planned(self) -> bool:
        """Whether it runs exactly as its deployment's plan says."""
        return self.plan is not None and self.run == self.plan.run


def resolve(source: ArtifactLike, run: Run | None = None) -> Candidate:
    """Open a model file, or the one in a deployment's folder, and settle how it is run.

    The file in a folder must be the one that the plan was made for. What ``run`` says wins, then what the plan says,
    then the default: the format's runtime, on the CPU. The number of threads stays None if neither ``run`` nor the
    plan says it. Raise what :meth:`Artifact.open` raises.
    """
    run = run or Run()
    plan, folder = None, None
    if isinstance(source, Artifact):
        artifact = source
    elif isinstance(source, str | os.PathLike) and os.path.isdir(source):  # noqa: PTH112 - half of what a Path takes
        folder = Path(source)
        artifact, plan = open_deployment(folder)
        run = run.over(plan.run)
    else:
        artifact = Artifact.open(source)
    run = run.over(Run(FORMATS.get(artifact.format).default_runtime, "cpu"))
    return Candidate(artifact, replace(run, options=run.choices), plan, folder)


def open_deployment(folder: str | os.PathLike[str]) -> tuple[Artifact, Plan]:
    """Open the model file and the plan in a folder; raise ArtifactError if they cannot be read or do not match."""
    path = Path(folder, PLAN_FILE)
    if Path(folder).is_dir() and not path.exists():
        wanted = "give a model file, or a folder that cnndeploy tune wrote"
        predict = "To classify the images in a folder: cnndeploy predict MODEL FOLDER"
        raise ArtifactError(f"{folder} is a folder without a {PLAN_FILE}; {wanted}. {predict}")
    try:
        plan = Plan.from_json(read_text(path))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Make it again with: cnndeploy tune") from error
    artifact = Artifact.open(Path(folder, plan.file))
    if artifact.sha256 != plan.sha256:
        wrong = f"{artifact.path} is not the file that {path} was made for"
        raise ArtifactError(f"{wrong}. Make both again with: cnndeploy tune")
    return artifact, plan
