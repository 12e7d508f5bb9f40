"""Figures in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def duration(seconds: float) -> str:
    """Three digits with the unit that suits: ``40.4 µs``, ``2.31 ms``, ``1.20 s``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} µs"


def size(count: int) -> str:
    """Bytes as kB or MB, powers of ten."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def machine_line(environment: Mapping[str, Any]) -> str:
    """One line on the machine and the versions."""
    gpus = ", ".join(environment["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    processor = f"{environment['cpu']}, {environment['usable_cpus']} usable CPUs"
    return f"{processor}, {gpus}; {environment['system']}; {versions}"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
