"""The worker process: opens one candidate and gives its logits. ``python -m cnndeploy.verification.worker``.

For an ONNX file nothing here loads torch: the artifact is run as an app would run it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.machine import patient_threads
from cnndeploy.process import Message, serve
from cnndeploy.run import Run
from cnndeploy.runtimes import Activation, Session, open_session
from cnndeploy.serial import jsonable, structure
from cnndeploy.specs import Manifest
from cnndeploy.verification.reference import Computation

# Some roundings of float32, of numbers that are at most 1.
_PROBABILITY_ERROR = 1e-6


def main(subject: str) -> None:
    """Say what was opened and how, then answer each request, batch by batch, with logits.

    The first request names the artifact, how it is run, and the folder of the data set. Each further one names batches
    as lists of image numbers in the test set and a :class:`Computation`. A request with a ``folder`` is answered with
    what each module computes for its one batch, in files there.
    """

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        first = next(requests)
        artifact = structure(Artifact, {**first["artifact"], "path": Path(first["artifact"]["path"])})
        images = fashion_mnist.load("test", first["data_dir"]).images
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
    from cnndeploy.runtimes.eager import EagerSession

    if not isinstance(session, EagerSession):
        raise ArtifactError(f"{session.artifact.path} is no checkpoint; it computes only what is in the file")
    precision, weights = computation.precision, computation.weights
    return session.computed(precision, weights=weights, simplified=computation.simplified)


def _answer(
    session: Session, computation: Computation, images: NDArray[np.uint8], request: Message
) -> Iterator[Message]:
    manifest = session.artifact.require_manifest()
    last = kept = np.empty(0)
    for batch in request["batches"]:
        image = _prepared(_resampled(images[batch], computation.size), manifest, computation)
        feeds = {manifest.input.name: image}
        try:
            if "folder" in request:
                yield {"activations": _saved(session.activations(feeds), Path(request["folder"]))}
                continue
            outputs = session.run(feeds)
            logits = outputs[manifest.output.name]
        except (ArtifactError, InputMismatchError) as error:
            yield {"failed": f"it fails on a batch of {len(batch)}: {error}"}
            return
        reason = ""
        if not np.array_equal(last, kept, equal_nan=True):
            reason = "the runtime overwrites the logits that it gave before: it gives its own buffer away"
        elif logits.dtype.kind not in "fiu":
            reason = f"it gives {logits.dtype} as logits"
        elif np.may_share_memory(logits, image):
            reason = "the runtime gives its input's memory back as logits"
        elif manifest.probabilities is not None:
            reason = _wrong_probabilities(logits.astype(np.float64), outputs[manifest.probabilities.name])
        if reason:
            yield {"failed": reason}
            return
        last, kept = logits, logits.copy()
        yield {"logits": logits}


def _prepared(images: NDArray[np.uint8], manifest: Manifest, computation: Computation) -> NDArray[Any]:
    if computation.precision != "float64":
        return manifest.prepared(images)
    if computation.from_raw:
        return manifest.preprocessing(images, np.float64)
    return manifest.preprocessing(images).astype(np.float64)


def _resampled(images: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resample raw images (batch, height, width) by nearest neighbours; None leaves them as they are."""
    if size is None:
        return images
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, images.shape[1:], strict=True))
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


def _saved(activations: Sequence[Activation], folder: Path) -> list[Message]:
    """Save what modules computed in files: a large network's outputs for one image are some hundred megabytes."""
    saved = []
    for number, one in enumerate(activations):
        if one.values.dtype.kind in "fiu":  # else it holds no numbers to compare
            saved.append({"module": one.module, "kind": one.kind, "file": str(folder / f"{number}.npy")})
            np.save(saved[-1]["file"], one.values, allow_pickle=False)
    return saved


if __name__ == "__main__":
    main(sys.argv[1])
