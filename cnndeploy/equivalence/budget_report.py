"""BudgetReport: what a lossy file loses, and whether that is within its budget; JSON both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from cnndeploy.equivalence.report import FileIdentity
from cnndeploy.errors import BudgetError

_MAY_BE_INFINITE = ("loss_points", "loss_low_points", "loss_high_points")


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What measuring found.

    Accuracies and ``top1_agreement``, the share of images given the same label, are from 0 to 1. Loss and budget are
    in percentage points; ``loss_low_points`` to ``loss_high_points`` is the paired 95% interval. ``lost`` counts
    images that the checkpoint alone gets right, ``gained`` those that the artifact alone does. ``options`` are those
    of the runtime that were not left as they are. ``reasons`` is empty exactly where the file is within its budget.

    >>> report = cnndeploy.verify_budget("lenet.int8.onnx", "lenet.pt", budget=20, images=64)
    >>> report.loss_points <= report.loss_high_points <= report.budget_points
    True
    """

    NOTHING: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "images": 0,
            "artifact_accuracy": 0.0,
            "checkpoint_accuracy": 0.0,
            "loss_points": math.inf,
            "loss_low_points": -math.inf,
            "loss_high_points": math.inf,
            "gained": 0,
            "lost": 0,
            "top1_agreement": 0.0,
        }
    )

    artifact: FileIdentity
    against: FileIdentity
    runtime: str
    device: str
    threads: int
    images: int
    budget_points: float
    artifact_accuracy: float
    checkpoint_accuracy: float
    loss_points: float
    loss_low_points: float
    loss_high_points: float
    gained: int
    lost: int
    top1_agreement: float
    reasons: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def within_budget(self) -> bool:
        """Whether something was compared, and nothing speaks against it."""
        return self.images > 0 and not self.reasons and self.loss_high_points <= self.budget_points

    @property
    def verdict(self) -> str:
        """In words; never "equivalent", for a lossy file is not."""
        return "within budget" if self.within_budget else "not within budget"

    @classmethod
    def undecided(
        cls, artifact: Path, against: Path, device: str, budget: float, reason: str
    ) -> BudgetReport:
        """The report of a measurement that could not be done, or has not ended; it is no pass."""
        return cls(
            artifact=FileIdentity(str(artifact), ""),
            against=FileIdentity(str(against), ""),
            runtime="",
            device=device,
            threads=0,
            budget_points=budget,
            reasons=(reason,),
            **cls.NOTHING,
        )

    def require(self) -> None:
        """Raise BudgetError unless the file is within its budget."""
        if not self.within_budget:
            reasons = "; ".join(self.reasons) or "nothing was compared"
            raise BudgetError(
                f"{self.artifact.path} is not within its budget: {reasons}. "
                "Leave more layers in float, allow more with --budget, or ship the float file."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a figure that is not finite becomes None, because JSON has none."""
        values = {
            "verdict": self.verdict,
            "equivalent": False,
            "within_budget": self.within_budget,
            **asdict(self),
        }
        for name in _MAY_BE_INFINITE:
            values[name] = values[name] if math.isfinite(values[name]) else None
        return values

    @classmethod
    def from_json(cls, text: str) -> BudgetReport:
        """Read the JSON of :meth:`to_dict`."""
        values = json.loads(text)
        for name in ("verdict", "equivalent", "within_budget"):
            del values[name]
        for name in _MAY_BE_INFINITE:
            values[name] = cls.NOTHING[name] if values[name] is None else values[name]
        for name in ("artifact", "against"):
            values[name] = FileIdentity(**values[name])
        return cls(**{**values, "reasons": tuple(values["reasons"])})
