"""Signals that ask a command to stop."""

from __future__ import annotations

import signal
from typing import Self


class PoliteStop:
    """Note Ctrl-C and SIGTERM, so that work can end at its next step; a second signal ends it at once."""

    def __init__(self) -> None:
        self.exit_code = 0  # 128 and the signal's number, once there was one
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.exit_code != 0

    def __enter__(self) -> Self:
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.exit_code = 128 + number
        self.__exit__()
