"""Both sides of a verification: candidates run in processes of their own, and the checkpoint that is the reference."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Data, Images, open_dataset, warn_of
from cnndeploy.deployment import ArtifactLike, Candidate, resolve
from cnndeploy.errors import ArtifactError, DataError
from cnndeploy.process import Message, WorkerProcess
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.run import Precision, Run, Threads
from cnndeploy.runtimes import Activation
from cnndeploy.serial import jsonable, structure
from cnndeploy.specs import TensorSpec
from cnndeploy.verification.prepared import PreparedCheck, noise_sizes
from cnndeploy.verification.report import SideFacts

# Eager PyTorch keeps every activation of a layer at once; smaller batches bound the memory of large networks.
_BATCH, _FLOAT64_BATCH = 64, 32


class NotRun(Exception):  # noqa: N818 - an outcome of verification, and no fault of the user's
    """The artifact cannot be run on a batch; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Computation:
    """What is computed of a candidate: float32 as it is, or for a checkpoint something else.

    ``precision`` is float32, tf32 or float64; ``weights`` the dtype that a checkpoint's weights are rounded to first.
    ``simplified``: the network is simplified first, as exporters do. In float64 the images are prepared in float32 and
    then widened, or with ``from_raw`` prepared in float64: beside a file that prepares them itself, that is part of
    what may be rounded. ``size`` is the height and width that raw images are resampled to first. ``moves`` is a folder:
    a file that resizes as Pillow does writes there by how many grey levels its prepared images are off, and a
    checkpoint computes with images that are off so. ``noise``: such a file gets noise of this ``size`` instead of the
    images, and what it makes of that is judged; its logits are not.
    """

    precision: Precision = "float32"
    weights: Precision = "float32"
    simplified: bool = False
    from_raw: bool = False
    size: tuple[int, int] | None = None
    moves: str = ""
    noise: bool = False


AS_IT_IS = Computation()


class Runner(WorkerProcess):
    """A worker process that opens one candidate; a context manager that ends the process.

    ``data`` is the data set's spec. ``numbers`` turns an image's place among those that can be read into its number in
    the whole split, by which the worker reads it. ``whole`` has the sizes of batches that were run in one call;
    ``split`` says whether one was not, as raw images of several sizes cannot be.
    """

    def __init__(
        self, candidate: Candidate, data: str, numbers: Callable[[Sequence[int]], list[int]]
    ) -> None:
        self.candidate, self._is_open, self._numbers = candidate, False, numbers
        self.prepared = PreparedCheck()  # of all that was run
        self.whole: set[int] = set()
        self.split = False
        artifact = candidate.artifact
        super().__init__("cnndeploy.verification.worker", str(artifact.path), subject=str(artifact.path))
        self.send({"artifact": jsonable(artifact), "run": candidate.run.to_dict(), "data": data})

    def opened(self) -> Self:
        """Return itself once the worker has opened its artifact; raise the error that it met."""
        if not self._is_open:
            facts = self.receive()
            self.device: str = facts["device"]
            self.threads: int = facts["threads"]
            self.inputs = structure(tuple[TensorSpec, ...], facts["inputs"])
            self.outputs = structure(tuple[TensorSpec, ...], facts["outputs"])
            self.facts = structure(SideFacts, facts)
            self._is_open = True
        return self

    def logits(
        self, batches: Sequence[list[int]], computation: Computation = AS_IT_IS
    ) -> Iterator[NDArray[Any]]:
        """Yield the logits of each batch of images' places, in the artifact's dtype; raise NotRun at one that fails."""
        self.send({"batches": list(map(self._numbers, batches)), "computation": jsonable(computation)})
        for batch in batches:
            answer = self._receive_run()
            self.split |= not answer["whole"]
            if answer["whole"] and batch:
                self.whole.add(len(batch))
            if "prepared" in answer:
                self.prepared = self.prepared.plus(structure(PreparedCheck, answer["prepared"]))
            yield answer["logits"]

    def check_noise(self) -> None:
        """Raise NotRun if a file that resizes as Pillow does makes something else of noise."""
        manifest = self.candidate.artifact.require_manifest()
        for size in noise_sizes(manifest.preprocessing) if manifest.resizing else ():
            for _ in self.logits([[]], Computation(size=size, noise=True)):
                pass

    def activations(
        self, batch: list[int], folder: Path, computation: Computation = AS_IT_IS
    ) -> list[Activation]:
        """Return what each module computes for one batch, in files in a new ``folder``; raise NotRun if it fails."""
        folder.mkdir()
        request = {"batches": [self._numbers(batch)], "computation": jsonable(computation)}
        self.send({**request, "folder": str(folder)})
        modules = self._receive_run()["activations"]
        return [
            Activation(one["module"], one["kind"], np.load(one["file"], mmap_mode="r")) for one in modules
        ]

    def _receive_run(self) -> Message:
        answer = self.receive()
        if "failed" in answer:
            raise NotRun(answer["failed"])
        return answer


class Reference:
    """What a checkpoint computes for the test images, in eager PyTorch on the CPU; a context manager.

    An imported ONNX file is a reference too, which ONNX Runtime runs on the CPU. The reference is
    opened in one worker process, when it is first needed. Its logits are remembered, so that
    verifying several files, quantizing and tuning run it once.

    >>> with cnndeploy.Reference("lenet.pt") as reference:
    ...     [cnndeploy.verify(file, reference, images=64).verdict for file in ("lenet.onnx", "lenet.torchscript")]
    ['equivalent', 'equivalent']
    """

    def __init__(
        self,
        checkpoint: ArtifactLike,
        *,
        threads: Threads | None = None,
        data: Data | None = None,
    ) -> None:
        """Open the checkpoint, and start nothing yet.

        Args:
            checkpoint: What ``cnndeploy train`` wrote, or ``cnndeploy import``.
            threads: CPU threads, all that the process may use by default.
            data: ``fashion-mnist`` or a folder of images, which need no labels; what the checkpoint was made on by
                default.

        Raises:
            ArtifactError, CheckpointError: It cannot be read, or is neither.
            DataError: The data set is missing or damaged.
        """
        # a deployment's plan may run it by another runtime
        self.candidate = resolve(resolve(checkpoint).artifact, Run(device="cpu", threads=threads))
        self.artifact = self.candidate.artifact
        self.data = None if data is None else os.fspath(data)
        if not self.artifact.is_reference:
            self.artifact.require_manifest()
            raise ArtifactError(
                f"{self.artifact.path} is {self.artifact.kind}; name the checkpoint it came from instead"
            )
        manifest = self.artifact.require_manifest()
        self.dataset = open_dataset(data, manifest.data, self.artifact.path)
        self.test = self._all = self.dataset.split("test", manifest.preprocessing.channels, manifest.labels)
        self._read = 0  # so many of them are known to be readable
        self.files_measured = 0  # whose loss was measured on these images
        self._runner: Runner | None = None
        self._known: dict[Computation, tuple[NDArray[Any], NDArray[np.bool_]]] = {}

    @property
    def has_modules(self) -> bool:
        """Whether it is a network of modules, whose outputs can be compared, and not an imported file."""
        return self.artifact.format == "checkpoint"

    def start(self) -> Runner:
        """Start the worker, if none is at work, and do not wait for it."""
        if self._runner is None:
            self._runner = Runner(self.candidate, self.dataset.spec, self.numbers)
        return self._runner

    def numbers(self, places: Sequence[int]) -> list[int]:
        """Return the numbers in the whole split of images of ``test``."""
        numbers: list[int] = self.test.numbers[list(places)].tolist()
        return numbers

    def first(self, count: int | None = None, progress: Progress = silent) -> Images:
        """Return the first ``count`` test images, or all of them for None, without those that cannot be read.

        These are left out of ``test`` from then on, with a warning. Raise DataError if there are fewer images, or none
        that can be read.
        """
        count = len(self._all.first(count))
        while self._read < min(count, len(self.test)):
            unread = self.test.take(range(self._read, min(count, len(self.test))))
            readable = unread.sound(self.artifact.require_manifest().preprocessing.resized_size, progress)
            if readable.damaged:
                warn_of(readable.damaged)
                damaged = np.setdiff1d(unread.numbers, readable.numbers)
                self.test = self.test.take(np.flatnonzero(~np.isin(self.test.numbers, damaged)))
            self._read += len(readable)
            if not len(self.test):
                raise DataError(f"no image can be used: {readable.damaged[0].reason}")
        return self.test.first(min(count, len(self.test)))

    def logits(
        self,
        images: Sequence[int],
        computation: Computation = AS_IT_IS,
        *,
        deadline: Deadline | None = None,
        progress: Progress = silent,
    ) -> NDArray[Any]:
        """Return logits (images, classes): float32, or float64 if that is computed.

        Args:
            images: Places of images in ``test``.
            computation: What to compute.
            deadline: Checked after every batch; what was computed until then is remembered.
            progress: Called with the images that are known, of how many.

        Raises:
            ArtifactError: The checkpoint cannot be run.
            Stopped: The deadline passed.
        """
        if (last := max(images, default=-1)) >= self._read:
            self.first(last + 1)
        rows, known = self._memory(computation)
        missing = [number for number in images if not known[number]]
        size = _FLOAT64_BATCH if computation.precision == "float64" else _BATCH
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        done = len(images) - len(missing)
        if done:
            progress(done, len(images), "Running the checkpoint")
        try:
            answers = self.start().opened().logits(batches, computation) if batches else ()
            for batch, logits in zip(batches, answers, strict=True):
                if logits.shape != (len(batch), rows.shape[1]):
                    raise NotRun(f"it gives {logits.shape} for {len(batch)} images")
                rows[batch], known[batch] = logits, True
                done += len(batch)
                progress(done, len(images), "Running the checkpoint")
                if deadline is not None and done < len(images):
                    deadline.check()
        except BaseException as error:
            self.release()  # left in the middle of its answers, the worker cannot be asked again
            if isinstance(error, NotRun):
                raise ArtifactError(f"{self.artifact.path} cannot be run: {error}") from error
            raise
        return rows_of(rows, images)

    def activations(
        self, batch: list[int], folder: Path, computation: Computation = AS_IT_IS
    ) -> list[Activation]:
        """Return what each module computes for one batch, in files in a new ``folder``; raise NotRun if it fails."""
        try:
            return self.start().opened().activations(batch, folder, computation)
        except BaseException:
            self.release()  # it may have ended
            raise

    def labels(
        self, count: int, *, deadline: Deadline | None = None, progress: Progress = silent
    ) -> NDArray[np.intp]:
        """Return the label of each of the first ``count`` images; raise as :meth:`logits`, and at NaN or infinity."""
        logits = self.logits(range(len(self.first(count))), deadline=deadline, progress=progress)
        if not np.isfinite(logits).all():
            raise ArtifactError(f"{self.artifact.path} gives NaN or infinite logits; train it again")
        labels: NDArray[np.intp] = logits.argmax(axis=1)
        return labels

    def forget(self, computation: Computation) -> None:
        """Free the memory for a computation that nobody will ask for again."""
        self._known.pop(computation, None)

    def command(self, path: Path, budget: float) -> str:
        """Return the command that measures a lossy file again."""
        words = ["cnndeploy", "verify", str(path), "--against", str(self.artifact.path)]
        data = () if self.data is None else ("--data", str(self.data))
        return shlex.join([*words, "--budget", f"{budget:g}", *data])

    def release(self) -> None:
        """End the worker and free its memory; what it computed is still known, and it starts again if needed."""
        if self._runner is not None:
            self._runner.__exit__(None, None, None)
            self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def _memory(self, computation: Computation) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return logits (test images, classes), and which of them are known; unwritten rows take no memory yet."""
        if computation not in self._known:
            classes = int(self.artifact.require_manifest().output.shape[-1])
            dtype = np.float64 if computation.precision == "float64" else np.float32
            rows: NDArray[Any] = np.empty((len(self.test), classes), dtype)
            self._known[computation] = rows, np.zeros(len(self.test), bool)
        return self._known[computation]


def sides(
    source: ArtifactLike | Reference, against: ArtifactLike | Reference | None
) -> tuple[Artifact, ArtifactLike | Reference]:
    """Return a file that something is made of, and what that is compared with: itself, or what it was compressed from.

    Raise ArtifactError if ``against`` is missing, or not wanted; that it is the right one is seen when it is opened.
    """
    artifact = source.artifact if isinstance(source, Reference) else resolve(source).artifact
    if artifact.format != "checkpoint" or artifact.is_reference:
        if against is not None:
            raise ArtifactError(
                f"{artifact.path} was not compressed, so it is compared with itself alone; name no other checkpoint"
            )
        return artifact, source if isinstance(source, Reference) else artifact
    if against is None:
        raise ArtifactError(
            f"{artifact.path} was compressed, so what is made of it is compared with the checkpoint that it came from; "
            "name that: against=original.pt"
        )
    return artifact, against


def require_origin(artifact: Artifact, reference: Reference) -> None:
    """Raise ArtifactError if a file is not the reference itself, and was not compressed from it."""
    manifest, original = artifact.require_manifest(), reference.artifact
    if original.sha256 not in (artifact.sha256, manifest.compression and manifest.held_against):
        raise ArtifactError(
            f"{artifact.path} was not made of {original.path}, but of another checkpoint; see cnndeploy inspect"
        )


def rows_of(rows: NDArray[Any], images: Sequence[int]) -> NDArray[Any]:
    """Return the rows of these images; of a range without a copy."""
    if isinstance(images, range) and images.step == 1:
        return rows[images.start : images.stop]
    return rows[list(images)]


def borrowed(
    against: ArtifactLike | Reference, threads: Threads | None, data: Data | None
) -> contextlib.AbstractContextManager[Reference]:
    """Return the reference that was given, or one of the checkpoint that was given, which the block closes."""
    if isinstance(against, Reference):
        return contextlib.nullcontext(against)
    return Reference(against, threads=threads, data=data)
