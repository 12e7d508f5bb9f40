"""Classifier: raw images in, labels and probabilities out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import exp, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.certificate import SaturationWarning, doubt_here, require_certificate
from cnndeploy.deployment import PlannedElsewhereWarning, resolve
from cnndeploy.errors import ArtifactError, CnndeployError, InputMismatchError
from cnndeploy.foreign import listed, refuse_training, told_manifest
from cnndeploy.images import MOST_IMAGES, most_images, stacks_of
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.preprocessing import Preprocessing, border_contrast
from cnndeploy.run import Precision, Run, Threads
from cnndeploy.runtimes import Session, open_session
from cnndeploy.specs import Manifest

if TYPE_CHECKING:
    from cnndeploy.images import Images

# The first images of a Classifier that are checked for a background of the wrong brightness, and the contrast between
# border and middle, in grey levels, that shows it: no image of Fashion-MNIST has it, inverted 96 of 100 have, and noise
# hardly ever.
_LOOKED_AT, _CONTRAST = 8, 40


class Prediction(NamedTuple):
    """A class and its probability, 0 to 1; ``runners_up`` are the next most probable classes, if asked for.

    >>> cnndeploy.Prediction("Bag", 0.9)
    Prediction(label='Bag', probability=0.9, runners_up=())
    """

    label: str
    probability: float
    runners_up: tuple[Prediction, ...] = ()


class DarkOnLightWarning(CnndeployWarning):
    """The border of an image is brighter than its middle, unlike those that the network was trained on.

    ``image`` is its number among those that were given, from 0; ``inverted`` says that it was inverted first.
    """

    def __init__(self, model: Path, image: int, inverted: bool) -> None:
        self.model, self.image, self.inverted = model, image, inverted
        super().__init__(self._text(f"images[{image}]"))

    def __reduce__(self) -> tuple[Any, ...]:
        return DarkOnLightWarning, (self.model, self.image, self.inverted)

    def naming(self, names: Sequence[str]) -> str:
        """Return the warning with the image's name out of the ``names`` of all that were given."""
        return self._text(names[self.image])

    def _text(self, image: str) -> str:
        once, advice = "", "If your images are dark on light, use invert=True."
        if self.inverted:
            once, advice = ", once inverted,", "If your images are light on dark, leave out invert=True."
        return (
            f"{self.model} was trained on light objects on a dark background, but the border of {image}{once} is "
            f"brighter than its middle. {advice}"
        )


class Classifier:
    """An opened model that takes raw images, as :func:`load` returns it; a context manager.

    Images are uint8, 0 to 255, of any size. They are prepared as the model's manifest says. Pass an array (n, height,
    width) of grey levels or (n, height, width, 3) of red, green and blue, one image (height, width) or (height, width,
    3), a PIL image, or a list or generator of images, each of its own size. A network of grey images, such as those
    trained on Fashion-MNIST, which are light on dark, gets the grey levels of colours as PIL's ``convert("L")``
    computes them; one of RGB images gets a grey level as red, green and blue alike. Channels in the order blue,
    green, red, as OpenCV reads them, cannot be recognised: pass ``image[..., ::-1]``.

    Threads may share one Classifier. A forked process must load its own. To another process it travels as the path of
    its file and how that is run: pickle and copy open the file again, and fail unless it has the same bytes.

    >>> model = cnndeploy.load("lenet.onnx")
    >>> model.labels[9]
    'Ankle boot'
    >>> model.close()
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        *,
        invert: bool = False,
        background: str | None = None,
        probabilities: bool = False,
    ) -> None:
        self._session = session
        self.manifest = manifest
        self._background = background
        self._channels = manifest.preprocessing.channels
        self._invert = invert
        self._gives_probabilities = probabilities
        self._to_look_at = _LOOKED_AT if background == "dark" and self._channels == 1 else 0
        self._most_images = 1 if manifest.input.shape[0] == 1 else most_images(*manifest.preprocessing.size)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return self.manifest.labels

    @property
    def session(self) -> Session:
        """The open file, which takes its own inputs: prepared tensors, or raw images of one size."""
        return self._session

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return unnormalised class scores, float32 (n, classes); the caller owns the array.

        Args:
            images: Images as the class accepts them, up to 8192 pixels a side. Many images run in batches.

        Raises:
            InputMismatchError: There are no images, or they have another dtype or shape.
            ArtifactError: The model returns NaN or infinity, is closed, or was loaded before this process was forked.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     model.logits(np.zeros((2, 28, 28), np.uint8)).shape
        (2, 10)
        """
        logits = self._logits(images)
        self._check(logits.sum(dtype=np.float64))
        return logits

    def probabilities(self, images: Images) -> NDArray[np.float32]:
        """Return the softmax of :meth:`logits`, float32 (n, classes); accept and raise what that does.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     f"{model.probabilities(np.zeros((28, 28), np.uint8)).sum():.3f}"
        '1.000'
        """
        logits = self._logits(images)
        self._check(logits.sum(dtype=np.float64))
        return _softmax(logits)

    def classify(self, images: Images, top: int = 1) -> list[Prediction]:
        """Return the most probable class of each image; with ``top`` above 1, also the next ones, as ``runners_up``.

        Accept and raise what :meth:`logits` does.

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
        predictions = []
        for numbers, row in zip(ranked, _softmax(logits).tolist(), strict=True):
            first, *others = (Prediction(labels[number], row[number]) for number in numbers)
            predictions.append(first._replace(runners_up=tuple(others)))
        return predictions

    def warmup(self, batch_size: int = 1) -> None:
        """Run a batch of black images: on some runtimes the first run of a batch size takes much longer.

        >>> with cnndeploy.load("lenet.onnx") as model:
        ...     model.warmup()
        """
        if type(batch_size) is not int or not 1 <= batch_size <= MOST_IMAGES:
            whole = f"a whole number of 1 to {MOST_IMAGES} images"
            raise InputMismatchError(f"a batch is {whole}, not {batch_size!r}")
        black = np.zeros((batch_size, *self.manifest.preprocessing.size), np.uint8)
        self._check(self._logits(black, look=False).sum(dtype=np.float64))

    def close(self) -> None:
        """Release the model; closing twice is harmless."""
        self._session.close()

    def __reduce__(self) -> tuple[Any, ...]:
        artifact, run = self._session.artifact, self._session.run_as
        settings = (self.manifest, self._invert, self._background, self._gives_probabilities)
        return _opened_again, (artifact.path.absolute(), artifact.sha256, run, *settings)

    def __repr__(self) -> str:
        session = self._session
        return f"Classifier({str(session.artifact.path)!r}, device={session.device!r}, threads={session.threads})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _logits(self, images: Images, *, look: bool = True) -> NDArray[np.float32]:
        """Do what logits() does, without its last check; ``look`` at the first images, whether they need inverting."""
        batches, done = [], 0
        for stack in stacks_of(images, self._most_images, self._channels):
            raw = ~stack if self._invert else stack  # of uint8 that is 255 - stack
            if look and self._to_look_at > 0:
                self._look_at(raw, done)
            batches.append(self._run(raw))
            done += len(stack)
        if not batches:
            raise InputMismatchError("no images were given")
        return batches[0] if len(batches) == 1 else np.concatenate(batches)

    def _look_at(self, images: NDArray[np.uint8], start: int) -> None:
        """Warn once if one of the first images is dark on light; called by what a public method calls.

        ``start`` is the number of the first of ``images`` among those that the caller gave.
        """
        images = images[: self._to_look_at]
        self._to_look_at -= len(images)
        too_bright = border_contrast(images) >= _CONTRAST
        if not too_bright.any():
            return
        self._to_look_at = 0
        number = start + int(too_bright.argmax())
        warnings.warn(DarkOnLightWarning(self._session.artifact.path, number, self._invert), stacklevel=4)

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        feeds = {self.manifest.input.name: self.manifest.prepared(batch)}
        logits: NDArray[np.float32] = self._session.run(feeds)[self.manifest.output.name]
        if (count := len(logits)) != len(batch):
            path = self._session.artifact.path
            raise ArtifactError(f"{path} gives {count} results for {len(batch)} images; do not use it")
        if self._gives_probabilities:  # their logarithms are logits, of which softmax makes them again
            return np.log(np.maximum(logits, np.finfo(np.float32).tiny))
        return logits

    def _check(self, total: float) -> None:
        """Raise if any logit is NaN or infinite; a float64 sum of finite logits cannot overflow."""
        if not isfinite(total):
            raise ArtifactError(f"{self._session.artifact.path} gives NaN or infinite logits; do not use it")

    def _classify_one(self, logits: list[float]) -> Prediction:
        """Classify one image without numpy, whose calls take several times as long for so few numbers."""
        self._check(sum(logits))
        largest = max(logits)
        total = sum([exp(logit - largest) for logit in logits])
        return Prediction(self.manifest.labels[logits.index(largest)], float(np.float32(1 / total)))


def _opened_again(
    path: Path,
    sha256: str,
    run: Run,
    manifest: Manifest,
    invert: bool,
    background: str | None,
    probabilities: bool = False,
) -> Classifier:
    """Open what another Classifier opened; raise ArtifactError if the file has changed since."""
    artifact = Artifact.open(path)
    if artifact.sha256 != sha256:
        raise ArtifactError(f"{path} has changed since the Classifier was loaded; load it again")
    session = open_session(artifact, run)
    return Classifier(session, manifest, invert=invert, background=background, probabilities=probabilities)


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: Threads | None = None,
    require_verified: bool | int = False,
    invert: bool = False,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    precision: Precision | None = None,
) -> Classifier:
    """Open an exported file, or a checkpoint, to classify images.

    Args:
        path: A file that ``cnndeploy export`` or ``cnndeploy train`` wrote; ONNX needs no torch. Or a folder that
            ``cnndeploy tune`` wrote, which runs as its plan says; arguments override the plan.
        runtime: The runtime, by default the format's own.
        device: ``cpu``, the default, ``cuda`` or ``cuda:N``. Loading fails if it is unavailable; it never falls back.
        threads: CPU threads for one run, at most 256. ``auto``, the default, times one image with one thread and with
            all that the process may use, and uses one unless all are at least 10% faster. For a small network the
            trial takes some milliseconds.
        require_verified: Refuse a file without a certificate ``<path>.verified.json`` for exactly its bytes, run by
            this runtime, in the same precision, on the same kind of device. It must say that the file is equivalent,
            or if the file is lossy, such as int8, that its loss of accuracy is within its budget. True accepts a
            verification on any number of images; a number demands at least so many. What the certificate says of
            processor and date is for people to read, and it is not signed.
        invert: Replace each pixel by 255 - pixel before anything else, for images that are dark on light. If one of the
            first images that the network gets is much brighter at its border than in the middle, a warning says so.
        labels: Class names, for an ONNX file that cnndeploy did not write. Its output are logits, or probabilities by
            a softmax; a file in training mode is refused.
        preprocessing: From raw images to the input, for an ONNX file that cnndeploy did not write.
        precision: What a float32 file is computed in: ``tf32`` on CUDA, ``bfloat16`` by OpenVINO; by default as the
            plan says, else float32.

    Raises:
        ArtifactError: The file cannot be opened, has no manifest, or is not verified as required.
        InputMismatchError: ``require_verified`` is neither a bool nor a number of images, or ``invert`` no bool.
        DeviceUnavailableError: ``device`` does not work here.
        MissingDependencyError: The runtime is not installed.

    >>> with cnndeploy.load("lenet.onnx", threads=1) as model:
    ...     len(model.classify(np.zeros((3, 28, 28), np.uint8)))
    3
    """
    if type(invert) is not bool:  # "no" would be true
        raise InputMismatchError(f"invert is True or False, not {invert!r}")
    candidate = resolve(path, Run(runtime or "", device or "", threads, precision=precision))
    artifact, run = candidate.artifact, candidate.run
    if candidate.plan is not None and candidate.plan.elsewhere:
        warnings.warn(f"{os.fspath(path)}: {candidate.plan.elsewhere}", PlannedElsewhereWarning, stacklevel=2)
    if doubt := doubt_here(artifact, run):
        warnings.warn(f"{os.fspath(path)}: {doubt}", SaturationWarning, stacklevel=2)
    if require_verified is not False:
        require_certificate(artifact, run, require_verified)
    if artifact.manifest is not None and (labels is not None or preprocessing is not None):
        raise ArtifactError(f"{path} has labels and preprocessing of its own; leave yours out")
    if labels is None or preprocessing is None:
        artifact.require_manifest()
    session = open_session(artifact, replace(run, threads="auto" if run.threads is None else run.threads))
    try:
        if require_verified is not False and not artifact.is_unchanged():
            raise ArtifactError(f"{path} was replaced while it was opened; open it again")
        if labels is None or preprocessing is None:
            return classifier_of(session, invert=invert)
        manifest = told_manifest(session, labels, preprocessing)
        facts = artifact.describe()
        refuse_training(artifact, facts.get("in_training_mode", ()))
        gives = manifest.output.name in facts.get("probabilities", ())
        return Classifier(session, manifest, invert=invert, probabilities=gives)
    except CnndeployError:
        session.close()
        raise


def classifier_of(session: Session, *, invert: bool = False) -> Classifier:
    """Return a classifier of an open file with a manifest; raise ArtifactError if its graph contradicts that."""
    manifest = session.artifact.require_manifest()
    if (session.inputs, session.outputs) != ((manifest.input,), manifest.outputs):
        raise ArtifactError(
            f"{session.artifact.path} is not what its manifest says: it takes and gives {listed(session)}. "
            "Write it again with: cnndeploy export CHECKPOINT"
        )
    background = manifest.training.get("background", "dark")  # files of before it was recorded are so
    return Classifier(session, manifest, invert=invert, background=background)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute in float64 and round once, so that the same logits have the same probabilities on every runtime."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)
