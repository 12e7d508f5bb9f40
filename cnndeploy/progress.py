"""Progress of long work, and ways to end it before it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cnndeploy.errors import OutOfTime, Stopped

Progress = Callable[[int, int, str], None]
"""A callback for the amount that is done, the total (0 if it is unknown), and what is being done."""
ShouldStop = Callable[[], bool]
"""A callback that is asked again and again; once it returns True the work ends."""


def silent(done: int, total: int, text: str) -> None:
    """Show no progress."""


def never() -> bool:
    """Never ask for an end."""
    return False


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of work: at ``ends`` on the monotonic clock, or as soon as ``should_stop`` returns True."""

    ends: float = math.inf
    should_stop: ShouldStop = never

    @classmethod
    def after(cls, seconds: float, should_stop: ShouldStop = never) -> Deadline:
        """Return a deadline that many seconds from now."""
        return cls(time.monotonic() + seconds, should_stop)

    @property
    def left_s(self) -> float:
        """The seconds until the deadline; below 0 once it has passed."""
        return self.ends - time.monotonic()

    def with_at_least(self, seconds: float) -> Deadline:
        """Return a deadline that is that many seconds from now, or later."""
        return replace(self, ends=max(self.ends, time.monotonic() + seconds))

    def is_over(self) -> bool:
        """Return whether work should end."""
        return self.left_s <= 0 or self.should_stop()

    def check_stop(self) -> None:
        """Raise Stopped if the caller asked for the end, whatever the time."""
        if self.should_stop():
            raise Stopped("it was stopped before it was done")

    def check(self) -> None:
        """Raise Stopped if the caller asked for the end, OutOfTime if the time is up."""
        self.check_stop()
        if self.left_s <= 0:
            raise OutOfTime("the time was over before it was done")
