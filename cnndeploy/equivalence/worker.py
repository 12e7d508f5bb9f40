"""The worker process: opens one artifact and gives its logits. ``python -m cnndeploy.equivalence.worker``.

For an ONNX file nothing here loads torch: the artifact is run as an app would run it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.machine import patient_threads
from cnndeploy.process import Message, serve
from cnndeploy.runtimes import Activation, Arrays, RuntimeOptions, Session, open_session
from cnndeploy.specs import Manifest

# Some roundings of float32, of numbers that are at most 1.
_PROBABILITY_ERROR = 1e-6


def main(path: str, runtime: str, device: str, threads: str, maths: str, data_dir: str, options: str) -> None:
    """Say what was opened and how, then answer each request, batch by batch, with logits.

    A request names batches as lists of image numbers in the test set, perhaps a ``size``, height and width that the
    raw images are first resampled to, and the ``precision``: ``float32``, the artifact's own, or for checkpoints
    ``tf32`` or ``float64``, the oracle's, with the ``weights`` rounded to a dtype first, and if it is ``from_raw`` with
    the images prepared in float64 too. A checkpoint is ``simplified`` first, as exporters do, if a request says so. A
    request with a ``folder`` is answered with what each module gives for its one batch, in files there.
    """

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        artifact = Artifact.open(path)
        images = data.load("test", data_dir or None).images
        opened = open_session(
            artifact,
            runtime=runtime,
            device=device,
            threads=int(threads),
            tf32=maths == "tf32",
            options=RuntimeOptions.of(json.loads(options)),
        )
        with opened as session:
            yield {
                "sha256": artifact.sha256,
                "device": session.device,
                "inputs": [asdict(spec) for spec in session.inputs],
                "outputs": [asdict(spec) for spec in session.outputs],
                "placement": session.placement(),
                "settings": session.settings(),
            }
            for request in requests:
                with _as_asked(session, request) as asked:
                    yield from _answer(asked, images, request)

    with patient_threads():
        serve(path, answers)


def _as_asked(session: Session, request: Message) -> contextlib.AbstractContextManager[Session]:
    """The session in the precision that a request asks for; one opened for it is closed after it."""
    simplified = request.get("simplified", False)
    if request["precision"] == "float32" and not simplified:
        return contextlib.nullcontext(session)
    from cnndeploy.runtimes.eager import open_oracle, open_simplified, open_tf32

    artifact, threads = session.artifact, session.threads
    if request["precision"] == "float32":
        return open_simplified(artifact, threads=threads)
    if request["precision"] == "tf32":
        return open_tf32(artifact, threads=threads, simplified=simplified)
    return open_oracle(artifact, threads=threads, weights=request["weights"], simplified=simplified)


def _answer(session: Session, images: NDArray[np.uint8], request: Message) -> Iterator[Message]:
    manifest = session.artifact.require_manifest()
    last = kept = np.empty(0)
    for batch in request["batches"]:
        image = _prepared(_resampled(images[batch], request.get("size")), manifest, request)
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
        if logits.dtype.kind not in "fiu":
            yield {"failed": f"it gives {logits.dtype} as logits"}
            return
        if np.may_share_memory(logits, image):
            yield {"failed": "the runtime gives its input's memory back as logits"}
            return
        if not np.array_equal(last, kept, equal_nan=True):
            yield {
                "failed": "the runtime overwrites the logits that it gave before: it gives its own buffer away"
            }
            return
        if reason := _wrong_probabilities(outputs, manifest):
            yield {"failed": reason}
            return
        last, kept = logits, logits.copy()
        yield {"dtype": str(logits.dtype), "logits": logits.tolist()}


def _prepared(images: NDArray[np.uint8], manifest: Manifest, request: Message) -> NDArray[Any]:
    if request["precision"] != "float64":
        return manifest.prepared(images)
    if request["from_raw"]:
        return manifest.preprocessing(images, np.float64)
    return manifest.preprocessing(images).astype(np.float64)


def _resampled(images: NDArray[np.uint8], size: list[int] | None) -> NDArray[np.uint8]:
    """Raw images (batch, height, width) of another size, by nearest neighbours; None leaves them as they are."""
    if size is None:
        return images
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, images.shape[1:], strict=True))
    return images[:, rows[:, None], columns]


def _wrong_probabilities(outputs: Arrays, manifest: Manifest) -> str | None:
    """What is wrong with a file's probabilities, where it gives any: they are the softmax of its logits."""
    if manifest.probabilities is None:
        return None
    logits = outputs[manifest.output.name].astype(np.float64)
    if not np.isfinite(logits).all():
        return None  # which is said where logits are compared
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    given = outputs[manifest.probabilities.name]
    if given.shape != expected.shape:
        return f"its probabilities are {given.shape}, not {expected.shape}"
    error = float(np.abs(given - expected).max())
    if error <= _PROBABILITY_ERROR:  # a NaN is no pass
        return None
    return f"its probabilities are not the softmax of its logits: off by {error:.2g}, beyond {_PROBABILITY_ERROR:g}"


def _saved(activations: Sequence[Activation], folder: Path) -> list[Message]:
    """Too large for a line of JSON: a large network's outputs for one image are some hundred megabytes."""
    found = []
    for number, activation in enumerate(activations):
        if activation.values.dtype.kind not in "fiu":  # no numbers to compare
            continue
        path = folder / f"{number}.npy"
        np.save(path, activation.values, allow_pickle=False)
        found.append({"module": activation.module, "kind": activation.kind, "file": str(path)})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
