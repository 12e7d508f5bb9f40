"""How long work tells how far it is, and how it is ended before it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cnndeploy.errors import OutOfTime, Stopped

Progress = Callable[[int, int, str], None]
"""Called with what is done, of how much (0 if that is unknown), and what is being done."""
ShouldStop = Callable[[], bool]
"""Asked again and again; once it returns True the work ends."""


def silent(done: int, total: int, text: str) -> None:
    """Show no progress."""


def never() -> bool:
    """Never ask for an end."""
    return False


@dataclass(frozen=True, slots=True)
class Deadline:
    """When work has to end: at ``ends`` on the monotonic clock, or as soon as ``should_stop`` returns True."""

    ends: float = math.inf
    should_stop: ShouldStop = never

    @classmethod
    def after(cls, seconds: float, should_stop: ShouldStop = never) -> Deadline:
        """Return a deadline so many seconds from now."""
        return cls(time.monotonic() + seconds, should_stop)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; below 0 once it has passed."""
        return self.ends - time.monotonic()

    def is_over(self) -> bool:
        """Whether to end what can be ended."""
        return self.left_s <= 0 or self.should_stop()

    def check(self) -> None:
        """Raise Stopped if the caller asked for the end, OutOfTime if the time is over."""
        if self.should_stop():
            raise Stopped("it was stopped before it was done")
        if self.left_s <= 0:
            raise OutOfTime("the time was over before it was done")
