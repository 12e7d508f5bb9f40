"""State: what an unfinished training needs to go on, in ``<checkpoint>.resume`` beside the checkpoint."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cnndeploy.artifact import write_file
from cnndeploy.errors import TrainingError

_JSON = "cnndeploy.training"


@dataclass(slots=True)
class State:
    """A training after ``step`` steps of the epoch that follows the ``epochs`` completed ones.

    ``plan`` says what is trained and how, as the checkpoint's manifest does; ``epochs`` are the records of the
    completed ones. ``sums`` are of the epoch under way: loss, right answers and images.
    """

    plan: dict[str, Any]
    epochs: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def save(self, output: Path) -> None:
        """Write the state beside the checkpoint ``output``, whole or not at all; raises ArtifactError."""
        facts = {"plan": self.plan, "epochs": self.epochs, "step": self.step, "sums": self.sums}
        buffer = io.BytesIO()
        content = {_JSON: json.dumps(facts), "network": self.network, "optimizer": self.optimizer}
        torch.save(content, buffer)
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
            facts = json.loads(content[_JSON])
            return cls(
                facts["plan"],
                facts["epochs"],
                facts["step"],
                facts["sums"],
                content["network"],
                content["optimizer"],
            )
        except Exception as error:  # whatever a damaged file makes torch raise
            raise TrainingError(
                f"{path} cannot be resumed from: it is damaged, or not ours. Remove it to begin anew."
            ) from error


def state_path(output: str | os.PathLike[str]) -> Path:
    """Where the state of the training that writes ``output`` lies."""
    return Path(f"{os.fspath(output)}.resume")
