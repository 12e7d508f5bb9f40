"""Examination: what both kinds of verification share, from opening the two sides to the verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact, short_hash
from cnndeploy.datasets import Data, Images
from cnndeploy.deployment import ArtifactLike, Candidate
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.verification.reference import AS_IT_IS, Computation, NotRun, Reference, Runner, borrowed
from cnndeploy.verification.report import FileIdentity

# Operators that a network ready to deploy has no use for. ONNX Runtime removes even a Dropout in training mode from
# the middle of a graph by default (EliminateDropout), so that only its absence is proof.
_RANDOM = ("Bernoulli", "Dropout", "Multinomial", "Random")  # their names begin so
_SAME = (
    "architecture",
    "input",
    "output",
    "probabilities",
    "preprocessing",
    "labels",
    "training",
    "resizing",
)


@dataclass(slots=True)
class Examination:
    """A candidate that is open in its process, the reference beside it, and the ``test`` images of both."""

    runner: Runner
    reference: Reference
    test: Images
    deadline: Deadline
    progress: Progress
    total: int = 0
    done: int = 0

    @property
    def candidate(self) -> Candidate:
        """What is verified."""
        return self.runner.candidate

    def logits(
        self, batches: Sequence[list[int]], computation: Computation = AS_IT_IS
    ) -> NDArray[np.float32]:
        """Return its logits (images of all batches, classes); raise NotRun if it fails or gives something else."""
        classes = int(self.reference.artifact.require_manifest().output.shape[-1])
        rows: NDArray[np.float32] = np.empty((sum(map(len, batches)), classes), np.float32)
        progress, start = self.counting(), 0
        for batch, logits in zip(batches, self.runner.logits(batches, computation), strict=True):
            wanted = (len(batch), classes)
            if logits.shape != wanted or logits.dtype != np.float32:
                raise NotRun(
                    f"a batch of {len(batch)} gives {logits.dtype} {logits.shape}, not float32 {wanted}"
                )
            rows[start : start + len(batch)] = logits
            start += len(batch)
            progress(start, len(rows), "")
        return rows

    def counting(self) -> Progress:
        """Return a progress callback for either side, which goes on from here; it raises Stopped at the deadline."""
        before = self.done

        def progress(done: int, _total: int, _text: str) -> None:
            self.done = min(self.total, before + done)
            self.progress(self.done, self.total, f"Verifying {self.candidate.artifact.path.name}")
            self.deadline.check()

        return progress

    def mismatches(self) -> list[str]:
        """Return what differs between the manifests and graphs of the two, before anything is run.

        If the artifact is of another checkpoint, only that is said.
        """
        artifact, checkpoint = self.candidate.artifact, self.reference.artifact
        if another := _another_checkpoint(artifact, checkpoint):
            return [another]
        manifest, expected = artifact.require_manifest(), checkpoint.require_manifest()
        if manifest.is_reference:  # a graph of somebody, which has its own names
            expected = replace(
                expected,
                architecture=manifest.architecture,
                training=manifest.training,
                input=replace(expected.input, name=manifest.input.name),
                output=replace(expected.output, name=manifest.output.name),
            )
        if manifest.takes_images:
            expected = expected.taking_images(manifest.resizing or "native")
        values, wanted = manifest.to_dict(), expected.to_dict()
        differences = (_first_difference(name, values.get(name), wanted.get(name)) for name in _SAME)
        reasons = [f"the manifests differ: {difference}" for difference in differences if difference]
        if random := sorted(name for name in artifact.describe()["operators"] if name.startswith(_RANDOM)):
            reasons.append(
                f"the graph contains {', '.join(random)}: something random is active, as dropout in training is, even "
                "if a runtime's optimisation removes it"
            )
        inputs, outputs = (self.runner.inputs, (expected.input,)), (self.runner.outputs, expected.outputs)
        for kind, (specs, right) in (("input", inputs), ("output", outputs)):
            if specs != right:
                texts = [", ".join(f"{spec.name} {spec}" for spec in side) for side in (specs, right)]
                fixed = specs and specs[0].shape and isinstance(specs[0].shape[0], int)
                hint = ": the batch axis is fixed" if fixed else ""
                reasons.append(f"the graph's {kind} is {texts[0]}, not {texts[1]}{hint}")
        return reasons

    def replaced(self) -> list[str]:
        """Name the files that no longer hold the bytes that were opened."""
        both = self.candidate.artifact, self.reference.artifact
        return [f"{one.path} was replaced while it was verified" for one in both if not one.is_unchanged()]

    def identity(self) -> dict[str, Any]:
        """Return the fields of a verdict that say what was verified and how it was run."""
        return {
            "artifact": FileIdentity.of(self.candidate.artifact),
            "against": FileIdentity.of(self.reference.artifact),
            "runtime": self.candidate.run.runtime,
            "device": self.runner.device,
            "threads": self.runner.threads,
            "options": self.candidate.run.choices.changed,
            "against_runtime": self.reference.candidate.run.runtime,
            "data": self.reference.dataset.spec,
            "data_sha256": self.test.sha256,
        }


@contextlib.contextmanager
def examination(
    candidate: Candidate,
    against: ArtifactLike | Reference,
    images: int | None,
    data: Data | None,
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> Iterator[Examination]:
    """Open both sides, each in a process of its own, and yield them once they are open."""
    deadline = deadline or Deadline()

    def reading(done: int, total: int, text: str) -> None:
        progress(done, total, text)
        deadline.check()

    with borrowed(against, candidate.run.threads, data) as reference:
        test = reference.first(images, reading)
        with Runner(candidate, reference.dataset.spec, reference.numbers) as runner:
            reference.start()  # both load at the same time
            yield Examination(runner.opened(), reference, test, deadline, progress)


def _another_checkpoint(artifact: Artifact, checkpoint: Artifact) -> str:
    """Say so if the artifact does not come from this checkpoint, else return nothing."""
    manifest = artifact.require_manifest()
    if manifest.is_reference and artifact.format != checkpoint.format:
        return ""  # it was exported by another tool, which noted nothing of it
    itself = artifact.is_reference
    source = artifact.sha256 if itself else manifest.held_against
    if source == checkpoint.sha256:
        return ""
    given = f"{checkpoint.path} ({short_hash(checkpoint.sha256)})"
    if manifest.compression is not None:
        return f"it was compressed from another checkpoint ({short_hash(source)}), not from {given}"
    if itself:
        kind = "checkpoint" if artifact.format == "checkpoint" else "file"
        return f"it is another {kind} ({short_hash(source)}) than {given}"
    return f"it was exported from another checkpoint ({short_hash(source)}), not from {given}"


def _first_difference(name: str, value: Any, wanted: Any) -> str | None:
    """Say what differs first between two values of JSON."""
    if value == wanted:
        return None
    pairs: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(value, dict) and isinstance(wanted, dict):
        pairs = ((f"{name}.{key}", value.get(key), wanted.get(key)) for key in value | wanted)
    elif isinstance(value, list | tuple) and len(value) == len(wanted):
        pairs = ((f"{name}[{index}]", *both) for index, both in enumerate(zip(value, wanted, strict=True)))
    inner = (_first_difference(*pair) for pair in pairs)
    return next(filter(None, inner), f"{name} is {value!r}, the checkpoint's {wanted!r}")
