"""Runner: a candidate opened in a process of its own, which runs test images through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.deployment import Candidate
from cnndeploy.process import Message, WorkerProcess
from cnndeploy.run import Precision
from cnndeploy.runtimes import Activation
from cnndeploy.serial import jsonable, structure
from cnndeploy.specs import TensorSpec
from cnndeploy.verification.report import SideFacts


class NotRun(Exception):  # noqa: N818 - an outcome of verification, and no fault of the user's
    """The artifact cannot be run on a batch; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Computation:
    """What is computed of a candidate: float32 as it is, or for a checkpoint something else.

    ``precision`` is float32, tf32 or float64; ``weights`` the dtype that a checkpoint's weights are rounded to first.
    ``simplified``: the network is simplified first, as exporters do. In float64 the images are prepared in float32 and
    then widened, or with ``from_raw`` prepared in float64: beside a file that prepares them itself, that is part of
    what may be rounded. ``size`` is the height and width that raw images are resampled to first.
    """

    precision: Precision = "float32"
    weights: Precision = "float32"
    simplified: bool = False
    from_raw: bool = False
    size: tuple[int, int] | None = None


AS_IT_IS = Computation()


class Runner(WorkerProcess):
    """A worker process that opens one candidate; a context manager that ends the process."""

    def __init__(self, candidate: Candidate, data_dir: str | None) -> None:
        self.candidate, self._is_open = candidate, False
        artifact = candidate.artifact
        super().__init__("cnndeploy.verification.worker", str(artifact.path), subject=str(artifact.path))
        self.send({"artifact": jsonable(artifact), "run": candidate.run.to_dict(), "data_dir": data_dir})

    def opened(self) -> Self:
        """Return itself once the worker has opened its artifact; raise the error that it met."""
        if not self._is_open:
            facts = self.receive()
            self.device: str = facts["device"]
            self.threads: int = facts["threads"]
            self.inputs = structure(tuple[TensorSpec, ...], facts["inputs"])
            self.outputs = structure(tuple[TensorSpec, ...], facts["outputs"])
            self.facts = structure(SideFacts, facts)
            self._is_open = True
        return self

    def logits(
        self, batches: Sequence[list[int]], computation: Computation = AS_IT_IS
    ) -> Iterator[NDArray[Any]]:
        """Yield the logits of each batch of image numbers, in the dtype that the artifact gives.

        Raises:
            NotRun: The artifact cannot be run on a batch; what it gave before stands.
        """
        self.send({"batches": batches, "computation": jsonable(computation)})
        for _ in batches:
            yield self._receive_run()["logits"]

    def activations(
        self, batch: list[int], folder: Path, computation: Computation = AS_IT_IS
    ) -> list[Activation]:
        """Return what each module computes for one batch, kept in new files in ``folder`` and read as used.

        Raises:
            NotRun: The artifact cannot be run so.
        """
        folder.mkdir()
        self.send({"batches": [batch], "computation": jsonable(computation), "folder": str(folder)})
        modules = self._receive_run()["activations"]
        return [
            Activation(one["module"], one["kind"], np.load(one["file"], mmap_mode="r")) for one in modules
        ]

    def _receive_run(self) -> Message:
        answer = self.receive()
        if "failed" in answer:
            raise NotRun(answer["failed"])
        return answer
