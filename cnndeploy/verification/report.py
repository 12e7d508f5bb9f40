"""Reports: whether a file passed verification, why not, and by what it was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from cnndeploy.artifact import Artifact
from cnndeploy.errors import BudgetError, NotEquivalentError, VerificationFailed
from cnndeploy.serial import jsonable
from cnndeploy.verification.checks import BatchInvariance, Decisions, OracleCheck, Tolerance
from cnndeploy.verification.divergence import Divergence
from cnndeploy.verification.prepared import PreparedCheck
from cnndeploy.words import counted


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file by name and content."""

    path: str
    sha256: str

    @classmethod
    def of(cls, artifact: Artifact) -> FileIdentity:
        """Return the identity of an opened file."""
        return cls(str(artifact.path), artifact.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What verification found of one artifact ``against`` one checkpoint; the base of both kinds of report.

    ``against_runtime`` is what ran the checkpoint, or the ONNX file that was imported in the place of one.
    ``runtime``, ``device``, ``threads`` and ``options`` say how the artifact was run; of the options only those that
    differ from their defaults. ``data`` is the data set, and ``data_sha256`` what identifies its test images, by file
    or folder. ``top1_agreement`` is the share of ``images`` given the same label. ``reasons`` is empty
    exactly if the artifact passed.
    """

    artifact: FileIdentity
    against: FileIdentity
    runtime: str = ""
    device: str = ""
    threads: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    against_runtime: str = "eager"
    data: str = ""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    images: int = 0
    top1_agreement: float = 0.0
    reasons: tuple[str, ...] = ()

    kind: ClassVar[str]
    """``equivalence`` or ``budget``."""
    figures: ClassVar[tuple[str, ...]]
    """The fields that a summary shows."""
    _error: ClassVar[type[VerificationFailed]]
    _goal: ClassVar[str]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing speaks against it."""
        return self.images > 0 and not self.reasons

    @property
    def verdict(self) -> str:
        """The verdict in words: ``equivalent``, or for a lossy file ``within budget``; else ``not`` so."""
        return self._goal if self.passed else f"not {self._goal}"

    @property
    def summary(self) -> str:
        """The verdict and its main figures, or the reasons against it, in one sentence."""
        if not self.passed:
            return "; ".join(self.reasons)
        return f"{self._goal} on {counted(self.images, 'image')}{f': loses {self.loss}' if self.loss else ''}"

    @property
    def loss(self) -> str:
        """The loss with its interval, in words; empty of a file that may lose nothing."""
        return ""

    @property
    def accuracy(self) -> float | None:
        """The artifact's accuracy on the images, 0 to 1; None if it was not measured."""
        return None

    @classmethod
    def undecided(cls, artifact: object, against: object, reason: str, **known: Any) -> Self:
        """Return the verdict of a verification that could not be done, or has not ended; it is no pass."""
        files = FileIdentity(str(artifact), ""), FileIdentity(str(against), "")
        return cls(artifact=files[0], against=files[1], reasons=(reason,), **known)

    def moved_to(self, path: object) -> Self:
        """Return the verdict on the same bytes at another place."""
        return replace(self, artifact=FileIdentity(str(path), self.artifact.sha256))

    def require(self) -> None:
        """Raise NotEquivalentError or BudgetError, which carry this report, unless the artifact passed."""
        if not self.passed:
            reasons = "; ".join(self.reasons) or "nothing was compared"
            raise self._error(f"{self.artifact.path} is {self.verdict}: {reasons}", self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return {"verdict": self.verdict, "equivalent": self.verdict == "equivalent", **jsonable(self)}


@dataclass(frozen=True, slots=True)
class SideFacts:
    """How one side was run: each node's, or parameter's, place, and the settings that bear on numbers."""

    placement: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivalenceReport(Verdict):
    """What verification found of a file that computes in float32.

    Errors are of logits: ``max_abs_error`` in logits, ``max_rel_error`` relative to the largest logit of the same
    image, or of the median image if that is larger; None if the two could not be compared. What was not looked into is
    None, as ``divergence`` of a pass is. ``other_image_sizes`` are the heights and widths that a file that takes raw
    images was compared on too. ``prepared`` says how such a file's preprocessing differs, if it resizes as Pillow does;
    errors of logits are then of the images as its network got them.

    >>> report = cnndeploy.verify("lenet.onnx", "lenet.pt", images=64)
    >>> report.equivalent, report.reasons
    (True, ())
    """

    batch_sizes: tuple[int, ...] = ()
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    oracle: OracleCheck | None = None
    decisions: Decisions | None = None
    batch_invariance: BatchInvariance | None = None
    divergence: Divergence | None = None
    artifact_side: SideFacts | None = None
    against_side: SideFacts | None = None
    other_image_sizes: tuple[tuple[int, int], ...] = ()
    prepared: PreparedCheck | None = None

    kind: ClassVar = "equivalence"
    figures: ClassVar = ("runtime", "device", "images", "top1_agreement", "max_abs_error", "max_rel_error")
    _error: ClassVar = NotEquivalentError
    _goal: ClassVar = "equivalent"

    @property
    def equivalent(self) -> bool:
        """Whether the artifact passed."""
        return self.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReport(Verdict):
    """What measuring found of a file that gives up accuracy on purpose.

    Accuracies are from 0 to 1. Loss and budget are in percentage points; ``loss_low_points`` to ``loss_high_points`` is
    the paired 95% interval; None if the two could not be compared. ``lost`` counts images that the checkpoint alone
    gets right, ``gained`` those that the artifact alone does.
    ``files_measured`` counts the files that the same :class:`Reference` measured on the test images, up to and with
    this one: each was a chance of 2.5% to pass wrongly.

    >>> report = cnndeploy.verify_budget("lenet.int8.onnx", "lenet.pt", budget=20, images=64)
    >>> report.loss_points <= report.loss_high_points <= report.budget_points
    True
    """

    budget_points: float = 0.0
    artifact_accuracy: float = 0.0
    checkpoint_accuracy: float = 0.0
    loss_points: float | None = None
    loss_low_points: float | None = None
    loss_high_points: float | None = None
    gained: int = 0
    lost: int = 0
    files_measured: int = 1

    kind: ClassVar = "budget"
    figures: ClassVar = (
        *("runtime", "device", "images", "top1_agreement"),
        *("budget_points", "loss_points", "loss_low_points", "loss_high_points"),
    )
    _error: ClassVar = BudgetError
    _goal: ClassVar = "within budget"

    @property
    def within_budget(self) -> bool:
        """Whether the artifact passed."""
        return self.passed

    @property
    def accuracy(self) -> float | None:
        """The artifact's accuracy on the images, 0 to 1; None if it was not measured."""
        return self.artifact_accuracy if self.images else None

    @property
    def loss(self) -> str:
        """The loss with its interval, in words."""
        if self.loss_points is None:
            return "not compared"
        return f"{self.loss_points:.2f} points ({self.loss_low_points:.2f} to {self.loss_high_points:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return {**Verdict.to_dict(self), "within_budget": self.passed}
