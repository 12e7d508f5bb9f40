"""Verdict: whether a file passed verification, why not, and by what it was judged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from cnndeploy.artifact import Artifact
from cnndeploy.errors import VerificationFailed
from cnndeploy.serial import jsonable


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

    ``runtime``, ``device``, ``threads`` and ``options`` say how the artifact was run; of the options only those that
    differ from their defaults. ``top1_agreement`` is the share of ``images`` given the same label. ``reasons`` is empty
    exactly if the artifact passed.
    """

    artifact: FileIdentity
    against: FileIdentity
    runtime: str = ""
    device: str = ""
    threads: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
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
    @abstractmethod
    def summary(self) -> str:
        """The verdict and its main figures, or the reasons against it, in one sentence."""

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
