"""Job: what a tuning was asked for, and how much of its time is left."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from cnndeploy.errors import BenchmarkError, Stopped
from cnndeploy.progress import Deadline, Progress
from cnndeploy.verification.budget import require_budget
from cnndeploy.verification.reference import Reference


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of :func:`cnndeploy.tune`, checked; ``reference`` is the checkpoint that is tuned.

    The ``deadline`` is that of the search; what must be finished after it, as a verification that has begun, ends only
    if the tuning is ``stopped``.
    """

    reference: Reference
    budget: float
    batch_size: int
    threads: int
    device: str
    max_minutes: float
    calibration: int
    deadline: Deadline
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Raise BenchmarkError or QuantizationError if a number makes no sense."""
        numbers = {
            "batch size": self.batch_size,
            "threads": self.threads,
            "calibration images": self.calibration,
            "minutes": self.max_minutes,
        }
        if wrong := [name for name, value in numbers.items() if not 0 < value < math.inf]:
            raise BenchmarkError(f"{', '.join(wrong)} must be above 0")
        require_budget(self.budget, or_zero=True)

    @property
    def stopped(self) -> Deadline:
        """Over only if the caller asks for the end, whatever the time."""
        return Deadline(should_stop=self.deadline.should_stop)

    def check_stop(self) -> None:
        """Raise Stopped if the caller asked for the end."""
        if self.deadline.should_stop():
            raise Stopped("the tuning was stopped; nothing was written")
