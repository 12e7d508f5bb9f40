"""Classifier: raw images in, labels and probabilities out."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import exp, isfinite
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact, read_certificate
from cnndeploy.errors import ArtifactError, CnndeployError, DataError, InputMismatchError
from cnndeploy.runtimes import RuntimeOptions, Session, Threads, default_runtime, open_session
from cnndeploy.specs import MAX_SIDE, Manifest, Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from cnndeploy.deployment import Plan

    Images = NDArray[np.uint8] | Image | Iterable[NDArray[np.uint8] | Image]

# One run takes at most so many images, and unless it is one alone pixels of raw or of prepared images.
_MOST_IMAGES, _MOST_PIXELS = 256, 2**20
# What an app is sent; Pillow knows many more, some of them programs that it hands to others, as PostScript.
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
_UINT8 = np.dtype(np.uint8)
# The last axis of (height, width, channels), as other libraries read files; no image is meant to be so narrow.
_CHANNELS = (1, 3, 4)
_MAKE_GREY = "; of colours make grey levels first, as PIL's convert('L') does"


class Prediction(NamedTuple):
    """A class and its probability, 0 to 1; ``runners_up`` are the next most probable classes, if asked for.

    >>> cnndeploy.Prediction("Bag", 0.9)
    Prediction(label='Bag', probability=0.9, runners_up=())
    """

    label: str
    probability: float
    runners_up: tuple[Prediction, ...] = ()


class Classifier:
    """An opened model that takes raw images; what :func:`load` gives; a context manager.

    Images are uint8, 0 to 255, one channel, light on dark as in Fashion-MNIST, of any size; they are prepared as the
    model's manifest says. They are given as one array (n, height, width), one image (height, width), a PIL image,
    whose colours become grey levels, or a list or generator of images, each of its own size.

    Threads may share one Classifier. A process that is forked off may not: it must load its own.

    >>> model = cnndeploy.load("lenet.onnx")
    >>> model.labels[9]
    'Ankle boot'
    >>> model.close()
    """

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session = session
        self.manifest = manifest
        self._input, self._output = manifest.input.name, manifest.output.name
        self._prepare = None if manifest.takes_images else manifest.preprocessing.__call__
        one_only = manifest.input.shape[0] == 1
        self._most_images = 1 if one_only else _most_images(*manifest.preprocessing.size)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.manifest.labels

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Unnormalised class scores.

        Args:
            images: uint8 (n, height, width), one image (height, width), a PIL image, or any number of images one by
                one; of any size up to 8192 pixels a side. Many are run in batches.

        Returns:
            float32 (n, classes). The caller owns it.

        Raises:
            InputMismatchError: No images, or another dtype or shape.
            ArtifactError: The model gives NaN or infinity, or is closed, or was loaded before this process was forked.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     model.logits(np.zeros((2, 28, 28), np.uint8)).shape
        (2, 10)
        """
        logits = self._logits(images)
        self._check(logits.sum(dtype=np.float64))
        return logits

    def probabilities(self, images: Images) -> NDArray[np.float32]:
        """Softmax of :meth:`logits`; takes and raises the same, gives float32 (n, classes) that sum to 1.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     f"{model.probabilities(np.zeros((28, 28), np.uint8)).sum():.3f}"
        '1.000'
        """
        return _softmax(self.logits(images))

    def classify(self, images: Images, top: int = 1) -> list[Prediction]:
        """The most probable class of each image, and with ``top`` above 1 the next ones as its ``runners_up``.

        Takes and raises what :meth:`logits` does.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     (prediction,) = model.classify(np.zeros((28, 28), np.uint8), top=3)
        >>> prediction.label in model.labels, len(prediction.runners_up)
        (True, 2)
        """
        if not isinstance(top, int) or top < 1:
            raise InputMismatchError(f"top is a whole number of at least 1, got {top!r}")
        logits, labels = self._logits(images), self.manifest.labels
        if top == 1 and len(logits) == 1:
            return [self._classify_one(logits.tolist()[0])]
        self._check(logits.sum(dtype=np.float64))
        ranked = np.argsort(-logits, axis=1, kind="stable")[:, :top].tolist()
        found = []
        for numbers, row in zip(ranked, _softmax(logits).tolist(), strict=True):
            first, *others = (Prediction(labels[number], row[number]) for number in numbers)
            found.append(first._replace(runners_up=tuple(others)) if others else first)
        return found

    def warmup(self, batch_size: int = 1) -> None:
        """Run a batch of black images: on some runtimes the first run of a batch size takes much longer.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     model.warmup()
        """
        if not isinstance(batch_size, int) or not 1 <= batch_size <= _MOST_IMAGES:
            raise InputMismatchError(
                f"a batch is a whole number of 1 to {_MOST_IMAGES} images, not {batch_size!r}"
            )
        self.logits(np.zeros((batch_size, *self.manifest.preprocessing.size), np.uint8))

    def close(self) -> None:
        """Release the model; closing twice is harmless."""
        self._session.close()

    def __repr__(self) -> str:
        session = self._session
        return f"Classifier({str(session.artifact.path)!r}, device={session.device!r}, threads={session.threads})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _logits(self, images: Images) -> NDArray[np.float32]:
        """Not yet seen to be finite."""
        if isinstance(images, np.ndarray) and len(stack := _stack(images)) == 1:
            return self._run(stack)
        given = [self._run(batch) for batch in self._batches(images)]
        if not given:
            raise InputMismatchError("no images were given")
        return given[0] if len(given) == 1 else np.concatenate(given)

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        prepared = batch if self._prepare is None else self._prepare(batch)
        logits: NDArray[np.float32] = self._session.run({self._input: prepared})[self._output]
        if len(logits) != len(batch):
            raise ArtifactError(
                f"{self._session.artifact.path} gives {len(logits)} results for {len(batch)} images; do not use it"
            )
        return logits

    def _check(self, total: float) -> None:
        """Of logits, added up in float64, where finite ones do not overflow: NaN and infinity show in the sum."""
        if not isfinite(total):
            raise ArtifactError(f"{self._session.artifact.path} gives NaN or infinite logits; do not use it")

    def _classify_one(self, logits: list[float]) -> Prediction:
        """The usual case in an app, without numpy, whose calls would take several times as long for so few numbers."""
        self._check(sum(logits))
        largest = max(logits)
        total = sum([exp(logit - largest) for logit in logits])
        return Prediction(self.manifest.labels[logits.index(largest)], float(np.float32(1 / total)))

    def _batches(self, images: Images) -> Iterable[NDArray[np.uint8]]:
        """Raw images, (batch, height, width), as many as one run takes."""
        if not isinstance(images, np.ndarray):
            return (batch for stack in _stacks(images) for batch in self._batches(stack))
        stack = _stack(images)
        count, height, width = stack.shape
        most = min(self._most_images, _most_images(height, width))
        if count <= most:
            return (stack,)
        return (stack[start : start + most] for start in range(0, count, most))


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: Threads | None = None,
    require_verified: bool = False,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Classifier:
    """Open an exported file, or a checkpoint, to classify images.

    Args:
        path: What ``cnndeploy export`` or ``cnndeploy train`` wrote; ONNX needs no torch. Or a folder that ``cnndeploy
            tune`` wrote, which runs as its plan says; what is asked for here goes before that.
        runtime: What runs it; its format's own by default.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``; never another than asked for.
        threads: CPU threads for one run. ``auto``, the default, times one image with one thread and with all that the
            process may use, and takes one where all are not a tenth faster; of a small network that takes some
            milliseconds.
        require_verified: Refuse a file that has no certificate ``<path>.verified.json`` of exactly its bytes, run by
            this runtime and in the same precision: that it is equivalent, or if it is lossy, as of int8, that its loss
            of accuracy is within its budget. What it says of images, processor and date is for people to read, and it
            is not signed.
        labels: Class names, for an ONNX file that cnndeploy did not write, whose output must be logits: of one that
            ends in a softmax the classes would be right, and the probabilities wrong.
        preprocessing: From raw images to the input, for an ONNX file that cnndeploy did not write.

    Raises:
        ArtifactError: The file cannot be opened, has no manifest, or is not verified.
        DeviceUnavailableError: ``device`` does not work here.
        MissingDependencyError: The runtime is not installed.

    >>> with cnndeploy.load("lenet.onnx", threads=1) as model:
    ...     len(model.classify(np.zeros((3, 28, 28), np.uint8)))
    3
    """
    options = RuntimeOptions()
    if isinstance(path, str | os.PathLike) and os.path.isdir(path):  # noqa: PTH112 - half of what a Path takes
        path, plan = _planned(path)
        options = plan.options if runtime in (None, plan.runtime) else options
        runtime, device = runtime or plan.runtime, device or plan.device
        threads = plan.threads if threads is None else threads
    artifact = Artifact.open(path)
    if require_verified:
        _require_certificate(artifact, runtime or default_runtime(artifact.format), options.precision)
    if artifact.manifest is not None and (labels is not None or preprocessing is not None):
        raise ArtifactError(f"{path} has labels and preprocessing of its own; leave yours out")
    told = None if labels is None or preprocessing is None else (labels, preprocessing)
    if told is None:
        artifact.require_manifest()
    session = open_session(
        artifact,
        runtime=runtime,
        device=device or "cpu",
        threads="auto" if threads is None else threads,
        options=options,
    )
    try:
        if require_verified and Artifact.open(path).sha256 != artifact.sha256:
            raise ArtifactError(f"{path} was replaced while it was opened; open it again")
        manifest = _own_manifest(session) if told is None else _told_manifest(session, *told)
    except CnndeployError:
        session.close()
        raise
    return Classifier(session, manifest)


def _planned(folder: str | os.PathLike[str]) -> tuple[Path, Plan]:
    """The model file in a deployment's folder, and its plan; warns of one made on another kind of processor."""
    from cnndeploy.deployment import (  # not for an app that has but a file
        PlannedElsewhereWarning,
        open_deployment,
    )

    artifact, plan = open_deployment(folder)
    if plan.elsewhere:
        warnings.warn(f"{os.fspath(folder)}: {plan.elsewhere}", PlannedElsewhereWarning, stacklevel=3)
    return artifact.path, plan


def _require_certificate(artifact: Artifact, runtime: str, precision: str) -> None:
    certificate = read_certificate(artifact)
    options = {} if certificate is None else certificate["options"]
    run = (None if certificate is None else certificate["runtime"], options.get("precision", "float32"))
    if run != (runtime, precision):
        raise ArtifactError(
            f"{artifact.path} has no certificate of a verification of exactly its bytes by {runtime}. "
            f"Make one with: cnndeploy verify {artifact.path} --against CHECKPOINT --runtime {runtime}"
        )


def _own_manifest(session: Session) -> Manifest:
    """Refused where the graph says otherwise."""
    manifest = session.artifact.require_manifest()
    if (session.inputs, session.outputs) != ((manifest.input,), manifest.outputs):
        raise ArtifactError(
            f"{session.artifact.path} is not what its manifest says: it takes and gives {_listed(session)}. "
            "Write it anew with: cnndeploy export CHECKPOINT"
        )
    return manifest


def _told_manifest(session: Session, labels: Sequence[str], preprocessing: Preprocessing) -> Manifest:
    """Of a file without one: what it takes and gives is what its graph says."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ArtifactError(f"labels are a list of class names, not {labels!r}")
    if not isinstance(preprocessing, Preprocessing):
        raise ArtifactError(f"preprocessing is a cnndeploy.Preprocessing, not {preprocessing!r}")
    takes, gives = session.inputs, session.outputs
    fits = (
        len(takes) == 1
        and takes[0].dtype == "float32"
        and (takes[0].shape[0] == 1 or isinstance(takes[0].shape[0], str))
        and takes[0].shape[1:] == (1, *preprocessing.size)
        and len(gives) > 0
        and gives[0].dtype == "float32"
        and gives[0].shape[1:] == (len(labels),)
    )
    if not fits:
        size = ", ".join(map(str, preprocessing.size))
        raise ArtifactError(
            f"{session.artifact.path} takes and gives {_listed(session)}, but with this preprocessing and these labels "
            f"it should take float32 (batch, 1, {size}) and give logits, float32 (batch, {len(labels)})"
        )
    return Manifest("unknown", takes[0], gives[0], preprocessing, tuple(labels))


def _listed(session: Session) -> str:
    specs = (session.inputs, session.outputs)
    return "; ".join(" and ".join(f"{spec.name} {spec}" for spec in each) or "nothing" for each in specs)


def read_image(source: str | os.PathLike[str] | BinaryIO | bytes) -> NDArray[np.uint8]:
    """Read a BMP, GIF, JPEG, PNG, PGM, PPM, TIFF or WebP file as grey levels, upright; what is transparent is black.

    Args:
        source: A path, an open binary file, as an upload is, or the content of a file.

    Returns:
        uint8 (height, width).

    Raises:
        DataError: No image, damaged, grey levels of more than 8 bits, or more than 8192 pixels a side.

    >>> cnndeploy.read_image("shoe.png").shape
    (28, 28)
    """
    from PIL import Image, UnidentifiedImageError

    name = f"{source}" if isinstance(source, str | os.PathLike) else "the file"
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=_KINDS) as image:
            return _grey(image)
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder; give the paths of image files") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image of a kind that is read here: {', '.join(_KINDS)}") from error
    except (InputMismatchError, DataError) as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # whatever a damaged file makes Pillow do
        raise DataError(f"{name} cannot be read as an image: {error}") from error


def _grey(image: Image) -> NDArray[np.uint8]:
    """A PIL image as uint8 (height, width); what is transparent is background, which is black here."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    if max(image.size) > MAX_SIDE:  # before its pixels are read
        raise InputMismatchError(_too_large(image.height, image.width))
    if image.mode.startswith(("I", "F")):
        raise InputMismatchError("the image has more than 8 bits a channel; convert it to 8 bits first")
    try:
        image = ImageOps.exif_transpose(image)  # a photo taken upright may be stored lying
        if image.has_transparency_data:
            image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "black"), image.convert("RGBA"))
        return np.asarray(image.convert("L"))
    except Exception as error:  # as in read_image()
        raise DataError(f"the image cannot be read: {error}") from error


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """In float64, and rounded once, so that the same logits have the same probabilities wherever they are computed."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return probabilities


def _stacks(images: Image | Iterable[Any]) -> Iterator[NDArray[np.uint8]]:
    """Images of one size that follow each other as one array (n, height, width)."""
    if isinstance(images, str | os.PathLike):
        raise InputMismatchError(
            f"expected images, got the path {images!r}; read it with cnndeploy.read_image"
        )
    if isinstance(images, bytes | bytearray | memoryview | type):
        raise InputMismatchError(
            f"expected images, got {type(images).__name__}; cnndeploy.read_image reads bytes"
        )
    if hasattr(images, "convert"):
        images = [images]
    if not isinstance(images, Iterable):
        raise InputMismatchError(f"expected images, got {type(images).__name__}")
    for (height, width), same in itertools.groupby(map(_one, images), key=np.shape):
        most = _most_images(height, width)
        while group := list(itertools.islice(same, most)):
            yield np.stack(group)


def _most_images(height: int, width: int) -> int:
    """Of this size, that one run takes."""
    return min(_MOST_IMAGES, max(1, _MOST_PIXELS // (height * width)))


def _one(image: Any) -> NDArray[np.uint8]:
    """An element of a list, (height, width)."""
    if hasattr(image, "convert") and not isinstance(image, type):
        image = _grey(image)
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        found = f"an array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputMismatchError(
            f"expected a list of images, each uint8 (height, width) or a PIL image, got {found} in it"
        )
    one: NDArray[np.uint8] = _stack(image)[0]
    return one


def _advice(images: NDArray[Any]) -> str:
    """How an array that is no stack of raw images may become one."""
    if images.dtype.kind == "f":
        return "; of values from 0 to 1 make (images * 255).round().astype(np.uint8)"
    if images.dtype.kind == "b":
        return "; of True and False make images * np.uint8(255)"
    if images.dtype.kind in "iu" and images.dtype != _UINT8:
        return "; of values from 0 to 255 make images.astype(np.uint8)"
    if images.ndim == 4:
        return "; of one channel take images[:, 0]" if images.shape[1] == 1 else _MAKE_GREY
    return ""


def _stack(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Raw images as (n, height, width), refused if they are not that."""
    if type(images) is not np.ndarray:
        if hasattr(images, "mask"):
            raise InputMismatchError("expected images, got a masked array; fill what is masked with 0 first")
        images = np.asarray(images)
    stack = images[None] if images.ndim == 2 else images
    if stack.dtype != _UINT8 or stack.ndim != 3:
        raise InputMismatchError(
            f"expected uint8 images (n, height, width) with 0 to 255, got {images.dtype} {images.shape}{_advice(stack)}"
        )
    if images.ndim == 3 and images.shape[2] in _CHANNELS:
        raise InputMismatchError(
            f"an array {images.shape} looks like one image in colours, not like images (n, height, width){_MAKE_GREY}"
        )
    if not stack.size:
        raise InputMismatchError(f"no images were given, or images of 0 pixels: uint8 {images.shape}")
    _, height, width = stack.shape
    if height > MAX_SIDE or width > MAX_SIDE:
        raise InputMismatchError(_too_large(height, width))
    return stack


def _too_large(height: int, width: int) -> str:
    return f"an image {width} pixels wide and {height} high is too large to be meant; at most {MAX_SIDE} are taken"
