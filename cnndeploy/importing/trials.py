"""Trials of a network in PyTorch: what an import records is tried out before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from cnndeploy.architectures._network import chosen_output, output_names
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.exporters import export
from cnndeploy.files import scratch_folder
from cnndeploy.importing import outputs
from cnndeploy.importing.outputs import BATCH, SPREAD, Compute, check_logits, difference
from cnndeploy.preprocessing import Preprocessing

_USUAL = ("logits", "out", "output")


def sample(preprocessing: Preprocessing, batch: int = BATCH) -> torch.Tensor:
    """Return prepared noise, float32 (batch, channels, height, width), the same each time."""
    return torch.from_numpy(outputs.sample(preprocessing, batch))


def output_of(network: torch.nn.Module, image: torch.Tensor, name: str | None) -> tuple[str | None, str]:
    """Find out which output of a network in eval mode is its logits.

    Return its name, None if it is the only one, and a sentence about it, empty if there was no choice. Raise
    ArtifactError if the network cannot be run on ``image``, or has no such output.
    """
    returned = run_on(network, image)
    if torch.is_tensor(returned):
        if name is not None:
            raise ArtifactError(f"the network returns one tensor, so there is no output {name} to choose")
        return None, ""
    names = output_names(returned)
    usual = (one for one in _USUAL if one in names)  # torchvision's are called out
    chosen = name or next(usual, next(iter(names), ""))
    try:
        chosen_output(returned, chosen)
    except LookupError as error:
        raise ArtifactError(f"the network returns {type(returned).__name__}: {error}") from error
    return chosen, "" if name else f"the network returns {', '.join(names)}; {chosen} is taken for the logits"


def check_outputs(network: torch.nn.Module, image: torch.Tensor, classes: int | None) -> int:
    """Raise ArtifactError unless a network in eval mode is a classifier that can be deployed; return its classes."""
    return check_logits(computing(network), image.numpy(), classes)


def check_same(
    network: torch.nn.Module, rebuilt: torch.nn.Module, image: torch.Tensor, output: str | None
) -> None:
    """Raise ArtifactError unless a network computes what the one that was built from its source computes.

    The weights are the same, so the two differ only if the factory makes another network, or this one was changed.
    """
    training = {module: module.training for module in network.modules()}
    device = next((one.device for one in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        returned = run_on(network, image.to(device))
    finally:
        for module, was in training.items():
            module.training = was
    logits = chosen_output(returned, output or "").cpu()
    if (error := difference(logits.numpy(), run_on(rebuilt, image).numpy())) > SPREAD:
        raise ArtifactError(
            "the network that was passed computes something else than its source builds with the same weights, by "
            f"{error:.2g} of the largest logit"
        )


def computing(network: torch.nn.Module) -> Compute:
    """Return what a network in eval mode computes, on arrays."""
    return lambda images: _logits(network, torch.from_numpy(images))


def _logits(network: torch.nn.Module, image: torch.Tensor) -> NDArray[Any]:
    logits = run_on(network, image)
    if not torch.is_tensor(logits):
        raise ArtifactError(f"the network returns {type(logits).__name__}, not logits (batch, classes)")
    if logits.dtype != torch.float32:
        raise ArtifactError(f"the network returns {logits.dtype}, not torch.float32; convert it with float()")
    values: NDArray[Any] = logits.numpy()
    return values


def run_on(network: torch.nn.Module, image: torch.Tensor) -> Any:
    """Return what a network returns for images; raise ArtifactError if it fails."""
    try:
        with torch.inference_mode():
            return network(image)
    except Exception as error:  # it is anybody's code
        text = str(error).strip().splitlines()
        raise ArtifactError(
            f"the network cannot be run on images {tuple(image.shape)}, as the preprocessing makes them: "
            f"{text[0] if text else type(error).__name__}"
        ) from error


def check_export(checkpoint: Path) -> None:
    """Raise ArtifactError if a checkpoint cannot be exported to ONNX with a free batch axis."""
    try:
        with scratch_folder() as folder:
            export(checkpoint, "onnx", Path(folder, "model.onnx"))
    except CnndeployError as error:
        raise ArtifactError(
            f"the network cannot be exported to ONNX, so it was not imported: {error}"
        ) from error
