"""Every error that cnndeploy raises on purpose, and the exit codes of the CLI.

CnndeployError: 1
├── UnknownNameError, MissingDependencyError, DeviceUnavailableError, DataError, CheckpointError, ArtifactError,
│   TrainingError, ExportError, InputMismatchError, QuantizationError, CompressionError, ServingError, ClusterError
├── Stopped: 130
│   └── OutOfTime
└── ReportedError
    ├── BenchmarkError
    └── VerificationFailed
        ├── NotEquivalentError: 3
        └── BudgetError: 5

A message says what failed, what came, what was expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_LISTED = 20  # names in a message
_TORCH_EXTRA = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "matplotlib")


class CnndeployError(Exception):
    """Base of all errors that cnndeploy raises on purpose; ``exit_code`` is what the CLI exits with.

    >>> try:
    ...     cnndeploy.load("nowhere.onnx")
    ... except cnndeploy.CnndeployError as error:
    ...     print(error)
    nowhere.onnx: no such file
    """

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes by the finished text, for __init__ would expect what makes it up."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[CnndeployError], args: tuple[Any, ...], facts: dict[str, Any]) -> CnndeployError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` is probably a slip of, None if there is none.

    A slip rarely changes the first letter; 'mobilenet' is not meant to be 'lenet'.
    """
    import difflib  # not for an app in which nothing goes wrong

    alike = [one for one in known if one[:1] == name[:1].lower()]
    near = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=0.65)
    return near[0] if near else None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


class UnknownNameError(CnndeployError):
    """A name that the registry does not know; the nearest known one is suggested."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        near = nearest(name, known)
        hint = f" Did you mean {near!r}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known are: {_listed(known)}.")


class MissingDependencyError(CnndeployError):
    """A package that this operation needs is not installed; the message names the extra that brings it."""

    def __init__(self, package: str) -> None:
        if package == "onnxruntime":
            install = "pip install 'cnndeploy[cpu]', or on a machine with an NVIDIA GPU pip install 'cnndeploy[gpu]'"
        elif package in (*_TORCH_EXTRA, "executorch", "openvino", "tensorboard"):
            install = f"pip install 'cnndeploy[{'torch' if package in _TORCH_EXTRA else package}]'"
        elif package in ("grpc", "prometheus_client", "tritonclient", "uvicorn"):
            install = "pip install 'cnndeploy[serve]'"
        elif package in ("ray", "pyarrow", "pandas"):
            install = "pip install 'cnndeploy[ray]'"
        elif package == "torch_pruning":
            package, install = "torch-pruning", "pip install 'cnndeploy[compress]'"
        else:
            install = f"pip install {package}"
        super().__init__(f"The package {package} is not installed. Install it with: {install}")


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError:
    """Return what to raise for an import that failed for want of a third-party package; raise a fault of our own."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "cnndeploy"):
        raise error
    return MissingDependencyError(package)


class DeviceUnavailableError(CnndeployError):
    """The device asked for does not work on this machine; no other one is used instead."""


class DataError(CnndeployError):
    """A data set or image file is missing, damaged or not what it should be."""


class CheckpointError(CnndeployError):
    """A checkpoint cannot be read."""


class ArtifactError(CnndeployError):
    """An exported file cannot be read, written, opened or run."""


class TrainingError(CnndeployError):
    """Training cannot go on."""


class ExportError(CnndeployError):
    """An exporter could not write a file that passes its own checks."""


class ServingError(CnndeployError):
    """Models cannot be served."""


class ClusterError(CnndeployError):
    """Ray cannot be started or reached, or ended before it was done."""


class InputMismatchError(CnndeployError):
    """An array's name, dtype or shape differs from what the model takes."""


class ReportedError(CnndeployError):
    """Base of errors that carry what was found out until then."""

    report: object = None  # of one that a worker process met

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class BenchmarkError(ReportedError):
    """A candidate could not be measured, or none deployed; then ``report`` is tune's, with all that was timed."""


class QuantizationError(CnndeployError):
    """A file of fewer bits could not be made."""


class CompressionError(CnndeployError):
    """A smaller network could not be made; ``reasons`` says for each method why not.

    It is empty if the search did not finish, or did not begin. ``late`` says whether the time was over.
    """

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None, *, late: bool = False) -> None:
        super().__init__(message)
        self.reasons, self.late = dict(reasons or {}), late


class Stopped(CnndeployError):  # noqa: N818 - an outcome that was asked for
    """The caller asked for the work to end before it was done."""

    exit_code = 130


class OutOfTime(Stopped):
    """A deadline passed before the work was done."""


class VerificationFailed(ReportedError):  # noqa: N818 - read as a sentence
    """A file did not pass verification; ``report`` says why, None if there is no report."""


class NotEquivalentError(VerificationFailed):
    """The artifact does not compute what its checkpoint computes."""

    exit_code = 3


class BudgetError(VerificationFailed):
    """A lossy file loses more accuracy than its budget allows, as far as the images can tell.

    If nothing tried keeps it, ``reasons`` says for each method of compression why not.
    """

    exit_code = 5

    def __init__(self, message: str, report: object = None, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message, report)
        self.reasons = dict(reasons or {})
