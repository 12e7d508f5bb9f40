"""State: what an unfinished training needs to go on, in ``<checkpoint>.resume`` beside the checkpoint."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from cnndeploy.errors import TrainingError
from cnndeploy.files import write_file
from cnndeploy.training.plan import Plan

_JSON = "cnndeploy.training"
_TENSORS = ("network", "optimizer")


@dataclass(slots=True)
class State:
    """A training after ``step`` steps of the epoch that follows the completed ``epochs``, which are their records.

    ``sums`` are of the epoch under way: loss, right answers and images. ``confusion`` is of the last completed one.
    """

    plan: Plan
    device: str = "cpu"
    threads: int | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether there is no epoch left, and only the checkpoint has the weights."""
        return 0 < len(self.epochs) == self.plan.recipe.epochs and not self.network

    def save(self, output: Path) -> None:
        """Write the state beside the checkpoint ``output``, whole or not at all; raises ArtifactError."""
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _TENSORS}
        buffer = io.BytesIO()
        content = {_JSON: json.dumps({**facts, "plan": asdict(self.plan)})}
        torch.save({**content, "network": self.network, "optimizer": self.optimizer}, buffer)
        write_file(state_path(output), buffer.getvalue())

    @classmethod
    def load(cls, output: Path) -> State:
        """Read the state beside the checkpoint ``output``; nothing in the file is run.

        Raises:
            TrainingError: The file is damaged or no state of ours.
        """
        path = state_path(output)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            facts = json.loads(content.pop(_JSON))
            state = cls(**{**facts, **content})
            sound = len(state.sums) == 3 and state.step >= 0 and all("epoch" in each for each in state.epochs)
        except Exception:  # noqa: BLE001 - whatever a damaged file makes torch raise
            sound = False
        if not sound:
            raise TrainingError(
                f"{path} cannot be resumed from: it is damaged, or not ours. Remove it to begin anew."
            )
        state.plan = Plan.recorded(facts["plan"], path)
        return state


def state_path(output: str | os.PathLike[str]) -> Path:
    """Return where the state of the training that writes ``output`` lies."""
    return Path(f"{os.fspath(output)}.resume")


def log_path(output: str | os.PathLike[str]) -> Path:
    """Return where the epochs of the training that writes ``output`` are listed."""
    return Path(f"{os.fspath(output)}.jsonl")
