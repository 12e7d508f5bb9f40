"""Side: one of the two files that are compared, opened in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.process import WorkerProcess
from cnndeploy.specs import TensorSpec

Batches = Iterable[list[int]]
"""Image numbers in the test set, batch by batch."""


class NotRun(Exception):  # noqa: N818 - an outcome of verification, and no fault of the user's
    """The artifact cannot be run on a batch; never leaves this package."""


class Side(WorkerProcess):
    """A worker process that opens one artifact; a context manager that ends the process."""

    def __init__(
        self, artifact: Artifact, *, runtime: str, device: str, threads: int, data_dir: str | None
    ) -> None:
        self.artifact = artifact
        self.runtime = runtime
        self.threads = threads
        arguments = (str(artifact.path), runtime, device, str(threads), data_dir or "")
        super().__init__("cnndeploy.equivalence.worker", *arguments, subject=str(artifact.path))

    def wait_until_open(self) -> None:
        """Wait for the worker to open its artifact; raises the error it met."""
        facts = self.receive()
        self.sha256: str = facts["sha256"]
        self.device: str = facts["device"]
        self.inputs = tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in facts["inputs"])
        self.outputs = tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in facts["outputs"])
        self.placement: dict[str, str] = facts["placement"]
        self.settings: dict[str, Any] = facts["settings"]

    def logits(
        self, batches: Batches, precision: Literal["float32", "float64"] = "float32"
    ) -> Iterator[NDArray[Any]]:
        """The logits of each batch, as they come, in the dtype that the artifact gives.

        Raises:
            NotRun: The artifact cannot be run on a batch; what it gave before stands.
        """
        batches = list(batches)
        self.send({"batches": batches, "precision": precision})
        for _ in batches:
            answer = self.receive()
            if "failed" in answer:
                raise NotRun(answer["failed"])
            yield np.array(answer["logits"], dtype=answer["dtype"])
