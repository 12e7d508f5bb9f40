"""What Ray runs in other processes: tasks that read files, and actors that have a model open.

A group of files goes to a task, which yields it in chunks; an actor takes a chunk and returns an answer. All travel as
pickled bytes, for Ray would make arrays of its own of lists of arrays.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.classifier import Classifier, classifier_of
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.own_warnings import CnndeployWarning, showing_own
from cnndeploy.prediction.chunks import Outcome, chunks, outcomes
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from cnndeploy.words import printable

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """The model that each worker opens, and how. The file must have the SHA-256 that the main process saw."""

    path: Path
    sha256: str
    run: Run
    top: int
    invert: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What decides about the results, JSON-ready."""
        run = {name: value for name, value in self.run.to_dict().items() if name != "threads"}
        return {"sha256": self.sha256, "run": run, "top": self.top, "invert": self.invert}

    def open(self) -> Classifier:
        """Open the file here; if that fails, raise ArtifactError with this machine's name."""
        try:
            artifact = Artifact.open(self.path)
            if artifact.sha256 != self.sha256:
                raise ArtifactError(
                    f"{self.path} differs from the file on the machine that started the run; copy that one here"
                )
            session = open_session(artifact, self.run)
            try:
                return classifier_of(session, invert=self.invert)
            except CnndeployError:
                session.close()
                raise
        except CnndeployError as error:
            raise ArtifactError(
                f"a worker on {socket.gethostname()} cannot open the model: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a chunk: its part, the place of its first image there, and an outcome for each image.

    ``error`` ends the run. ``warned`` are the kinds and texts of warnings.
    """

    part: int
    start: int
    outcomes: Sequence[Outcome] = ()
    error: CnndeployError | None = None
    warned: Sequence[tuple[str, str]] = ()


def group_row(part: int, start: int, files: Sequence[str]) -> dict[str, bytes]:
    """Return the row of a group of files, which :class:`Reader` takes."""
    return {"group": pickle.dumps((part, start, files))}


def answer_in(row: Row) -> Answer:
    """Return the answer in a row of :class:`Worker`'s."""
    answer: Answer = pickle.loads(row["answer"])  # noqa: S301 - of our own workers
    return answer


class Reader:
    """A task that reads and decodes a group of files; relative names begin at ``folder``."""

    def __init__(self, channels: int, folder: Path) -> None:
        self._channels, self._folder = channels, folder

    def __call__(self, batch: Row) -> Iterator[dict[str, list[bytes]]]:
        """Yield chunks of the one group in ``batch``, each as soon as it is read."""
        part, start, files = pickle.loads(batch["group"][0])  # noqa: S301 - of the process that began the run
        relative = any(not os.path.isabs(file) for file in files)  # noqa: PTH117 - names may be no paths
        with contextlib.chdir(self._folder) if relative else contextlib.nullcontext():
            for chunk in chunks(files, self._channels):
                yield {"chunk": [pickle.dumps((part, start, chunk), pickle.HIGHEST_PROTOCOL)]}
                start += len(chunk)


class Worker:
    """An actor that classifies chunks."""

    def __init__(self, model: Model) -> None:
        self._top = model.top
        self._opened: Classifier | CnndeployError
        try:
            self._opened = model.open()
        except CnndeployError as error:  # for which Ray would print a page, and try again
            self._opened = error

    def __call__(self, batch: Row) -> dict[str, list[bytes]]:
        """Return the answer to the one chunk in ``batch``."""
        part, start, chunk = pickle.loads(batch["chunk"][0])  # noqa: S301 - of our own task
        if isinstance(self._opened, CnndeployError):
            return {"answer": [pickle.dumps(Answer(part, start, error=self._opened))]}
        names = [printable(file) for file, image in chunk if not isinstance(image, str)]
        warned: list[tuple[str, str]] = []
        try:
            with showing_own(lambda warning: warned.append((type(warning).__name__, _text(warning, names)))):
                answer = Answer(part, start, outcomes(self._opened, chunk, self._top), warned=warned)
        except CnndeployError as error:
            answer = Answer(part, start, error=error)
        return {"answer": [pickle.dumps(answer)]}


def _text(warning: CnndeployWarning, names: Sequence[str]) -> str:
    naming = getattr(warning, "naming", None)
    return str(warning if naming is None else naming(names))
