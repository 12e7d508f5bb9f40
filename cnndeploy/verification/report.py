"""EquivalenceReport: the verdict on a file that is to compute what its checkpoint computes, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cnndeploy.errors import NotEquivalentError
from cnndeploy.verification.comparison import Tolerance
from cnndeploy.verification.decisions import Decisions
from cnndeploy.verification.divergence import Divergence
from cnndeploy.verification.invariance import BatchInvariance
from cnndeploy.verification.oracle import OracleCheck
from cnndeploy.verification.verdict import Verdict


@dataclass(frozen=True, slots=True)
class SideFacts:
    """How one side was run: each node's, or parameter's, place, and the settings that bear on numbers."""

    placement: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivalenceReport(Verdict):
    """What verification found of a file that computes in float32.

    Errors are of logits: ``max_abs_error`` in logits, ``max_rel_error`` relative to the largest logit of the same
    image; None if the two could not be compared. What was not looked into is None, as ``divergence`` of a pass is.
    ``other_image_sizes`` are the heights and widths that a file that takes raw images was compared on too.

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

    kind: ClassVar = "equivalence"
    figures: ClassVar = ("runtime", "device", "images", "top1_agreement", "max_abs_error", "max_rel_error")
    _error: ClassVar = NotEquivalentError
    _goal: ClassVar = "equivalent"

    @property
    def equivalent(self) -> bool:
        """Whether the artifact passed."""
        return self.passed

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        return f"equivalent on {self.images:,} images" if self.passed else "; ".join(self.reasons)
