"""Words for numbers, in messages and tables alike."""

from __future__ import annotations


def counted(count: int | str, noun: str) -> str:
    """Return a number and what it counts: ``1 image``, ``10,000 images``."""
    number = f"{count:,}" if isinstance(count, int) else count
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"
