"""The worker process: opens one artifact and gives its logits. ``python -m cnndeploy.equivalence.worker``.

For an ONNX file nothing here loads torch: the artifact is run as an app would run it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.machine import patient_threads
from cnndeploy.process import Message, serve
from cnndeploy.runtimes import Activation, Session, open_session


def main(path: str, runtime: str, device: str, threads: str, data_dir: str) -> None:
    """Say what was opened and how, then answer each request, batch by batch, with logits.

    A request names batches as lists of image numbers in the test set, and the ``precision``: ``float32``, the
    artifact's own, or ``float64``, the oracle's, for checkpoints, whose ``weights`` are rounded to a dtype
    first. A request with a ``folder`` is answered with what each module gives for its one batch, in files there.
    """

    def answers(requests: Iterator[Message]) -> Iterator[Message]:
        artifact = Artifact.open(path)
        images = data.load("test", data_dir or None).images
        with open_session(artifact, runtime=runtime, device=device, threads=int(threads)) as session:
            yield {
                "sha256": artifact.sha256,
                "device": session.device,
                "inputs": [asdict(spec) for spec in session.inputs],
                "outputs": [asdict(spec) for spec in session.outputs],
                "placement": session.placement(),
                "settings": session.settings(),
            }
            for request in requests:
                if request["precision"] == "float32":
                    yield from _answer(session, images, request)
                else:
                    from cnndeploy.runtimes.eager import open_oracle

                    with open_oracle(artifact, threads=int(threads), weights=request["weights"]) as oracle:
                        yield from _answer(oracle, images, request)

    with patient_threads():
        serve(path, answers)


def _answer(session: Session, images: NDArray[np.uint8], request: Message) -> Iterator[Message]:
    manifest = session.artifact.require_manifest()
    last = kept = np.empty(0)
    for batch in request["batches"]:
        image = manifest.preprocessing(images[batch])
        feeds = {manifest.input.name: image}
        try:
            if "folder" in request:
                yield {"activations": _saved(session.activations(feeds), Path(request["folder"]))}
                continue
            logits = session.run(feeds)[manifest.output.name]
        except (ArtifactError, InputMismatchError) as error:
            yield {"failed": f"it fails on a batch of {len(batch)}: {error}"}
            return
        if np.may_share_memory(logits, image):
            yield {"failed": "the runtime gives its input's memory back as logits"}
            return
        if not np.array_equal(last, kept, equal_nan=True):
            yield {
                "failed": "the runtime overwrites the logits that it gave before: it gives its own buffer away"
            }
            return
        last, kept = logits, logits.copy()
        yield {"dtype": str(logits.dtype), "logits": logits.tolist()}


def _saved(activations: Sequence[Activation], folder: Path) -> list[Message]:
    """Too large for a line of JSON: a large network's outputs for one image are some hundred megabytes."""
    found = []
    for number, activation in enumerate(activations):
        path = folder / f"{number}.npy"
        np.save(path, activation.values, allow_pickle=False)
        found.append({"module": activation.module, "kind": activation.kind, "file": str(path)})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
