"""Figures in words, as several tables and pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from cnndeploy.words import counted

NOTHING = "-"
"""What a cell shows if there is nothing to show."""


def pairs(values: Mapping[str, Any]) -> str:
    """Return names with their values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def ranks(values: Mapping[str, int]) -> str:
    """Return layers with their ranks in one line."""
    return ", ".join(f"{name} ({rank})" for name, rank in values.items())


def widths(values: Mapping[str, tuple[int, int]]) -> str:
    """Return layers with the channels of their inputs and outputs in one line."""
    return ", ".join(f"{name} ({inputs} in, {outputs} out)" for name, (inputs, outputs) in values.items())


def settings_line(values: Mapping[str, Any]) -> str:
    """Say in one line how a file is run: a runtime's settings or options by their names in JSON."""
    return ", ".join(_setting(name, value) for name, value in values.items())


def _setting(name: str, value: Any) -> str:
    if name == "threads":
        return counted(value, "thread")
    if name == "spinning":
        return "threads spin when idle" if value else "threads sleep when idle"
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    return f"{name} {value}"


def run_line(
    runtime: str, device: str, threads: int | str | None, options: Mapping[str, Any] | None = None
) -> str:
    """Say in one line how a file was run."""
    how = ({} if threads is None else {"threads": threads}) | dict(options or {})
    return ", ".join(filter(None, (f"{runtime} on {device}", settings_line(how))))


def yes_or_no(passed: bool) -> Text:
    """Return the verdict's cell."""
    return Text("yes", "green") if passed else Text("NO", "bold red")


def duration(seconds: float) -> str:
    """Return three digits with the unit that suits: ``40.4 µs``, ``2.31 ms``, ``1.20 s``."""
    scale, unit = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")
    value = seconds / scale
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def size(count: int) -> str:
    """Return bytes as kB or MB, powers of ten."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def machine_line(environment: Mapping[str, Any]) -> str:
    """Describe the machine and the versions in one line."""
    gpus = ", ".join(environment["gpus"]) or "no GPU"
    versions = pairs(environment["versions"])
    processor = f"{environment['cpu']}, {counted(environment['usable_cpus'], 'usable CPU')}"
    return f"{processor}, {gpus}; {environment['system']}; {versions}"
