"""Examination: what both kinds of verification share, from opening the two sides to the verdict."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.data import Images
from cnndeploy.deployment import Candidate, Source
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.verification.reference import Reference, borrowed
from cnndeploy.verification.runner import NotRun, Runner
from cnndeploy.verification.structure import mismatches
from cnndeploy.verification.verdict import FileIdentity


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

    @property
    def classes(self) -> int:
        """How many logits an image has."""
        return int(self.reference.artifact.require_manifest().output.shape[-1])

    def logits(self, batches: Sequence[list[int]]) -> NDArray[np.float32]:
        """Run the candidate and return its logits, (images of all batches, classes).

        Raises:
            NotRun: It fails, or gives another shape or dtype.
        """
        rows: NDArray[np.float32] = np.empty((sum(map(len, batches)), self.classes), np.float32)
        start = 0
        for batch, logits in zip(batches, self.runner.logits(batches), strict=True):
            wanted = (len(batch), self.classes)
            if logits.shape != wanted or logits.dtype != np.float32:
                raise NotRun(
                    f"a batch of {len(batch)} gives {logits.dtype} {logits.shape}, not float32 {wanted}"
                )
            rows[start : start + len(batch)] = logits
            start += len(batch)
            self.count(len(batch))
        return rows

    def count(self, images: int) -> None:
        """Report that so many more images were run, on whichever side; raise Stopped at the deadline."""
        self.done = min(self.total, self.done + images)
        self.progress(self.done, self.total, f"Verifying {self.candidate.artifact.path.name}")
        self.deadline.check()

    def counting(self) -> Progress:
        """Return a progress callback for the reference that goes on where the candidate's ended."""
        before = 0

        def progress(done: int, _total: int, _text: str) -> None:
            nonlocal before
            self.count(done - before)
            before = done

        return progress

    def mismatches(self) -> list[str]:
        """Return what differs between the two before anything is run."""
        return mismatches(self.runner, self.reference.artifact)

    def replaced(self) -> list[str]:
        """Name the files that no longer hold the bytes that were opened."""
        artifacts = (self.candidate.artifact, self.reference.artifact)
        return [
            f"{artifact.path} was replaced while it was verified"
            for artifact in artifacts
            if not artifact.is_unchanged()
        ]

    def identity(self) -> dict[str, Any]:
        """Return the fields of a verdict that say what was verified and how it was run."""
        return {
            "artifact": FileIdentity.of(self.candidate.artifact),
            "against": FileIdentity.of(self.reference.artifact),
            "runtime": self.candidate.run.runtime,
            "device": self.runner.device,
            "threads": self.runner.threads,
            "options": self.candidate.run.choices.changed,
        }


@contextlib.contextmanager
def examination(
    candidate: Candidate,
    against: Source | Reference,
    images: int | None,
    data_dir: str | os.PathLike[str] | None,
    deadline: Deadline | None = None,
    progress: Progress = silent,
) -> Iterator[Examination]:
    """Open both sides, each in a process of its own, and yield them once they are open."""
    with borrowed(against, candidate.run.threads, data_dir) as reference:
        test = reference.test.first(images)
        with Runner(candidate, reference.data_dir) as runner:
            reference.start()  # both load at the same time
            runner.wait_until_open()
            yield Examination(runner, reference, test, deadline or Deadline(), progress)
