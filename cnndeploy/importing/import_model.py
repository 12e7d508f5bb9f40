"""import_model: a network of somebody, with its weights, preprocessing and labels, to a checkpoint."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint, manifest_of
from cnndeploy.datasets.fashion_mnist import LABELS
from cnndeploy.errors import ArtifactError
from cnndeploy.files import check_writable
from cnndeploy.importing import proofs
from cnndeploy.importing.families import Known, known_of
from cnndeploy.importing.labels import labels_of
from cnndeploy.importing.weights import Weights, fitted, weights_of
from cnndeploy.progress import Progress, silent
from cnndeploy.serial import jsonable
from cnndeploy.sources import build, is_users, remember, resolved
from cnndeploy.specs import Manifest
from cnndeploy.transforms import preprocessing_of

_STEPS = ("Building the network", "Trying it out", "Exporting it for a trial")


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made: the checkpoint, and sentences on what was changed (``notes``) and shown (``proofs``)."""

    artifact: Artifact
    classes: int
    parameters: int
    notes: tuple[str, ...] = ()
    proofs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return dict(jsonable(self))


def import_model(
    network: str | torch.nn.Module,
    output: str | os.PathLike[str],
    *,
    source: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Any = None,
    labels: str | os.PathLike[str] | Iterable[str] | None = None,
    output_name: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Imported:
    """Write a checkpoint of a network of your own, after it was tried out.

    It must be a classifier. It takes images as ``preprocessing`` prepares them, float32 (batch, channels, height,
    width), and returns logits, float32 (batch, classes). What the checkpoint records is shown first: the network can
    be built again from its source, is deterministic in eval mode, treats each image by itself, tells as many classes
    apart as there are labels, and can be exported with a free batch axis.

    Args:
        network: The name of its source: an architecture of cnndeploy, ``torchvision:NAME`` or
            ``torchvision:NAME@WEIGHTS``, ``timm:NAME``, ``timm:FOLDER`` as timm saves one, ``package.module:factory``
            or ``path/to/file.py:factory``. Or the network itself, whose weights are taken; then ``source`` names the
            function that makes such a network, for a checkpoint holds no code.
        output: The checkpoint file.
        source: Names the source of a network that is given itself.
        arguments: Keyword arguments of the factory. The number of classes is filled in if the factory takes it.
        weights: A file of torch.save, or of safetensors.
        preprocessing: Whatever :func:`cnndeploy.preprocessing_of` reads; by default what comes with the name.
        labels: The labels in the order of the outputs, or a text or JSON file of them; by default what comes with the
            name.
        output_name: Which of several outputs are the logits: a key, a field, or a number from 0.
        overwrite: Replace ``output``.
        progress: Called with the steps that are done, of how many, and what is done next.

    Raises:
        ArtifactError: Something does not fit; the message says what.
        UnknownNameError, MissingDependencyError: There is no such source, or it needs a package.

    >>> made = cnndeploy.import_model("lenet", "again.pt", weights="lenet.pt", overwrite=True)
    >>> made.classes, made.artifact.require_manifest().architecture
    (10, 'lenet')
    """
    path = Path(output)
    _check_output(path, weights, overwrite)
    progress(0, len(_STEPS), _STEPS[0])
    known = known_of(_name_of(network, source))
    manifest = _described(known, arguments, preprocessing, labels)
    read = _weights(network, known, weights)
    bare = build(manifest.architecture, manifest.source).eval()
    loaded = fitted(read, bare, weights or manifest.architecture)
    bare.load_state_dict(loaded.tensors)
    progress(1, len(_STEPS), _STEPS[1])
    image = proofs.sample(manifest.preprocessing)
    chosen, note = proofs.output_of(bare, image, output_name)
    manifest = replace(manifest, source=replace(manifest.source, output=chosen))
    facts = {"imported": {"weights": read.origin, "sha256": read.sha256}}
    checkpoint = Checkpoint.of(manifest, bare if chosen is None else _one_output(manifest, bare), facts)
    shown = _proved(checkpoint, image, network)
    progress(2, len(_STEPS), _STEPS[2])
    with tempfile.TemporaryDirectory() as folder:
        proofs.check_export(checkpoint.save(Path(folder, "model.pt")).path)
    artifact = checkpoint.save(path)
    if is_users(manifest.architecture):
        remember(manifest.architecture, manifest.source)
    progress(3, len(_STEPS), "Done")
    parameters = sum(value.numel() for value in bare.parameters())
    notes = (*loaded.notes, *filter(None, [note]))
    return Imported(
        artifact, len(manifest.labels), parameters, notes, (*shown, "can be exported with a free batch axis")
    )


def _check_output(path: Path, weights: str | os.PathLike[str] | None, overwrite: bool) -> None:
    check_writable(path, *([] if weights is None else [weights]))
    if path.exists() and path.stat().st_size and not overwrite:
        raise ArtifactError(
            f"{path} exists. Import with overwrite=True to replace it, or choose another output."
        )


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
) -> Manifest:
    """Return the manifest of a network as the caller and its name describe it."""
    prepared = known.preprocessing if preprocessing is None else preprocessing_of(preprocessing)
    if prepared is None:
        raise ArtifactError(
            f"how images are prepared for {known.name} is not known; pass preprocessing, as its evaluation does it"
        )
    names = known.labels if labels is None else labels_of(labels)
    if names is None and known.name in ARCHITECTURES.names():
        names = LABELS
    if names is None:
        raise ArtifactError(
            f"the labels of {known.name} are not known; pass labels, in the order of the outputs"
        )
    given = {**known.arguments, **(arguments or {})}
    name, source = resolved(known.name, given, len(names))
    return manifest_of(name, source=source, preprocessing=prepared, labels=names)


def _weights(network: str | torch.nn.Module, known: Known, path: str | os.PathLike[str] | None) -> Weights:
    """Return the weights of the network in hand, of the file, or what comes with the name."""
    if isinstance(network, torch.nn.Module):
        if path is not None:
            raise ArtifactError("the network that was passed has weights; leave out the file")
        return Weights(
            {key: value.detach().cpu() for key, value in network.state_dict().items()}, "in memory"
        )
    read = weights_of(known, path)
    if read is None:
        raise ArtifactError(f"pass weights, a file of torch.save or of safetensors, for {known.name}")
    return read


def _one_output(manifest: Manifest, bare: torch.nn.Module) -> torch.nn.Module:
    network = build(manifest.architecture, manifest.source).eval()
    network.get_submodule("network").load_state_dict(bare.state_dict())
    return network


def _proved(checkpoint: Checkpoint, image: torch.Tensor, network: str | torch.nn.Module) -> list[str]:
    """Try out the network as the checkpoint alone builds it; return what was shown."""
    rebuilt = checkpoint.network()
    proofs.check_outputs(rebuilt, image, len(checkpoint.manifest.labels))
    shown = [
        "is deterministic in eval mode",
        "treats each image by itself",
        f"returns logits of {len(checkpoint.manifest.labels)} classes",
    ]
    if isinstance(network, torch.nn.Module):
        proofs.check_same(network, rebuilt, image, checkpoint.manifest.source.output)
        shown.append("computes what the network that was passed computes")
    return shown
