"""The import of an ONNX file that another tool wrote: its own graph, with a manifest, as an ONNX file of ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact, sha256_of
from cnndeploy.certificate import remove_stale_certificate
from cnndeploy.datasets import Data, open_dataset
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.evaluation import evaluate
from cnndeploy.files import scratch_folder, write_file
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.importing import onnx_graph
from cnndeploy.importing.beside import labels_beside, preprocessing_beside
from cnndeploy.importing.doubts import doubts_of
from cnndeploy.importing.imported import Imported, check_output, looked_at
from cnndeploy.importing.labels import labels_of
from cnndeploy.importing.onnx_graph import Rewritten
from cnndeploy.importing.outputs import (
    BATCH,
    SPREAD,
    Compute,
    check_logits,
    check_transform,
    difference,
    sample,
)
from cnndeploy.machine import versions
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.progress import Progress
from cnndeploy.run import Run
from cnndeploy.runtimes import Session, open_session
from cnndeploy.runtimes._onnx_definition import DefinitionSession
from cnndeploy.specs import IMPORTED_ONNX, Manifest, TensorSpec
from cnndeploy.transforms import preprocessing_of

_RUN = Run("onnxruntime", "cpu")
_STEPS = ("Reading the file", "Trying it out")
# How far the rewritten graph may be from theirs, of the largest logit: it is the same, in batches of another size.
_SAME = 1e-5


def import_onnx(
    path: Path,
    output: str | os.PathLike[str],
    *,
    preprocessing: Any,
    labels: str | os.PathLike[str] | Iterable[str] | None,
    data: Data | None,
    images: int | None,
    output_name: str | None,
    overwrite: bool,
    progress: Progress,
) -> Imported:
    """Write an ONNX file of ours with the graph of somebody's; see :func:`cnndeploy.import_model`."""
    target = Path(output)
    if target.suffix != ".onnx":
        raise ArtifactError(f"an ONNX file is imported as an ONNX file; name the output {target.stem}.onnx")
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    check_output(target, [path], overwrite=overwrite)
    progress(0, len(_STEPS), _STEPS[0])
    original = onnx_graph.read(path)
    metadata = {entry.key: entry.value for entry in original.metadata_props}
    prepared, origin = _preprocessing(path, metadata, preprocessing)
    notes = [f"the preprocessing is that of {origin}"] if origin else []
    dataset = None if data is None else open_dataset(data)
    progress(1, len(_STEPS), _STEPS[1])
    with scratch_folder() as folder:
        made, error = _tried(original, prepared, output_name, folder / path.name)
        notes += made.notes
        count = made.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        names, origin = _labels(path, metadata, labels, () if dataset is None else dataset.classes, count)
        notes += [f"the labels are those of {origin}"] if origin else []
        facts: dict[str, Any] = {"imported": {"file": path.name, "sha256": sha256_of(path)}}
        manifest = _manifest(path, made, names, facts, data)
        trial = _written(folder / target.name, made.model, manifest)
        shown = [f"computes what {path.name} computes, {_in_words(error)}"]
        measured, doubts = None, tuple[str, ...]()
        with open_session(trial, _RUN) as session:
            compute = _computing(session)
            check_logits(compute, sample(made.preprocessing), len(names))
            shown += ["treats each image by itself", f"returns logits of {len(names)} classes"]
            doubts += _other_than_defined(trial, compute)
            if dataset is not None:
                test = looked_at(dataset, made.preprocessing, names, images)
                if callable(preprocessing) and not isinstance(preprocessing, Preprocessing):
                    shown.append(check_transform(preprocessing, made.preprocessing, test))
                measured = evaluate(trial, data=dataset.spec, images=images, progress=progress)
                doubts += tuple(doubts_of(measured, compute, made.preprocessing, test))
        if measured is not None:
            facts |= {"test_accuracy": measured.accuracy, "test_images": measured.images}
            manifest = replace(manifest, training=facts)
        artifact = _written(target, made.model, manifest)
    remove_stale_certificate(target)
    if measured is not None:  # of the same graph, in a file for the trial
        measured = replace(measured, artifact=str(target), sha256=artifact.sha256)
    parameters = sum(int(np.prod(each.dims)) for each in made.model.graph.initializer if each.dims)
    return Imported(artifact, len(names), parameters, tuple(notes), tuple(shown), doubts, measured)


def _preprocessing(path: Path, metadata: Mapping[str, str], given: Any) -> tuple[Preprocessing, str]:
    if given is not None:
        return preprocessing_of(given), ""
    found, origin = preprocessing_beside(path, metadata)
    if found is None:
        raise ArtifactError(
            f"how images are prepared for {path} is not known; pass it: preprocessing='prep.json'"
        )
    return found, origin


def _labels(
    path: Path,
    metadata: Mapping[str, str],
    given: str | os.PathLike[str] | Iterable[str] | None,
    of_data: tuple[str, ...],
    count: int,
) -> tuple[tuple[str, ...], str]:
    if given is not None:
        return labels_of(given), ""
    found, origin = labels_beside(path, metadata)
    if found is not None and len(found) != count:
        raise ArtifactError(
            f"{path} tells {count} classes apart, and {origin} has {len(found)} labels; say them with "
            "labels='names.txt'"
        )
    if found is not None:
        return found, origin
    if not of_data:
        raise ArtifactError(
            f"the labels of {path}, which tells {count} classes apart, are not known; pass them: labels='names.txt', "
            "or data='photos'"
        )
    return of_data, "the data's folders"


def _tried(
    original: onnx.ModelProto, preprocessing: Preprocessing, output: str | None, scratch: Path
) -> tuple[Rewritten, float]:
    """Return the rewritten graph, and how far its outputs on a batch of noise are from those of the original.

    First all reshapes stay as they are. If the graph then cannot run a batch, those to a fixed batch size are freed.
    ``scratch`` is a file to write to.
    """
    first: CnndeployError | None = None
    try:
        # before anything else, for ONNX Runtime refuses graphs that are none
        with _opened(scratch, original) as session:
            for free_reshapes in (False, True):
                try:
                    made = onnx_graph.rewritten(original, preprocessing, output, free_reshapes=free_reshapes)
                    return made, _compared(session, made, scratch.with_name(f"rewritten-{scratch.name}"))
                except CnndeployError as error:
                    first = first or error
        assert first is not None  # noqa: S101 - there were two attempts
        raise first
    except CnndeployError as error:  # which names it as the user does
        told = str(error).replace(f"{scratch.parent}{os.sep}", "")
        raise ArtifactError(told.replace(f"rewritten-{scratch.name}", scratch.name)) from error


def _compared(original: Session, made: Rewritten, scratch: Path) -> float:
    """Finish the rewritten graph, and return how far its outputs are from theirs; raise ArtifactError if too far."""
    # more than its fixed batch, which may be written into it
    images = sample(made.preprocessing, max(BATCH, (made.taken.batch or 1) + 1))
    theirs = _theirs(original, made, images)
    (given,), (output,) = made.model.graph.input, made.model.graph.output
    try:
        with _opened(scratch, made.model) as session:
            logits = session.run({given.name: images})[output.name]
    except CnndeployError as error:
        raise ArtifactError(
            f"it cannot be run on a batch of {len(images)}; export it with a free batch axis ({str(error).strip()})"
        ) from error
    classes = theirs.shape[1]
    if logits.shape[:1] != (len(images),) or logits.size != theirs.size or logits.dtype.kind != "f":
        raise ArtifactError(
            f"on a batch of {len(images)} it returns {logits.dtype} {logits.shape}, and {classes} numbers on one "
            "image; export it with a free batch axis"
        )
    onnx_graph.finish(made.model, logits.dtype, logits.shape, classes)
    off = difference(_behind(logits.reshape(theirs.shape), made.softmax), theirs)
    half = any(each.data_type == onnx.TensorProto.FLOAT16 for each in made.model.graph.initializer)
    if off > (SPREAD if half or logits.dtype == np.float16 else _SAME):
        raise ArtifactError(
            f"on a batch of {len(images)} it computes something else than the original on each image, by {off:.2g} of "
            "the largest output; export it with a free batch axis"
        )
    return off


def _theirs(original: Session, made: Rewritten, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what the original computes for images, (images, classes), in batches of its own size, else alone."""
    size, rows = made.taken.batch or 1, list[NDArray[Any]]()
    for start in range(0, len(images), size):
        places = np.arange(start, start + size) % len(images)
        returned: Any = original.run({made.taken.name: made.taken.of(images[places])})[made.output]
        # a file of anybody may return a list, text, or another number of values each time
        if not isinstance(returned, np.ndarray) or returned.dtype.kind != "f" or returned.size % size:
            raise ArtifactError(f"its output {made.output} is not logits, float (batch, classes)")
        rows += list(returned.reshape(size, returned.size // size))
    if len({row.size for row in rows}) > 1:
        raise ArtifactError(f"its output {made.output} has another length for each image")
    return np.stack(rows[: len(images)]).astype(np.float64)


def _behind(logits: NDArray[Any], softmax: str) -> NDArray[np.float64]:
    """Return what the original makes of these logits, (images, classes), with the operator that was removed."""
    values: NDArray[np.float64] = logits.astype(np.float64)
    if not softmax:
        return values
    shifted = values - values.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    returned: NDArray[np.float64] = logarithms if softmax == "LogSoftmax" else np.exp(logarithms)
    return returned


def _other_than_defined(trial: Artifact, compute: Compute) -> tuple[str, ...]:
    """Say so if ONNX Runtime computes something else of one image than the definition of ONNX's operators does."""
    manifest = trial.require_manifest()
    image = sample(manifest.preprocessing)[:1]
    try:
        with DefinitionSession(trial, _RUN) as session:
            exact = session.run({manifest.input.name: image.astype(np.float64)})[manifest.output.name]
    except CnndeployError:  # an operator that it does not know, or a file in float16
        return ()
    error = difference(compute(image), exact)
    if error <= SPREAD:
        return ()
    return (
        f"ONNX Runtime computes something else than the definition of ONNX's operators, by {error:.2g} of the largest "
        "logit: one of the two is wrong. Compare its accuracy with the one that you know",
    )


def _manifest(
    path: Path, made: Rewritten, labels: tuple[str, ...], facts: Mapping[str, Any], data: Data | None
) -> Manifest:
    (given,), (output,) = made.model.graph.input, made.model.graph.output
    return Manifest(
        architecture=f"{IMPORTED_ONNX}{path.stem}",
        input=TensorSpec(given.name, "float32", ("batch", *made.preprocessing.shape)),
        output=TensorSpec(output.name, "float32", ("batch", len(labels))),
        preprocessing=made.preprocessing,
        labels=labels,
        training=facts,
        versions=versions(),
        data=None if data is None else os.fspath(data),
    )


def _written(path: Path, model: onnx.ModelProto, manifest: Manifest) -> Artifact:
    """Write the graph with a manifest, and keep the original's metadata; the same two make the same bytes."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**properties, MANIFEST_KEY: manifest.to_json()})
    write_file(path, model.SerializeToString(deterministic=True))
    return Artifact.open(path)


def _opened(path: Path, model: onnx.ModelProto) -> Session:
    path.write_bytes(model.SerializeToString())
    return open_session(Artifact.open(path), _RUN)


def _computing(session: Session) -> Compute:
    (given,), (output,) = session.inputs, session.outputs
    return lambda images: session.run({given.name: images})[output.name]


def _in_words(error: float) -> str:
    return f"to {error:.1g} of the largest output" if error else "bit for bit"
