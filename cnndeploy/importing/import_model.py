"""import_model: from somebody's network, with its weights, preprocessing and labels, to a file of ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnndeploy.datasets import Data
from cnndeploy.errors import ArtifactError, missing_dependency
from cnndeploy.formats import FORMATS
from cnndeploy.importing.imported import Imported
from cnndeploy.progress import Progress, silent

if TYPE_CHECKING:
    import torch


def import_model(
    network: str | os.PathLike[str] | torch.nn.Module,
    output: str | os.PathLike[str],
    *,
    source: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    preprocessing: Any = None,
    labels: str | os.PathLike[str] | Iterable[str] | None = None,
    data: Data | None = None,
    images: int | None = None,
    output_name: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Imported:
    """Try out a network of your own, or an ONNX classifier, and write it as a checkpoint or an ONNX file of ours.

    It must be a classifier. It takes images as ``preprocessing`` prepares them, float32 (batch, channels, height,
    width), and returns logits, float32 (batch, classes). Before a checkpoint is written it is shown that the network
    can be built again from its source, is deterministic in eval mode, treats each image by itself, tells as many
    classes apart as there are labels, and can be exported with a free batch axis.

    An ONNX file that another tool wrote keeps its graph, and gets a manifest. Only what must change is rewritten, so
    that it takes prepared images in batches of any size and returns logits; the result is compared with the original.
    The file is its own reference: what is made from it is compared with it.

    Args:
        network: The name of its source: an architecture of cnndeploy, ``torchvision:NAME`` or
            ``torchvision:NAME@WEIGHTS``, ``timm:NAME``, ``timm:FOLDER`` as timm saves one, ``package.module:factory``
            or ``path/to/file.py:factory``. Or the network itself, whose weights are taken; then ``source`` names the
            function that makes such a network, because a checkpoint holds no code. Or the path of an ONNX file.
        output: The checkpoint file; for an ONNX file, an ONNX file.
        source: The name of the source, if ``network`` is the network itself.
        arguments: Keyword arguments of the factory. The number of classes is filled in if the factory takes it.
        weights: A file of torch.save, or of safetensors.
        preprocessing: Whatever :func:`cnndeploy.preprocessing_of` reads; by default what comes with the name,
            or for an ONNX file what ultralytics, timm or Hugging Face left in it or beside it.
        labels: The labels in the order of the outputs, or a text or JSON file of them; by default those of
            weights that come with the name, else the classes of ``data``, else what the name suggests.
        data: The data set that other commands run it on, which the checkpoint records: a folder of images, or
            ``fashion-mnist``. Its accuracy there is measured, and without ``labels`` its classes are the labels.
        images: Measure on the first N test images, all of them by default.
        output_name: Which of several outputs are the logits: a key, a field, or a number from 0; for an ONNX file the
            name of the output.
        overwrite: Replace ``output``.
        progress: Called with the number of steps done, their total, and the name of the next one.

    Raises:
        ArtifactError: Something does not fit; the message says what.
        UnknownNameError, MissingDependencyError: There is no such source, or it needs a package.

    >>> made = cnndeploy.import_model("lenet", "again.pt", weights="lenet.pt", overwrite=True)
    >>> made.classes, made.artifact.require_manifest().architecture
    (10, 'lenet')
    """
    described: dict[str, Any] = {
        "preprocessing": preprocessing,
        "labels": labels,
        "data": data,
        "images": images,
        "output_name": output_name,
        "overwrite": overwrite,
        "progress": progress,
    }
    try:
        if isinstance(network, os.PathLike) or (isinstance(network, str) and _is_onnx(network)):
            from cnndeploy.importing.onnx_file import import_onnx

            _refuse({"source": source, "arguments": arguments, "weights": weights})
            return import_onnx(Path(network), output, **described)
        from cnndeploy.importing.network import import_network
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    return import_network(network, output, source=source, arguments=arguments, weights=weights, **described)


def _is_onnx(network: str) -> bool:
    path = Path(network)
    return path.suffix == ".onnx" or (path.is_file() and FORMATS.get("onnx").recognises(path))


def _refuse(settings: Mapping[str, Any]) -> None:
    if given := [name for name, value in settings.items() if value is not None]:
        raise ArtifactError(f"an ONNX file holds its network and weights; leave out {', '.join(given)}")
