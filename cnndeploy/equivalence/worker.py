"""The worker process: opens one artifact and gives its logits. ``python -m cnndeploy.equivalence.worker``.

For an ONNX file nothing here loads torch: the artifact is run as an app would run it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from cnndeploy import data
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.machine import patient_threads
from cnndeploy.process import Message, serve
from cnndeploy.runtimes import Session, open_session


def main(path: str, runtime: str, device: str, threads: str, data_dir: str) -> None:
    """Say what was opened and how, then answer each request, batch by batch, with logits.

    A request names batches as lists of image numbers in the test set, and the ``precision``: ``float32``, the
    artifact's own, or ``float64``, the oracle's, for checkpoints.
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
                    yield from _run(session, images, request["batches"])
                else:
                    from cnndeploy.runtimes.eager import open_oracle

                    with open_oracle(artifact, threads=int(threads)) as oracle:
                        yield from _run(oracle, images, request["batches"])

    with patient_threads():
        serve(path, answers)


def _run(session: Session, images: NDArray[np.uint8], batches: list[list[int]]) -> Iterator[Message]:
    manifest = session.artifact.require_manifest()
    for batch in batches:
        feeds = {manifest.input.name: manifest.preprocessing(images[batch])}
        try:
            logits = session.run(feeds)[manifest.output.name]
        except (ArtifactError, InputMismatchError) as error:
            yield {"failed": f"it fails on a batch of {len(batch)}: {error}"}
            return
        yield {"dtype": str(logits.dtype), "logits": logits.tolist()}


if __name__ == "__main__":
    main(*sys.argv[1:])
