"""BudgetReport: the verdict on a lossy file, what it loses and whether that is within its budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from cnndeploy.errors import BudgetError
from cnndeploy.verification.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReport(Verdict):
    """What measuring found of a file that gives up accuracy on purpose.

    Accuracies are from 0 to 1. Loss and budget are in percentage points; ``loss_low_points`` to ``loss_high_points`` is
    the paired 95% interval; None if the two could not be compared. ``lost`` counts images that the checkpoint alone
    gets right, ``gained`` those that the artifact alone does.

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

    kind: ClassVar = "budget"
    figures: ClassVar = (
        "runtime",
        "device",
        "images",
        "top1_agreement",
        "budget_points",
        "loss_points",
        "loss_low_points",
        "loss_high_points",
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

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if not self.passed:
            return "; ".join(self.reasons)
        return f"within budget on {self.images:,} images: loses {self.loss}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return {**Verdict.to_dict(self), "within_budget": self.passed}
