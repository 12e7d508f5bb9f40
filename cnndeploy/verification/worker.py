"""The worker process: opens one candidate and gives its logits. ``python -m cnndeploy.verification.worker``.

For an ONNX file nothing here loads torch: the artifact is run as an app would run it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Images, feeds, open_dataset
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.machine import patient_threads
from cnndeploy.process import Message, serve
from cnndeploy.run import Run
from cnndeploy.runtimes import Activation, Session, open_session
from cnndeploy.runtimes._onnx_definition import DefinitionSession
from cnndeploy.serial import jsonable, structure
from cnndeploy.specs import Manifest
from cnndeploy.verification.prepared import (
    PreparedCheck,
    moves_of,
    noise,
    save_moves,
    with_moves,
    wrong_on_noise,
)
from cnndeploy.verification.reference import Computation

# Some roundings of float32, of numbers that are at most 1.
_PROBABILITY_ERROR = 1e-6
Part = tuple[list[int], NDArray[Any]]
"""Images of a batch as the file takes them, and which of the batch they are."""


def main(subject: str) -> None:
    """Say what was opened and how, then answer each request, batch by batch, with logits.

    The first request names the artifact, how it is run, and the data set. Each further one names batches
    as lists of image numbers in the test set and a :class:`Computation`. A request with a ``folder`` is answered with
    what each module computes for its one batch, in files there.
    """

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        first = next(requests)
        artifact = structure(Artifact, {**first["artifact"], "path": Path(first["artifact"]["path"])})
        dataset, channels = open_dataset(first["data"]), artifact.require_manifest().preprocessing.channels
        images = dataset.split("test", channels, dataset.classes)
        with open_session(artifact, Run.from_dict(first["run"])) as session:
            yield {
                "device": session.device,
                "threads": session.threads,
                "inputs": jsonable(session.inputs),
                "outputs": jsonable(session.outputs),
                "placement": session.placement(),
                "settings": session.settings(),
            }
            for request in requests:
                computation = structure(Computation, request["computation"])
                with _computed(session, computation) as computed:
                    yield from _answer(computed, computation, images, request)

    with patient_threads():
        serve(subject, answers)


def _computed(session: Session, computation: Computation) -> contextlib.AbstractContextManager[Session]:
    """Return the session, or one that computes otherwise and is closed after the request."""
    if (computation.precision, computation.weights, computation.simplified) == ("float32", "float32", False):
        return contextlib.nullcontext(session)
    precision, weights = computation.precision, computation.weights
    if session.artifact.format == "onnx" and (precision, weights) == ("float64", "float32"):
        return DefinitionSession(session.artifact, session.run_as)
    from cnndeploy.runtimes.eager import EagerSession

    if not isinstance(session, EagerSession):
        raise ArtifactError(f"{session.artifact.path} is no checkpoint; it computes only what is in the file")
    return session.computed(precision, weights=weights, simplified=computation.simplified)


def _answer(
    session: Session, computation: Computation, images: Images, request: Message
) -> Iterator[Message]:
    checks, manifest = _Checks(session, computation), session.artifact.require_manifest()
    prepare = _preparation(manifest, computation)
    for batch in request["batches"]:
        try:
            if computation.noise and computation.size:
                reason = _wrong_on_noise(session, computation.size)
                yield {"failed": reason} if reason else {"logits": np.empty(0), "whole": True}
                continue
            parts = feeds(images, batch, prepare)
            if computation.moves and not manifest.takes_images:
                parts = _moved(parts, batch, manifest, Path(computation.moves))
            if "folder" in request:
                yield {"activations": _activations(session, parts, Path(request["folder"]))}
                continue
            logits, reason = checks.logits(parts, batch)
        except (ArtifactError, InputMismatchError) as error:
            reason = f"it fails on a batch of {len(batch)}: {error}"
        if reason:
            yield {"failed": reason}
            return
        yield {"logits": logits, "whole": checks.whole, **checks.figures()}


def _wrong_on_noise(session: Session, size: tuple[int, int]) -> str:
    """Say what is wrong with what a file makes of noise; empty if nothing is."""
    manifest = session.artifact.require_manifest()
    if session.options.precision == "bfloat16":  # which cannot hold all grey levels once normalised
        return ""
    images = noise(manifest.preprocessing, size)
    prepared = session.run({manifest.input.name: images})[manifest.prepared_output.name]
    return wrong_on_noise(manifest.preprocessing, images, prepared, exact=not manifest.lossy)


class _Checks:
    """Runs batches, and checks what no comparison of logits would show."""

    def __init__(self, session: Session, computation: Computation) -> None:
        self._session, self._manifest = session, session.artifact.require_manifest()
        self._moves = Path(computation.moves) if computation.moves else None
        self._last = self._kept = np.empty(0)
        self._prepared = PreparedCheck()
        self.whole = True  # whether the last batch was run in one call

    def figures(self) -> Message:
        """Return how the batch was prepared, for a file that resizes as Pillow does, and begin anew."""
        check, self._prepared = self._prepared, PreparedCheck()
        return {} if self._manifest.resizing is None else {"prepared": jsonable(check)}

    def logits(self, parts: Iterator[Part], batch: list[int]) -> tuple[NDArray[Any], str]:
        """Return the logits of a batch that comes in parts, (batch, classes), and what is wrong with them."""
        found: list[tuple[list[int], NDArray[Any]]] = []
        for places, images in parts:
            self.whole = len(places) == len(batch)
            logits, reason = self._run(images, [batch[place] for place in places])
            if reason or self.whole:  # the usual case, which copies nothing
                return logits, reason
            if logits.shape[:1] != (len(places),):
                return logits, f"it gives {logits.shape} for {len(places)} images"
            found.append((places, logits.copy()))
        together = np.concatenate([logits for _, logits in found])
        ordered = np.empty_like(together)
        ordered[[place for places, _ in found for place in places]] = together
        return ordered, ""

    def _run(self, images: NDArray[Any], numbers: list[int]) -> tuple[NDArray[Any], str]:
        outputs = self._session.run({self._manifest.input.name: images})
        logits, reason = outputs[self._manifest.output.name], ""
        if not np.array_equal(self._last, self._kept, equal_nan=True):
            reason = "the runtime overwrites the logits that it gave before: it gives its own buffer away"
        elif logits.dtype.kind not in "fiu":
            reason = f"it gives {logits.dtype} as logits"
        elif np.may_share_memory(logits, images):
            reason = "the runtime gives its input's memory back as logits"
        elif (probabilities := self._manifest.probabilities) is not None:
            reason = _wrong_probabilities(logits.astype(np.float64), outputs[probabilities.name])
            if not reason and self._manifest.resizing is not None:
                reason = self._wrong_preparation(
                    images, outputs[self._manifest.prepared_output.name], numbers
                )
        if not reason:
            self._last, self._kept = logits, logits.copy()
        return logits, reason

    def _wrong_preparation(
        self, images: NDArray[np.uint8], prepared: NDArray[Any], numbers: list[int]
    ) -> str:
        """Say what is wrong with what the file made of raw images; empty if nothing is."""
        if self._session.options.precision == "bfloat16":  # which cannot hold all grey levels once normalised
            return ""
        own, exact = self._manifest.preprocessing, not self._manifest.lossy
        moves, check, reason = moves_of(own, images, prepared, exact=exact)
        self._prepared = self._prepared.plus(check)
        if self._moves is not None and not reason:
            save_moves(self._moves, numbers, moves)
        return reason


def _moved(parts: Iterator[Part], batch: list[int], manifest: Manifest, folder: Path) -> Iterator[Part]:
    for places, prepared in parts:
        numbers = [batch[place] for place in places]
        yield places, with_moves(manifest.preprocessing, prepared, folder, numbers)


def _preparation(
    manifest: Manifest, computation: Computation
) -> Callable[[NDArray[np.uint8]], NDArray[Any]] | None:
    """Return what prepares raw images of one size; None if the file takes them as they are."""
    own, size = manifest.preprocessing, computation.size

    def prepare(images: NDArray[np.uint8]) -> NDArray[Any]:
        images = _resampled(images, size)
        if computation.precision != "float64":
            return manifest.prepared(images)
        return own(images, np.float64) if computation.from_raw else own(images).astype(np.float64)

    raw = manifest.takes_images and computation.precision != "float64" and size is None
    return None if raw else prepare


def _resampled(images: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resample raw images (batch, height, width, ...) by nearest neighbours; None leaves them as they are."""
    if size is None:
        return images
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, images.shape[1:3], strict=True))
    return images[:, rows[:, None], columns]


def _wrong_probabilities(logits: NDArray[np.float64], probabilities: NDArray[Any]) -> str:
    """Say what is wrong with a file's probabilities, which are the softmax of its logits; empty if nothing is."""
    if not np.isfinite(logits).all():
        return ""  # which is said when logits are compared
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    if probabilities.shape != expected.shape:
        return f"its probabilities are {probabilities.shape}, not {expected.shape}"
    error = float(np.abs(probabilities - expected).max())
    if error <= _PROBABILITY_ERROR:  # a NaN is no pass
        return ""
    return f"its probabilities are not the softmax of its logits: off by {error:.2g}, beyond {_PROBABILITY_ERROR:g}"


def _activations(session: Session, parts: Iterator[Part], folder: Path) -> list[Message]:
    """Save what modules compute in files: a large network's outputs for one image are some hundred megabytes."""
    name = session.artifact.require_manifest().input.name
    (order, images), *others = parts
    modules = session.activations({name: images})
    for places, more in others:  # of raw images of other sizes; what modules compute is of one size
        order = order + places
        modules = list(map(_joined, modules, session.activations({name: more})))
    saved: list[Message] = []
    for number, one in enumerate(modules):
        if one.values.dtype.kind in "fiu":  # else it holds no numbers to compare
            saved.append({"module": one.module, "kind": one.kind, "file": str(folder / f"{number}.npy")})
            values = one.values[np.argsort(order)] if others else one.values
            np.save(saved[-1]["file"], values, allow_pickle=False)
    return saved


def _joined(first: Activation, second: Activation) -> Activation:
    return replace(first, values=np.concatenate([first.values, second.values]))


if __name__ == "__main__":
    main(sys.argv[1])
