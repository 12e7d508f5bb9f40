"""Job: what a tuning was asked for, and how much of its time is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cnndeploy.artifact import Artifact
from cnndeploy.errors import BenchmarkError

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of :func:`cnndeploy.tune`, checked, and when it began."""

    checkpoint: Artifact
    budget: float
    batch_size: int
    threads: int
    device: str
    max_minutes: float
    calibration: int
    data_dir: str | os.PathLike[str] | None
    should_stop: Callable[[], bool]
    on_progress: Progress
    started: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until the time is over, below 0 after."""
        return self.started + 60 * self.max_minutes - time.monotonic()

    def is_over(self) -> bool:
        """Whether to end what can be ended."""
        return self.left_s <= 0 or self.should_stop()

    def report(self, done: int, total: int, text: str) -> None:
        """Show progress; raises BenchmarkError where the tuning is to stop, so that whatever is at work ends."""
        self.end_if_stopped()
        self.on_progress(done, total, text)

    def end_if_stopped(self) -> None:
        """Raise BenchmarkError where the tuning is to stop."""
        if self.should_stop():
            raise BenchmarkError("the tuning was stopped; nothing was written")
