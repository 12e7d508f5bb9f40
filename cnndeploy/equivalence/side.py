"""Side: one of the two files that are compared, opened in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.process import Message, WorkerProcess
from cnndeploy.runtimes import Activation, RuntimeOptions
from cnndeploy.specs import TensorSpec

Batches = Iterable[list[int]]
"""Image numbers in the test set, batch by batch."""


Precision = Literal["float32", "float64", "tf32"]
_DEFAULT_OPTIONS = RuntimeOptions()


class NotRun(Exception):  # noqa: N818 - an outcome of verification, and no fault of the user's
    """The artifact cannot be run on a batch; never leaves this package."""


class Side(WorkerProcess):
    """A worker process that opens one artifact; a context manager that ends the process.

    In float64 a checkpoint takes what it takes in float32, or with ``from_raw`` images that are prepared in float64
    too: beside a file that prepares them itself, that is part of what may be rounded.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        runtime: str,
        device: str,
        threads: int,
        data_dir: str | None,
        tf32: bool = False,
        from_raw: bool = False,
        options: RuntimeOptions = _DEFAULT_OPTIONS,
    ) -> None:
        self.artifact = artifact
        self._from_raw = from_raw
        self.runtime = runtime
        self.threads = threads
        maths, changed = "tf32" if tf32 else "float32", json.dumps(options.changed)
        arguments = (str(artifact.path), runtime, device, str(threads), maths, data_dir or "", changed)
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
        self,
        batches: Batches,
        precision: Precision = "float32",
        weights: str = "float32",
        size: tuple[int, int] | None = None,
        simplified: bool = False,
    ) -> Iterator[NDArray[Any]]:
        """The logits of each batch, as they come, in the dtype that the artifact gives.

        In float64, for a checkpoint, its ``weights`` are first rounded to the dtype named. With a ``size`` the raw
        images are first resampled to that height and width. A checkpoint can be
        ``simplified`` first, as exporters do.

        Raises:
            NotRun: The artifact cannot be run on a batch; what it gave before stands.
        """
        batches = list(batches)
        self._ask(
            batches=batches,
            precision=precision,
            weights=weights,
            size=size,
            simplified=simplified,
        )
        for _ in batches:
            answer = self._receive_run()
            yield np.array(answer["logits"], dtype=answer["dtype"])

    def activations(
        self, batch: list[int], folder: Path, precision: Precision = "float32", simplified: bool = False
    ) -> list[Activation]:
        """What each module gives for one batch, kept in new files in ``folder`` and read from there as used.

        A checkpoint can be ``simplified`` first, so that it has the modules of a file that was exported so.

        Raises:
            NotRun: The artifact cannot be run so.
        """
        folder.mkdir()
        self._ask(
            batches=[batch],
            precision=precision,
            weights="float32",
            folder=str(folder),
            simplified=simplified,
        )
        return [
            Activation(each["module"], each["kind"], np.load(each["file"], mmap_mode="r"))
            for each in self._receive_run()["activations"]
        ]

    def _ask(self, **request: Any) -> None:
        self.send({**request, "from_raw": self._from_raw})

    def _receive_run(self) -> Message:
        answer = self.receive()
        if "failed" in answer:
            raise NotRun(answer["failed"])
        return answer
