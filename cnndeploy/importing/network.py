"""The import of a network in PyTorch, with its weights, preprocessing and labels, into a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.checkpoint import Checkpoint, fill, manifest_of
from cnndeploy.datasets import Data, Dataset, open_dataset
from cnndeploy.datasets.fashion_mnist import LABELS
from cnndeploy.errors import ArtifactError
from cnndeploy.evaluation import Evaluation, evaluate
from cnndeploy.files import scratch_folder
from cnndeploy.importing import trials
from cnndeploy.importing.doubts import doubts_of
from cnndeploy.importing.families import Known, known_of
from cnndeploy.importing.imported import Imported, check_output, looked_at
from cnndeploy.importing.labels import labels_of
from cnndeploy.importing.outputs import check_transform
from cnndeploy.importing.weights import Weights, fitted, weights_of
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.progress import Progress
from cnndeploy.sources import build, is_users, named_factory, remember, resolved
from cnndeploy.specs import Manifest
from cnndeploy.transforms import preprocessing_of

_STEPS = ("Building the network", "Trying it out", "Exporting it for a trial")


def import_network(
    network: str | torch.nn.Module,
    output: str | os.PathLike[str],
    *,
    source: str | None,
    arguments: Mapping[str, Any] | None,
    weights: str | os.PathLike[str] | None,
    preprocessing: Any,
    labels: str | os.PathLike[str] | Iterable[str] | None,
    data: Data | None,
    images: int | None,
    output_name: str | None,
    overwrite: bool,
    progress: Progress,
) -> Imported:
    """Write a checkpoint of a network in PyTorch; see :func:`cnndeploy.import_model`."""
    path = Path(output)
    check_output(path, [] if weights is None else [weights], overwrite=overwrite)
    progress(0, len(_STEPS), _STEPS[0])
    known = known_of(_name_of(network, source))
    named_factory(known.name)  # a wrong name is said before what else is missing
    dataset = None if data is None else open_dataset(data)
    manifest = _described(known, arguments, preprocessing, labels, dataset)
    manifest = replace(manifest, data=None if data is None else os.fspath(data))
    read = _weights(network, known, weights)
    checkpoint, notes = _loaded(manifest, read, weights or known.name, output_name)
    progress(1, len(_STEPS), _STEPS[1])
    rebuilt = checkpoint.network()  # by what it records alone
    shown = _tried(checkpoint.manifest, rebuilt, network)
    test = None if dataset is None else looked_at(dataset, manifest.preprocessing, manifest.labels, images)
    if callable(preprocessing) and not isinstance(preprocessing, Preprocessing):
        if test is None:
            notes = (
                *notes,
                "your transform was not compared with the preprocessing, because there is no data",
            )
        else:
            shown.append(check_transform(preprocessing, manifest.preprocessing, test))
    progress(2, len(_STEPS), _STEPS[2])
    measured = None
    with scratch_folder() as folder:
        trial = checkpoint.save(Path(folder, path.name))
        trials.check_export(trial.path)
        shown.append("can be exported with a free batch axis")
        if dataset is not None:
            measured = evaluate(trial, data=dataset.spec, images=images, progress=progress)
    doubts: tuple[str, ...] = ()
    if test is not None and measured is not None:
        checkpoint = _with_accuracy(checkpoint, measured)
        doubts = tuple(doubts_of(measured, trials.computing(rebuilt), manifest.preprocessing, test))
    artifact = checkpoint.save(path)
    if measured is not None:  # of the same network, in a file for the trial
        measured = replace(measured, artifact=str(path), sha256=artifact.sha256)
    if is_users(manifest.architecture):
        remember(manifest.architecture, checkpoint.manifest.source)
    parameters = sum(value.numel() for value in rebuilt.parameters())
    return Imported(artifact, len(manifest.labels), parameters, notes, tuple(shown), doubts, measured)


def _name_of(network: str | torch.nn.Module, source: str | None) -> str:
    if isinstance(network, str):
        if source is not None:
            raise ArtifactError(f"the network is named already, {network}; leave out source")
        return network
    if not isinstance(network, torch.nn.Module):
        raise ArtifactError(
            f"expected a torch.nn.Module or the name of a source, got {type(network).__name__}"
        )
    if source is None:
        raise ArtifactError(
            "a checkpoint holds no code, so say what builds such a network: source='mymodel.py:build', for example"
        )
    return source


def _described(
    known: Known,
    arguments: Mapping[str, Any] | None,
    preprocessing: Any,
    labels: str | os.PathLike[str] | Iterable[str] | None,
    dataset: Dataset | None,
) -> Manifest:
    """Return the manifest of a network as the caller and its name describe it."""
    prepared = known.preprocessing if preprocessing is None else preprocessing_of(preprocessing)
    if prepared is None:
        raise ArtifactError(
            f"how images are prepared for {known.name} is not known; pass it: preprocessing='prep.json'"
        )
    names = _labels(known, dataset) if labels is None else labels_of(labels)
    given = {**known.arguments, **(arguments or {})}
    name, source = resolved(known.name, given, len(names))
    return manifest_of(name, source=source, preprocessing=prepared, labels=names)


def _labels(known: Known, dataset: Dataset | None) -> tuple[str, ...]:
    """Return the labels of the weights if these came with the name, else the data's, else what the name suggests."""
    of_weights = known.labels if known.weights is not None else None
    suggested = LABELS if known.name in ARCHITECTURES.names() else known.labels
    labels = of_weights or (dataset is not None and dataset.classes) or suggested
    if not labels:
        raise ArtifactError(
            f"the labels of {known.name} are not known; pass them: labels='names.txt', or data='photos'"
        )
    return labels


def _weights(network: str | torch.nn.Module, known: Known, path: str | os.PathLike[str] | None) -> Weights:
    """Return the weights of the network that was passed, or of the file, or those that come with the name."""
    if isinstance(network, torch.nn.Module):
        if path is not None:
            raise ArtifactError("the network that was passed has weights; leave out the file")
        return Weights(
            {key: value.detach().cpu() for key, value in network.state_dict().items()}, "in memory"
        )
    read = weights_of(known, path)
    if read is None:
        raise ArtifactError(
            f"{known.name} needs weights; pass a file of torch.save or of safetensors: weights='best.pth'"
        )
    return read


def _loaded(
    manifest: Manifest, read: Weights, path: object, output_name: str | None
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint of a network with these weights, and sentences on what was done for it."""
    bare = build(manifest.architecture, manifest.source).eval()
    weights = fitted(read, bare, path)
    fill(bare, weights.tensors)
    chosen, note = trials.output_of(bare, trials.sample(manifest.preprocessing), output_name)
    network = bare
    if chosen is not None:
        manifest = replace(manifest, source=replace(manifest.source, output=chosen))
        network = build(manifest.architecture, manifest.source)
        fill(network.get_submodule("network"), weights.tensors)
    facts = {"imported": {"weights": read.origin, "sha256": read.sha256}}
    return Checkpoint.of(manifest, network, facts), (*weights.notes, *filter(None, [note]))


def _with_accuracy(checkpoint: Checkpoint, measured: Evaluation) -> Checkpoint:
    facts = {"test_accuracy": measured.accuracy, "test_images": measured.images}
    training = {**checkpoint.manifest.training, **facts}
    return replace(checkpoint, manifest=replace(checkpoint.manifest, training=training))


def _tried(manifest: Manifest, rebuilt: torch.nn.Module, network: str | torch.nn.Module) -> list[str]:
    """Try out the network that the checkpoint builds; return what was shown."""
    image = trials.sample(manifest.preprocessing)
    trials.check_outputs(rebuilt, image, len(manifest.labels))
    shown = [
        "is deterministic in eval mode",
        "treats each image by itself",
        f"returns logits of {len(manifest.labels)} classes",
    ]
    if isinstance(network, torch.nn.Module):
        trials.check_same(network, rebuilt, image, manifest.source.output)
        shown.append("computes what the network that was passed computes")
    return shown
