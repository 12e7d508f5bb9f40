"""Compression: make a network smaller and faster within a budget of accuracy, or write nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cnndeploy.artifact import Artifact
from cnndeploy.certificate import try_to_certify
from cnndeploy.compression.job import Job
from cnndeploy.compression.report import METHODS, Compressed, Method
from cnndeploy.datasets import Data, require_labels
from cnndeploy.deployment import ArtifactLike
from cnndeploy.devices import torch_threads
from cnndeploy.errors import ArtifactError, CompressionError, UnknownNameError
from cnndeploy.files import check_writable, scratch_folder, write_file
from cnndeploy.progress import Deadline, Progress, ShouldStop, never, silent
from cnndeploy.quantization.quantize import require_provable
from cnndeploy.run import Run
from cnndeploy.verification.budget import require_budget, require_labels_that_differ
from cnndeploy.verification.reference import Reference, borrowed, require_origin, sides

_RUN = Run("onnxruntime", "cpu")


def compress(
    checkpoint: ArtifactLike | Reference,
    output: str | os.PathLike[str],
    *,
    against: ArtifactLike | Reference | None = None,
    budget: float = 0.5,
    methods: Sequence[Method] = (),
    run: Run | None = None,
    images: int | None = None,
    data: Data | None = None,
    seconds: float = 3.0,
    max_minutes: float = 20.0,
    smaller_only: bool = False,
    command: str = "",
    should_stop: ShouldStop = never,
    progress: Progress = silent,
) -> Compressed:
    """Write a smaller and faster network that loses no more accuracy than its budget; or write nothing.

    First layers are split into two of low rank. Then channels that never fire or do little are removed. Which and how
    far is chosen by training images and by how long each layer takes here. If there is time, a smaller network is
    repaired: it is trained on training images, by their labels and the checkpoint's outputs. Then it is quantised to
    int8, as by :func:`cnndeploy.quantize`. A method that does not make the file faster on this machine is left out.

    Test images measure at most seven files against the checkpoint; each time the upper end of a 95% interval errs in
    2.5% of cases. If a network keeps the budget and time is left, one that is cut further is tried too. Beside the file
    lies its certificate.

    Args:
        checkpoint: What ``cnndeploy train`` or ``cnndeploy import`` wrote, or a :class:`Reference` of it, which runs it
            once for many uses; or a compressed checkpoint.
        output: The file to write, or to replace: ``small.onnx``, or a checkpoint, ``small.pt``, that can be exported,
            evaluated and quantised like any other.
        against: The first checkpoint that a compressed one was made of, or a Reference of it: the loss is measured
            against that. Only a compressed checkpoint needs it.
        budget: Percentage points of test accuracy that may be lost.
        methods: Which of ``low-rank``, ``channels`` and ``int8`` to try; all by default, and for a checkpoint all but
            int8. ``channels`` needs Torch-Pruning, and is left out without.
        run: How an ONNX file is run when it is measured and timed; ONNX Runtime on the CPU by default.
        images, data: What it is measured on, as :func:`cnndeploy.verify_budget`'s; there must be training images too.
        seconds: Of timing for each of two files that are compared. With 0 nothing is timed, and no method is left out
            as too slow.
        max_minutes: When these are over, the best network so far is measured and written. If nothing was found by then,
            int8 of the whole network is tried for up to a quarter of that time more.
        smaller_only: Raise if nothing but int8 of the whole network keeps the budget, instead of returning that.
        command: The command that repeats the measurement, for the certificate.
        should_stop: Asked again and again; once it returns True the search ends, and the best network so far is
            measured and written. If there is none, nothing is written.
        progress: Called with what is done, of how much (0 if that is unknown), and at what.

    Raises:
        CompressionError: Nothing that was tried makes the network faster, or the arguments are not valid.
        BudgetError: Nothing that was tried keeps the budget, with the best figures in its message.
        Stopped: ``should_stop`` returned True before anything was found.
        CheckpointError, ArtifactError, ExportError, DataError: As :func:`cnndeploy.quantize` raises them.

    >>> compressed = cnndeploy.compress("lenet.pt", "small.pt", budget=20, images=64, seconds=0)
    >>> compressed.report.within_budget
    True
    """
    run, target = (run or Run()).over(_RUN), Path(output)
    chosen = _checked(target, methods, run, budget, max_minutes, seconds)
    source, original = sides(checkpoint, against)
    if source.format != "checkpoint":
        raise CompressionError(
            f"{source.path} is {source.kind}; give a checkpoint, such as lenet.pt. For ONNX files of other tools "
            "use quantize or tune."
        )
    deadline = Deadline.after(60 * max_minutes, should_stop)
    with borrowed(original, run.threads, data) as reference, scratch_folder() as folder:
        require_origin(source, reference)
        check_writable(target, source.path, reference.artifact.path)
        require_labels(reference.test, reference.dataset)
        count = len(reference.first(images, progress))
        require_provable(budget, count, len(reference.test))
        require_labels_that_differ(reference, count)
        job = Job(
            source,
            reference,
            target,
            Path(folder),
            budget,
            chosen,
            run,
            count,
            seconds,
            deadline,
            max_minutes,
            smaller_only,
            progress,
        )
        written, command = None, command or reference.command(target, budget)
        with torch_threads(run.thread_count):
            for made in job.made():  # the first is on the disk while a better one is looked for
                try:
                    written = _written(made, target, reference, command)
                except (ArtifactError, CompressionError) as error:
                    if written is None:
                        raise
                    written = written.with_note(f"a better one was not written: {error}")
        assert written is not None  # noqa: S101 - made() raises if nothing is made
        return written


def _written(made: Compressed, target: Path, reference: Reference, command: str) -> Compressed:
    """Write what was made, and its certificate."""
    if not reference.artifact.is_unchanged():
        raise CompressionError(
            f"{reference.artifact.path} was replaced meanwhile; what was made of it was not written. Compress the new "
            "file."
        )
    write_file(target, made.artifact.path.read_bytes())
    report = made.report.moved_to(target)
    certification = try_to_certify(report, target, command)
    return replace(made, artifact=Artifact.open(target), report=report, certification=certification)


def _checked(
    target: Path, methods: Sequence[Method], run: Run, budget: float, max_minutes: float, seconds: float
) -> tuple[Method, ...]:
    """Refuse what cannot work before anything long is done; return the methods in the order of their use."""
    require_budget(budget)
    if not 0 < max_minutes < math.inf or not 0 <= seconds < math.inf:
        raise CompressionError(
            f"max_minutes must be above 0, and seconds at least 0; got {max_minutes} and {seconds}"
        )
    if isinstance(methods, str):
        raise CompressionError(f"give methods as a list: methods=[{methods!r}]")
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
    if target.suffix not in (".pt", ".onnx"):
        raise CompressionError(f"{target} should end in .onnx, or in .pt for a checkpoint")
    if target.suffix == ".pt" and "int8" in methods:
        raise CompressionError(
            "a checkpoint is of float32: leave out int8, or write an ONNX file, small.onnx"
        )
    if run.device != "cpu":
        raise CompressionError("compression is for the CPU: sizes are chosen by how long layers take there")
    wanted = methods or (METHODS[:-1] if target.suffix == ".pt" else METHODS)
    return tuple(method for method in METHODS if method in wanted)
