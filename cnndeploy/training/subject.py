"""What is trained: the network as its checkpoint will describe it, the weights that it starts from, and a trial."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.architectures._network import chosen_output, output_names
from cnndeploy.checkpoint import manifest_of
from cnndeploy.datasets import Data, Dataset
from cnndeploy.errors import ArtifactError, DataError, TrainingError
from cnndeploy.importing import trials
from cnndeploy.importing.families import Known, usual_preprocessing
from cnndeploy.importing.labels import MOST_CLASSES
from cnndeploy.importing.weights import Weights, fitted
from cnndeploy.sources import CLASSES, build, resolved
from cnndeploy.specs import Manifest
from cnndeploy.transforms import preprocessing_of

_SAFE_CHANNELS = 16  # see is_unsafe
# Weights of which less than half fits are those of another network.
_LEAST_KEPT = 0.5


@dataclass(frozen=True, slots=True)
class Subject:
    """A network that was tried out: how it is built, and the tensors by name that it starts from, none for fresh ones.

    ``layout`` is the memory format that it is trained in. ``notes`` say what was chosen or left out.
    """

    manifest: Manifest
    start: Mapping[str, torch.Tensor]
    layout: torch.memory_format
    notes: tuple[str, ...] = ()


def described(
    named: Known | None,
    arguments: Mapping[str, Any] | None,
    preprocessing: Any,
    data: Data | None,
    dataset: Dataset,
    like: Manifest | None,
) -> Manifest:
    """Describe the network that is to be trained on a data set, whose classes are its labels.

    Args:
        named: What is known of the network that the caller named; None to build it as ``like`` says.
        arguments: Of the factory; those of ``like`` by default.
        preprocessing: Whatever preprocessing_of() reads; by default that of ``like``, else what comes with the name.
        data: The data set as the caller named it.
        dataset: What was opened.
        like: What a training that is gone on with or repeated recorded; None if there is none.

    Raises:
        DataError: There are too few classes, or too many.
        ArtifactError, UnknownNameError: There is no such source.
    """
    labels = dataset.classes
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise DataError(
            f"{dataset.spec} has {len(labels):,} classes; a network is trained on 2 to {MOST_CLASSES:,}, with a folder "
            "of images for each"
        )
    recorded = None if data is None else os.fspath(data)
    if like is not None:
        counts = {name: len(like.labels) for name in CLASSES}  # the number of classes comes from the data
        own = {key: value for key, value in like.source.arguments.items() if counts.get(key) != value}
        arguments = own if arguments is None else arguments
        preprocessing = like.preprocessing if preprocessing is None else preprocessing
        recorded = recorded or like.data
    if named is not None:
        preprocessing = usual_preprocessing(named) if preprocessing is None else preprocessing
        name, source = resolved(named.name, {**named.arguments, **(arguments or {})}, len(labels))
    elif like is None or len(labels) != len(like.labels):
        raise TrainingError("name the network, and not only a checkpoint that was trained on other classes")
    else:
        name, source = like.architecture, like.source
    prepared = preprocessing_of(preprocessing)
    return manifest_of(name, source=source, preprocessing=prepared, labels=labels, data=recorded)


def tried(manifest: Manifest, weights: Weights | None) -> Subject:
    """Try a network out as it will be trained, and fit the weights that it starts from.

    Raise ArtifactError if it is no classifier that can be trained and deployed.
    """
    registered = manifest.architecture in ARCHITECTURES.names()
    own = registered and manifest.preprocessing == ARCHITECTURES.get(manifest.architecture).preprocessing
    if own and weights is None:
        return Subject(manifest, {}, torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        return _tried(replace(manifest, source=replace(manifest.source, output=None)), weights)


def _tried(manifest: Manifest, weights: Weights | None) -> Subject:
    bare = build(manifest.architecture, manifest.source)
    if not any(value.requires_grad for value in bare.parameters()):
        raise ArtifactError(f"{manifest.architecture} has no weights to train")
    start, notes = {}, tuple[str, ...]()
    if weights is not None:
        loaded = fitted(weights, bare, weights.origin, new_head=True)
        expected = bare.state_dict()
        if len(loaded.tensors) < _LEAST_KEPT * len(expected):
            raise ArtifactError(
                f"{len(loaded.tensors)} of the {len(expected)} tensors in {weights.origin} have the shapes of this "
                "network; the weights are those of another one"
            )
        start, notes = dict(loaded.tensors), loaded.notes
        bare.load_state_dict(start, strict=False)
    image = trials.sample(manifest.preprocessing)
    chosen, note = trials.output_of(bare.eval(), image, None)
    layout = layout_of(bare.train(), image, chosen)
    if chosen is not None:
        manifest = replace(manifest, source=replace(manifest.source, output=chosen))
        start = {f"network.{key}": value for key, value in start.items()}
        network = build(manifest.architecture, manifest.source)
        network.get_submodule("network").load_state_dict(bare.state_dict())
        bare = network
    trials.check_outputs(bare.eval(), image, len(manifest.labels))
    return Subject(manifest, start, layout, (*notes, *filter(None, [note])))


def layout_of(network: torch.nn.Module, image: torch.Tensor, output: str | None) -> torch.memory_format:
    """Return the memory format in which a network runs in training mode.

    Channels last is how both oneDNN and cuDNN compute convolutions best, but code that calls view() may not take it.
    """
    try:
        if any(is_unsafe(module) for module in network.modules()):
            raise ArtifactError("torch would end the process")
        logits_of(trials.run_on(network.to(memory_format=torch.channels_last), image), output)
        return torch.channels_last
    except ArtifactError:
        network.to(memory_format=torch.contiguous_format)
        logits_of(trials.run_on(network, image), output)
        return torch.contiguous_format


def is_unsafe(module: torch.nn.Module) -> bool:
    """Return whether oneDNN in torch 2.14 writes beyond its memory in this layer's backward pass in channels last.

    Found by trial: convolutions of one pixel, with a stride, of 2 to 12 channels; 1, 16 and 24 are safe.
    """
    return (
        isinstance(module, torch.nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and 1 < module.in_channels < _SAFE_CHANNELS
    )


def logits_of(outputs: Any, output: str | None) -> torch.Tensor:
    """Return the logits among what a network returns in training mode, where it may have more outputs.

    Those are by default called ``logits``, or are the first. Raise ArtifactError if there is no such output.
    """
    if torch.is_tensor(outputs):
        return outputs
    names = output_names(outputs)
    try:
        return chosen_output(outputs, output or ("logits" if "logits" in names else next(iter(names), "")))
    except LookupError as error:
        raise ArtifactError(
            f"in training mode the network returns {type(outputs).__name__}: {error}"
        ) from error
