"""Limits of what is read from files of anybody, which a caller who trusts them can raise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_VARIABLE = "CNNDEPLOY_LIMITS"  # how many times the usual limits; workers inherit it
_TEXT_BYTES = 8 * 2**20  # of a manifest, plan, certificate or labels: 100,000 labels take a few MB


class BeyondLimit(ValueError):  # noqa: N818 - says what a file is, and not that it is damaged
    """A file asks for more than any classifier needs; the message says of what, and how to allow it."""


def require_within(amount: float, limit: int, what: str) -> None:
    """Raise BeyondLimit if ``amount`` is more than ``limit`` times $CNNDEPLOY_LIMITS; ``what`` names the amount."""
    if amount <= limit:
        return
    most = limit * _times()
    if amount > most:
        raise BeyondLimit(
            f"it has {what}, and the limit is {most:,.0f}. If you trust the file, set {_VARIABLE}=10 in the "
            "environment, which raises all such limits tenfold"
        )


def read_json(path: Path) -> Any:
    """Read a small JSON file; raise OSError, or ValueError if it is too large or no JSON."""
    return json.loads(read_text(path))


def read_text(path: Path) -> str:
    """Read a small text file in UTF-8; raise OSError, or ValueError if it is too large or no text."""
    require_small(path.stat().st_size)
    return path.read_text(encoding="utf-8-sig")


def require_small(length: int) -> None:
    """Raise BeyondLimit for a text of more bytes than labels and preprocessing take."""
    require_within(length, _TEXT_BYTES, f"{length:,} bytes of text")


def _times() -> float:
    try:
        return max(1.0, float(os.environ.get(_VARIABLE, "1")))
    except ValueError:  # not ours
        return 1.0
