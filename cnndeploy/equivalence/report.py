"""EquivalenceReport: the verdict and its figures, JSON both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnndeploy.equivalence.comparison import Tolerance
from cnndeploy.equivalence.decisions import Decisions
from cnndeploy.equivalence.divergence import Divergence
from cnndeploy.equivalence.invariance import BatchInvariance
from cnndeploy.equivalence.oracle import OracleCheck
from cnndeploy.errors import NotEquivalentError


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file by name and content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SideFacts:
    """How one side was run: each node's, or parameter's, place, and the settings that bear on numbers."""

    placement: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EquivalenceReport:
    """What verification found.

    Errors are of logits: ``max_abs_error`` in logits, ``max_rel_error`` relative to the largest logit of the
    same image. ``top1_agreement`` is the share of ``images`` given the same label. ``reasons`` is empty
    exactly where the two are equivalent. What was not looked into is None, as ``divergence`` of a pass is.
    ``other_image_sizes`` are the heights and widths that a file that takes raw images was compared on too.

    >>> report = cnndeploy.verify("lenet.onnx", "lenet.pt", images=64)
    >>> report.equivalent, report.reasons
    (True, ())
    """

    artifact: FileIdentity
    against: FileIdentity
    runtime: str
    device: str
    threads: int
    images: int
    batch_sizes: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    top1_agreement: float
    tolerance: Tolerance
    reasons: tuple[str, ...]
    oracle: OracleCheck | None = None
    decisions: Decisions | None = None
    batch_invariance: BatchInvariance | None = None
    divergence: Divergence | None = None
    artifact_side: SideFacts | None = None
    against_side: SideFacts | None = None
    other_image_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def equivalent(self) -> bool:
        """Whether something was compared and nothing speaks against it."""
        return self.images > 0 and not self.reasons

    @classmethod
    def undecided(cls, artifact: Path, against: Path, device: str, reason: str) -> EquivalenceReport:
        """The report of a verification that could not be done, or has not ended; it is no pass."""
        return cls(
            artifact=FileIdentity(str(artifact), ""),
            against=FileIdentity(str(against), ""),
            runtime="",
            device=device,
            threads=0,
            images=0,
            batch_sizes=(),
            max_abs_error=math.inf,
            max_rel_error=math.inf,
            top1_agreement=0.0,
            tolerance=Tolerance(),
            reasons=(reason,),
        )

    def require(self) -> None:
        """Raise NotEquivalentError, carrying this report, unless the two are equivalent."""
        if not self.equivalent:
            raise NotEquivalentError(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a figure that is not finite becomes None, because JSON has none."""
        values = {"equivalent": self.equivalent, **asdict(self)}
        for name in ("max_abs_error", "max_rel_error"):
            values[name] = values[name] if math.isfinite(values[name]) else None
        return values

    @classmethod
    def from_json(cls, text: str) -> EquivalenceReport:
        """Read the JSON of :meth:`to_dict`."""
        values = json.loads(text)
        del values["equivalent"]
        for name in ("max_abs_error", "max_rel_error"):
            values[name] = math.inf if values[name] is None else values[name]
        if values["divergence"] is not None:
            values["divergence"] = Divergence.from_dict(values["divergence"])
        for name, kind in _PARTS.items():
            if values[name] is not None:
                values[name] = kind(**{key: _frozen(value) for key, value in values[name].items()})
        return cls(**{key: _frozen(value) for key, value in values.items()})


_PARTS: dict[str, type[Any]] = {
    "artifact": FileIdentity,
    "against": FileIdentity,
    "tolerance": Tolerance,
    "oracle": OracleCheck,
    "decisions": Decisions,
    "batch_invariance": BatchInvariance,
    "artifact_side": SideFacts,
    "against_side": SideFacts,
}


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
