"""Checkpoint: weights and manifest in one file that opens with ``weights_only=True``."""

from __future__ import annotations

import contextlib
import io
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.artifact import Artifact
from cnndeploy.datasets.fashion_mnist import LABELS
from cnndeploy.errors import ArtifactError, CheckpointError
from cnndeploy.files import write_file
from cnndeploy.formats.checkpoint import MANIFEST_KEY, WEIGHTS_KEY
from cnndeploy.machine import versions
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.sources import build
from cnndeploy.specs import Manifest, Source, TensorSpec

_LARGE = 10_000  # an argument of a network is rarely so large: then it is classes, or a mistake


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a network, from parameter name to tensor on the CPU, and its manifest.

    ``sha256`` and ``path`` are those of the file it was loaded from, or None.
    """

    weights: Mapping[str, torch.Tensor]
    manifest: Manifest
    sha256: str | None = None
    path: Path | None = None

    @classmethod
    def of(
        cls, manifest: Manifest, network: torch.nn.Module, training: Mapping[str, Any] | None = None
    ) -> Self:
        """Copy the present weights of a network that ``manifest`` describes."""
        weights = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in network.state_dict().items()
        }
        return cls(weights, replace(manifest, training=training or {}, versions=versions()))

    @classmethod
    def untrained(cls, name: str, seed: int = 0) -> Self:
        """Return initial weights of a registered architecture, the same for the same seed and version of torch."""
        manifest = manifest_of(name)
        return cls.of(manifest, initialised(manifest, seed))

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Artifact) -> Self:
        """Read a checkpoint, running nothing in it; an opened artifact is not hashed again.

        Raise CheckpointError if it is not our checkpoint, is damaged, or wants to run code, and what Artifact.open
        does.
        """
        artifact = source if isinstance(source, Artifact) else Artifact.open(source)
        path = artifact.path
        if artifact.format != "checkpoint":
            advice = "Make one with: cnndeploy train"
            if artifact.is_reference:
                advice = "It was imported, so there is no network in PyTorch to use; use the file as it is."
            raise CheckpointError(f"{path} is {artifact.kind}, not a checkpoint. {advice}")
        manifest = artifact.require_manifest()
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)[WEIGHTS_KEY]
        except Exception as error:  # its own message may advise to load without weights_only
            raise CheckpointError(f"{path} is damaged: torch cannot read its weights") from error
        if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
            raise CheckpointError(f"{path} is damaged: its weights are not tensors")
        return cls(weights, manifest, artifact.sha256, path)

    def save(self, path: str | os.PathLike[str]) -> Artifact:
        """Write the checkpoint, whole or not at all; raise ArtifactError if ``path`` cannot be written."""
        buffer = io.BytesIO()
        torch.save({WEIGHTS_KEY: dict(self.weights), MANIFEST_KEY: self.manifest.to_json()}, buffer)
        write_file(path, buffer.getvalue())
        return Artifact.open(path)

    def network(self) -> torch.nn.Module:
        """Build the network, on the CPU, in eval mode.

        Raise CheckpointError if a name, shape or dtype differs, and what :func:`cnndeploy.sources.build` raises.
        """
        source = self.manifest.source
        if source.ranks or any(type(value) is int and value > _LARGE for value in source.arguments.values()):
            # it may take more memory than there is, so it is built without any first, if its code can
            with contextlib.suppress(ArtifactError), torch.device("meta"):
                self._require_same(self._built())
        network = self._built()
        self._require_same(network)
        fill(network, self.weights)
        return network.eval()

    def _built(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            return build(self.manifest.architecture, self.manifest.source, self.path or "the checkpoint")

    def _require_same(self, network: torch.nn.Module) -> None:
        """Raise CheckpointError, which says how they differ, if the weights are not those of the network."""
        if differences := _differences(network.state_dict(), self.weights):
            raise CheckpointError(
                f"the checkpoint's weights are not those of {self.manifest.architecture}: {differences}"
            )

    def is_finite(self) -> bool:
        """Return whether no weight is NaN or infinite."""
        return all(bool(torch.isfinite(value).all()) for value in self.weights.values())


def _differences(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """Say how weights differ from those that a network has; empty if they do not."""
    missing, surplus = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing and surplus:
        prefix = surplus[0].removesuffix(next((key for key in missing if surplus[0].endswith(f".{key}")), ""))
        if given.keys() == {prefix + key for key in expected}:
            return (
                f"their names carry the prefix {prefix!r}, as a wrapper puts it there. Where they were made, save the "
                "weights of the network inside the wrapper"
            )
    both = sorted(expected.keys() & given.keys())
    shapes = [
        f"{key} {tuple(given[key].shape)}, not {tuple(expected[key].shape)}"
        for key in both
        if given[key].shape != expected[key].shape
    ]
    dtypes = [
        f"{key} {given[key].dtype}, not {expected[key].dtype}"
        for key in both
        if given[key].dtype != expected[key].dtype
    ]
    advice = (
        ". Save them in the network's own precision" if dtypes and not (missing or surplus or shapes) else ""
    )
    kinds = {"missing": missing, "left over": surplus, "of another shape": shapes, "of another dtype": dtypes}
    faults = [f"{len(names)} {kind}, first {names[0]}" for kind, names in kinds.items() if names]
    return "; ".join(faults).replace("torch.", "") + advice


def fill(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a network its weights, which have its own names and shapes.

    Some modules, as torchvision's MNASNet, refuse weights that do not say which version of their class saved them.
    """
    state = OrderedDict(weights)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)


def manifest_of(
    architecture: str,
    *,
    source: Source | None = None,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = LABELS,
    data: str | None = None,
) -> Manifest:
    """Describe a network without weights; a registered architecture has its own preprocessing."""
    preprocessing = preprocessing or ARCHITECTURES.get(architecture).preprocessing
    return Manifest(
        architecture=architecture,
        input=TensorSpec("image", "float32", ("batch", *preprocessing.shape)),
        output=TensorSpec("logits", "float32", ("batch", len(labels))),
        preprocessing=preprocessing,
        labels=labels,
        source=source or Source(),
        data=data,
    )


def initialised(manifest: Manifest, seed: int, initialisation: str | None = None) -> torch.nn.Module:
    """Build a network with fresh weights and keep torch's random state.

    A registered architecture is by default initialised as its original recipe says, any other by its own code.
    """
    name = manifest.architecture
    if initialisation is None:
        registered = name in ARCHITECTURES.names()
        initialisation = ARCHITECTURES.get(name).recipes["original"].initialisation if registered else "torch"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(name, manifest.source)
        for module in network.modules() if initialisation != "torch" else ():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                if initialisation == "he":
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                else:
                    torch.nn.init.xavier_uniform_(module.weight, gain=4)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
        return network
