"""The certificate: ``<artifact>.verified.json``, what a passed verification leaves beside a file.

It names both files by SHA-256, so that it says nothing about any other file of the same name. Its verdict is
``equivalent``, or for a file that gives up accuracy on purpose ``within budget``. A file may be right on one runtime
and wrong on another, so there is one for each combination of runtime, precision and kind of device, and on CUDA one
each with and without CUDA graphs. All are in this one file: the newest, and under ``others`` those before it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from cnndeploy.artifact import Artifact, sha256_of, short_hash
from cnndeploy.errors import ArtifactError, CnndeployError, InputMismatchError
from cnndeploy.files import held, write_file
from cnndeploy.limits import read_json
from cnndeploy.machine import cpu_model, environment, int8_may_saturate
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.serial import dumps
from cnndeploy.words import counted

_LOSS_FIGURES = ("budget_points", "loss_points", "loss_low_points", "loss_high_points")
_CPU = "cpu"
_OTHER_BYTES = "this verification was of other bytes"
_FIGURES = (*_LOSS_FIGURES, "artifact_accuracy", "checkpoint_accuracy")


class Certifiable(Protocol):
    """A verdict, of which a certificate is made; ``to_dict()`` holds ``verdict`` and the files' SHA-256."""

    @property
    def passed(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]: ...


class SaturationWarning(CnndeployWarning):
    """An int8 file runs on a processor that may compute something else than the one that it was measured on."""


@dataclass(frozen=True, slots=True)
class Certification:
    """What became of the certificate at ``path``; ``none`` if there was none and is none.

    ``earlier`` describes the certificate that was there before, empty if none was. ``reason`` says why it was kept or
    removed, or could not be written.
    """

    outcome: Literal["written", "kept", "removed", "none"]
    path: Path
    earlier: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.outcome == "none":
            return f"No certificate: {self.reason}" if self.reason else ""
        if self.outcome == "written":
            return f"Certificate: {self.path}{f' (replaces {self.earlier})' if self.earlier else ''}"
        return f"{self.outcome.capitalize()} {self.earlier}, {self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of ``images`` of the test set that a file is right on, 0 to 1.

    ``checkpoint`` is its checkpoint's share of the same images if the file is lossy, else None: they are the same.
    """

    accuracy: float
    images: int
    checkpoint: float | None = None


def certificate_path(artifact: str | os.PathLike[str]) -> Path:
    """Return where the certificate of an artifact lies: beside it."""
    return Path(f"{os.fspath(artifact)}.verified.json")


def certify(verdict: Certifiable, artifact: str | os.PathLike[str], command: str) -> Certification:
    """Write the certificate of a pass, or remove the one that a failure has outdated; keep one that is stronger.

    A run is one by the same runtime, in the same precision, on the same kind of device. A pass replaces the certificate
    of its run if it has at least as many images, of whatever data set. A failure does not remove one that it says
    nothing about: that of another run, of another checkpoint, or of more images than showed a budget to be exceeded.

    ``artifact`` is where the file lies now, ``command`` repeats the verification. Other processes that certify the same
    file meanwhile wait. Raise ArtifactError if the certificate cannot be written or removed.
    """
    path = certificate_path(artifact)
    # where nothing can be written there is nothing to be lost
    alone = held(path, wait=True) if os.access(path.absolute().parent, os.W_OK) else contextlib.nullcontext()
    with alone:
        return _certified(verdict, artifact, command)


def _certified(verdict: Certifiable, artifact: str | os.PathLike[str], command: str) -> Certification:
    path, content = certificate_path(artifact), verdict.to_dict()
    certificates = _existing_certificates(artifact)
    run = _run_of(content)
    own = next((one for one in certificates or [] if _covers(one, run)), None)
    others = [one for one in certificates or [] if one is not own]
    earlier = _described(own) if own or others else _described_all(certificates)
    why_kept = _why_not_replaced if verdict.passed else _why_not_outdated
    nearest = own or (others[0] if others else None)
    if nearest and (reason := why_kept(content, nearest)):
        return Certification("kept", path, _described(nearest), reason)
    if verdict.passed:
        if _sha256(artifact) != content["artifact"]["sha256"]:
            raise ArtifactError(f"{artifact} is no longer the file that was verified; verify it again")
        date = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"date": date, "command": command, "environment": environment(), **content}
        _write(path, [content, *others])
        other_data = own is not None and content.get("data_sha256") != own.get("data_sha256")
        return Certification("written", path, f"{earlier}, of another data set" if other_data else earlier)
    if certificates is None:
        return Certification("none", path)
    try:
        if others:
            _write(path, others)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        left = f"the outdated certificate {path} could not be removed"
        raise ArtifactError(f"{left}: {error.strerror}") from error
    return Certification("removed", path, earlier, "the file did not pass this verification")


def try_to_certify(verdict: Certifiable, artifact: str | os.PathLike[str], command: str) -> Certification:
    """Do what :func:`certify` does, and return why there is no certificate if it cannot be written or removed.

    The disk may be full or read-only, which is no reason to lose what comes after.
    """
    try:
        return certify(verdict, artifact, command)
    except ArtifactError as error:
        return Certification("none", certificate_path(artifact), reason=str(error))


def read_certificate(artifact: Artifact) -> dict[str, Any] | None:
    """Return the newest certificate for this exact file, by whatever runtime, or None."""
    return next(iter(read_certificates(artifact)), None)


def read_certificates(artifact: Artifact) -> list[dict[str, Any]]:
    """Return the certificates for this exact file, each of another run, the newest first.

    A ``verdict`` is ``equivalent``, or ``within budget`` with the figures for a file that is lossy or was run so.
    """
    try:
        path = certificate_path(artifact.path)
        if not path.is_file():  # a named pipe would never end
            return []
        newest = read_json(path)
        others = newest.pop("others", [])
        return [one for content in (newest, *others) if (one := _valid(artifact, content)) is not None]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []


def _valid(artifact: Artifact, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a certificate if it is one, and for this exact file."""
    try:
        # certificates had neither before files could be lossy
        content = {"verdict": "equivalent", "options": {}, **content}
        options = RuntimeOptions.of(content["options"])
        lossy = _is_lossy(artifact, options)
        if content["verdict"] == "equivalent":
            passes = content["equivalent"] is True and not lossy
        else:
            passes = lossy and _keeps_budget(content)
        passes = passes and type(content["images"]) is int and content["images"] > 0
        matches = content["artifact"]["sha256"] == artifact.sha256 and content["against"]["sha256"]
        complete = {"runtime", "device", "date"} <= content.keys()
        return content if passes and matches and complete else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def require_certificate(artifact: Artifact, run: Run, images: int) -> None:
    """Raise ArtifactError unless these bytes were verified by this runtime, so and on so many images.

    The precision and the kind of device, such as ``cpu``, must be the same too.

    True is 1: any number of images. Raise InputMismatchError for what is no number of images.
    """
    if not isinstance(images, int) or images < 1:
        raise InputMismatchError(
            f"require_verified is True or a number of images, at least 1; not {images!r}"
        )
    certificates = read_certificates(artifact)
    certificate = next((one for one in certificates if _covers(one, run)), None)
    if certificate is None:
        device = "" if _kind(run.device) == _CPU else f" on {run.device}"
        only = f", only {_described_all(certificates)}" if certificates else ""
        raise ArtifactError(
            f"{artifact.path} has no certificate of a verification of exactly its bytes by "
            f"{run.runtime}{device}{run.choices}{only}. {_how_to_verify(artifact, run)}"
        )
    if certificate["images"] < images:
        raise ArtifactError(
            f"{artifact.path} was verified on {counted(certificate['images'], 'image')}, and at least {images:,} are "
            "required. Verify it on more with: cnndeploy verify"
        )


def remove_stale_certificate(artifact: str | os.PathLike[str]) -> Certification:
    """Delete the certificate unless it matches the file's current bytes."""
    path, certificates = certificate_path(artifact), _existing_certificates(artifact)
    if certificates is None:
        return Certification("none", path)
    earlier = _described_all(certificates)
    if certificates:
        return Certification("kept", path, earlier, "it is of the bytes that are there")
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        return Certification("removed", path, earlier, "it says nothing about the file as it is")
    return Certification("kept", path, earlier, "it could not be removed; it counts for nothing")


def doubt_here(artifact: Artifact, run: Run) -> str:
    """Return a warning if an int8 file may lose more on this processor than where it was measured, else no text."""
    quantization = (None if artifact.manifest is None else artifact.manifest.quantization) or {}
    if quantization.get("precision") != "int8" or _kind(run.device) != _CPU or not int8_may_saturate():
        return ""
    for one in read_certificates(artifact):
        machine = one.get("environment")
        if _covers(one, run) and isinstance(machine, Mapping) and machine.get("cpu") == cpu_model():
            return ""
    return (
        "this processor has no VNNI, so sums of 8-bit products may saturate, and the file may lose more accuracy than "
        f"was measured. To find out: cnndeploy verify {artifact.path} --against CHECKPOINT"
    )


def known_accuracy(artifact: Artifact, run: Run) -> Accuracy | None:
    """Return the test accuracy of a file that is run so, as far as it is known without running it.

    A file that computes what its checkpoint computes has the checkpoint's accuracy, which its manifest says. A lossy
    one has its own: that of its certificate by the same runtime, in the same precision and on the same kind of device,
    else None. Nothing is known of one that another program made lossy.
    """
    if _is_lossy(artifact, run.choices):
        certificates = read_certificates(artifact)
        certificate = next((one for one in certificates if _covers(one, run)), None)
        if certificate is None:
            return None
        own, checkpoint = certificate["artifact_accuracy"], certificate["checkpoint_accuracy"]
        return Accuracy(own, certificate["images"], checkpoint)
    if artifact.lossy_parts():
        return None
    training = {} if artifact.manifest is None else artifact.manifest.training
    accuracy = training.get("test_accuracy")
    return None if accuracy is None else Accuracy(accuracy, training.get("test_images", 0))


def _existing_certificates(artifact: str | os.PathLike[str]) -> list[dict[str, Any]] | None:
    """Return the certificates beside a file that are valid for the file as it is; None if there is no such file."""
    if not certificate_path(artifact).exists():
        return None
    try:
        return read_certificates(Artifact.open(artifact))
    except CnndeployError:  # the artifact is gone, or no model file any more
        return []


def _write(path: Path, certificates: list[dict[str, Any]]) -> None:
    newest, *others = certificates
    write_file(path, dumps({**newest, **({"others": others} if others else {})}).encode())


def _why_not_replaced(passed: Mapping[str, Any], certificate: Mapping[str, Any]) -> str:
    """Say why a valid certificate is not replaced by one of this pass; empty if it is."""
    if passed["artifact"]["sha256"] != certificate["artifact"]["sha256"]:
        return _OTHER_BYTES
    if not _covers(certificate, _run_of(passed)):
        return ""
    if passed["images"] < certificate["images"]:
        other_data = passed.get("data_sha256") != certificate.get("data_sha256")
        of = " of another data set" if other_data else ""
        return f"this pass was on {counted(passed['images'], 'image')}{of}"
    ours, its = passed.get("budget_points"), certificate.get("budget_points")
    if ours and its and passed["images"] == certificate["images"] and ours > its:
        return f"its budget of {its:g} points is smaller than {ours:g}"
    return ""


def _why_not_outdated(failed: Mapping[str, Any], certificate: Mapping[str, Any]) -> str:
    """Say why a valid certificate is not outdated by this failure; empty if it is."""
    if failed["artifact"]["sha256"] != certificate["artifact"]["sha256"]:
        return _OTHER_BYTES
    against = certificate["against"]
    if failed["against"]["sha256"] != against["sha256"]:
        its_own = f"{against.get('path')} ({short_hash(against['sha256'])})"
        return f"it is about the checkpoint {its_own}, which is not the one that was given"
    run = _run_of(failed)
    if not _covers(certificate, run):  # what the certificate is required for, by require_certificate
        return f"this verification was by {run.runtime} on {run.device}{run.choices}"
    if certificate["verdict"] == "within budget" and 0 < failed["images"] < certificate["images"]:
        return f"this verification was on {counted(failed['images'], 'image')}, fewer than its own"
    high, its = failed.get("loss_high_points"), certificate.get("budget_points")
    if certificate["verdict"] == "within budget" and failed["images"] and high is not None and high <= its:
        return f"the loss is within its own budget of {its:g} points"
    return ""


def _described_all(certificates: Sequence[Mapping[str, Any]] | None) -> str:
    if certificates is None:
        return ""
    return " and ".join(map(_described, certificates)) or "a certificate that is not of this file"


def _described(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return ""
    run = f"{certificate['runtime']} on {certificate['device']}{RuntimeOptions.of(certificate['options'])}"
    return f"the certificate on {counted(certificate['images'], 'image')} by {run}"


def _run_of(verdict: Mapping[str, Any]) -> Run:
    return Run(verdict["runtime"], verdict["device"], options=RuntimeOptions.of(verdict["options"]))


def _covers(certificate: Mapping[str, Any], run: Run) -> bool:
    """Return whether the certificate is for this runtime, kind of device, precision and use of CUDA graphs."""
    its = _run_of(certificate)
    its_own, own = ((one.runtime, one.choices.numbers, _kind(one.device)) for one in (its, run))
    return its_own == own


def _kind(device: str) -> str:
    """Return ``cuda`` for ``cuda:1``; the default is the CPU."""
    return str(device or _CPU).partition(":")[0]


def _is_lossy(artifact: Artifact, options: RuntimeOptions) -> bool:
    return options.lossy or (artifact.manifest is not None and artifact.manifest.lossy)


def _how_to_verify(artifact: Artifact, run: Run) -> str:
    if artifact.manifest is None:
        return "Only a file that cnndeploy wrote can be verified."
    if artifact.format == "checkpoint" and run.runtime == "eager":
        return "A checkpoint is what other files are verified against; load a file that was exported from it."
    if artifact.is_reference and run.runtime == "onnxruntime":
        return (
            "It was imported, so it is what other files are verified against. Load it without this requirement, or if "
            "you have the checkpoint that it was exported from, verify it against that."
        )
    return f"Verify it by {run.runtime} with: cnndeploy verify"


def _sha256(artifact: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, empty if it cannot be read."""
    try:
        return sha256_of(Path(artifact))
    except OSError:
        return ""


def _keeps_budget(content: Mapping[str, Any]) -> bool:
    """Return whether the certificate says so, and its figures are complete and agree."""
    figures = [content[name] for name in _FIGURES]
    return (
        (content["verdict"], content["equivalent"], content["within_budget"])
        == ("within budget", False, True)
        and all(type(figure) in (int, float) and math.isfinite(figure) for figure in figures)
        and content["loss_high_points"] <= content["budget_points"]
    )
