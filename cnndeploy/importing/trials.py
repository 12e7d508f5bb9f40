"""Trials: what an import records is tried out before it is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnndeploy.architectures._network import chosen_output, output_names
from cnndeploy.datasets import Images
from cnndeploy.errors import ArtifactError, CnndeployError
from cnndeploy.exporters import export
from cnndeploy.preprocessing import Preprocessing

BATCH = 3
# Of the largest logit. Alone and in a batch a library may add up in another order; a network whose rows influence each
# other, as batch normalisation in training mode does, differs by far more.
_SPREAD = 1e-3
_SUM_ERROR = 1e-4
_USUAL = ("logits", "out", "output")
_TRANSFORMED = 32  # images on which two preprocessings are compared


def sample(preprocessing: Preprocessing, batch: int = BATCH) -> torch.Tensor:
    """Return prepared noise, float32 (batch, channels, height, width), the same each time."""
    channels = () if preprocessing.channels == 1 else (3,)
    raw = np.random.default_rng(0).integers(256, size=(batch, *preprocessing.size, *channels), dtype=np.uint8)
    return torch.from_numpy(preprocessing(raw))


def output_of(network: torch.nn.Module, image: torch.Tensor, name: str | None) -> tuple[str | None, str]:
    """Find out which output of a network in eval mode is its logits.

    Return its name, None if it is the only one, and a sentence on it, empty if there was no choice. Raise ArtifactError
    if the network cannot be run on ``image``, or has no such output.
    """
    outputs = run_on(network, image)
    if torch.is_tensor(outputs):
        if name is not None:
            raise ArtifactError(f"the network returns one tensor, so there is no output {name} to choose")
        return None, ""
    names = output_names(outputs)
    usual = (one for one in _USUAL if one in names)  # torchvision's are called out
    chosen = name or next(usual, next(iter(names), ""))
    try:
        chosen_output(outputs, chosen)
    except LookupError as error:
        raise ArtifactError(f"the network returns {type(outputs).__name__}: {error}") from error
    return chosen, "" if name else f"the network returns {', '.join(names)}; {chosen} is taken for the logits"


def check_outputs(network: torch.nn.Module, image: torch.Tensor, classes: int | None) -> int:
    """Raise ArtifactError unless a network in eval mode is a classifier that can be deployed; return its classes.

    It returns logits, float32 (batch, classes), the same each time, and for each image whatever else is in the batch.
    """
    logits, again = run_on(network, image), run_on(network, image)
    if not torch.is_tensor(logits):
        raise ArtifactError(f"the network returns {type(logits).__name__}, not logits (batch, classes)")
    if logits.ndim != 2 or len(logits) != len(image):
        raise ArtifactError(
            f"for images {tuple(image.shape)} the network returns {tuple(logits.shape)}, not logits (batch, classes)"
        )
    if logits.dtype != torch.float32:
        raise ArtifactError(f"the network returns {logits.dtype}, not torch.float32; convert it with float()")
    if classes is not None and logits.shape[1] != classes:
        raise ArtifactError(
            f"the network tells {logits.shape[1]} classes apart, and there are {classes} labels; "
            "give a label for each class, in the order of the outputs"
        )
    if logits.shape[1] < 2:
        raise ArtifactError("the network returns one number for an image; a classifier has 2 classes or more")
    if not bool(torch.isfinite(logits).all()):
        raise ArtifactError("the network returns NaN or infinite logits")
    scale = float(logits.abs().max()) or 1.0
    if (spread := float((logits - again).abs().max()) / scale) > _SPREAD:
        raise ArtifactError(
            f"the network returns other logits each time, by {spread:.2g} of the largest: something random is active "
            "in eval mode"
        )
    alone = torch.cat([run_on(network, one[None]) for one in image])
    if alone.shape != logits.shape or (spread := float((logits - alone).abs().max()) / scale) > _SPREAD:
        raise ArtifactError(
            f"an image's logits depend on the others in its batch, by {spread:.2g} of the largest: something, such as "
            "batch normalisation without running statistics, looks across the batch"
        )
    sums = logits.sum(dim=1)
    if bool((logits >= 0).all()) and float((sums - 1).abs().max()) < _SUM_ERROR:
        raise ArtifactError(
            "the network returns probabilities, which add up to 1, and not logits; leave out the softmax at its end"
        )
    return int(logits.shape[1])


def check_same(
    network: torch.nn.Module, rebuilt: torch.nn.Module, image: torch.Tensor, output: str | None
) -> None:
    """Raise ArtifactError unless a network in hand computes what the one that was built from its source computes.

    The weights are the same, so they differ if the factory makes another network, or one that was changed since.
    """
    training = {module: module.training for module in network.modules()}
    device = next((one.device for one in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        outputs = run_on(network, image.to(device))
    finally:
        for module, was in training.items():
            module.training = was
    logits = chosen_output(outputs, output or "").cpu()
    expected = run_on(rebuilt, image)
    scale = float(expected.abs().max()) or 1.0
    if logits.shape != expected.shape or (error := float((logits - expected).abs().max()) / scale) > _SPREAD:
        raise ArtifactError(
            "the network that was passed computes something else than its source builds with the same weights"
            + (f", by {error:.2g} of the largest logit" if logits.shape == expected.shape else "")
        )


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
        with tempfile.TemporaryDirectory() as folder:
            export(checkpoint, "onnx", Path(folder, "model.onnx"))
    except CnndeployError as error:
        raise ArtifactError(
            f"the network cannot be exported to ONNX, so it was not imported: {error}"
        ) from error


def check_transform(transform: Callable[[Any], Any], preprocessing: Preprocessing, images: Images) -> str:
    """Compare the caller's own transform of PIL images with ``preprocessing``; return a sentence on it.

    Raise ArtifactError if they differ. Pillow 13 resizes tall images height first, which the caller's transform then
    does too, so only images that are at least as wide as high are compared.
    """
    from PIL import Image

    compared, largest = 0, 0.0
    for pixels in images.read(range(min(_TRANSFORMED, len(images)))):
        if pixels.shape[1] < pixels.shape[0]:
            continue
        try:
            theirs = np.asarray(transform(Image.fromarray(pixels)), np.float32)
        except Exception as error:  # it is the caller's
            raise ArtifactError(f"your transform fails on an image {pixels.shape}: {error!r:.300}") from error
        ours = preprocessing(pixels[None])[0]
        if theirs.shape != ours.shape:
            raise ArtifactError(f"your transform returns {theirs.shape}, and the preprocessing {ours.shape}")
        largest = max(largest, float(np.abs(theirs - ours).max()))
        compared += 1
    if not compared:
        return "your transform was not compared with the preprocessing: no image is at least as wide as high"
    if largest > 0:
        raise ArtifactError(
            f"your transform and the preprocessing differ by up to {largest:.3g} on {compared} images, so the "
            "network would not get what it was trained on"
        )
    return f"your transform and the preprocessing agree bit for bit on {compared} images"
