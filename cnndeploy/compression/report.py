"""What a compression tried and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.intervals import SAME_WITHIN
from cnndeploy.benchmark.report import Result
from cnndeploy.certificate import Certification
from cnndeploy.serial import jsonable
from cnndeploy.verification.report import BudgetReport
from cnndeploy.words import counted

Method = Literal["low-rank", "channels", "int8"]
METHODS: tuple[Method, ...] = get_args(Method)
"""In the order of their use."""


@dataclass(frozen=True, slots=True)
class Step:
    """A method that was tried, and whether it was ``kept``; ``reason`` says why, or why not.

    ``bytes`` is the size of the ONNX file that it gave. ``ratio`` is how many times as fast that was as the file of
    the step before, with its 95% interval; None if it was not timed.
    """

    method: Method
    kept: bool
    reason: str
    bytes: int | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None

    @classmethod
    def timed(cls, method: Method, what: str, size: int, row: Result) -> Step:
        """Return the step to a file of so many bytes, kept if its row in a benchmark says that it is faster.

        On a busy machine a row has no verdict; then it is faster if its interval says so.
        """
        low, high = row.ratio_low or 0.0, row.ratio_high or 0.0
        is_busy = row.verdict is None
        kept = row.verdict == "FASTER" or (is_busy and low > 1 + SAME_WITHIN)
        why = ("; timed while other programs ran" if is_busy else "") + (
            "" if kept else "; not seen to be faster"
        )
        return cls(method, kept, what + why, size, row.ratio, (low, high))


@dataclass(frozen=True, slots=True)
class Compressed:
    """What :func:`cnndeploy.compress` wrote, and what it found out.

    ``report`` is what the test images say of the file against the original checkpoint; ``steps`` what each method
    gave. ``speed`` is the row of the file, or of a checkpoint's export, in a benchmark beside the original's float
    export, on ONNX Runtime; None if it was not timed. ``speed_warnings`` are what to doubt about it. ``float_bytes`` is
    the size of that export, ``bytes`` that of the file in the same format.

    >>> compressed = cnndeploy.compress("lenet.pt", "small.pt", budget=20, images=64, seconds=0)
    >>> compressed.report.verdict, compressed.bytes < compressed.float_bytes
    ('within budget', True)
    """

    artifact: Artifact
    report: BudgetReport
    steps: tuple[Step, ...]
    bytes: int
    float_bytes: int
    speed: Result | None = None
    speed_warnings: tuple[str, ...] = ()
    certification: Certification | None = None

    @property
    def ranks(self) -> Mapping[str, int]:
        """The layers, by path, in whose place are two, and how many channels are between these."""
        return self.artifact.require_manifest().source.ranks

    @property
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """The layers, by path, that have fewer channels, and how many: those of their input and of their output."""
        return self.artifact.require_manifest().source.widths

    def with_note(self, note: str) -> Compressed:
        """Return it with something more to be said of the last step that was kept."""
        kept = [step for step in self.steps if step.kept][-1:]
        noted = (
            replace(step, reason=f"{step.reason}; {note}") if step in kept else step for step in self.steps
        )
        return replace(self, steps=tuple(noted))

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        values = {
            "bytes": self.bytes,
            "float_bytes": self.float_bytes,
            "ranks": self.ranks,
            "widths": self.widths,
        }
        return {
            **self.report.to_dict(),
            **jsonable(values),
            "steps": jsonable(self.steps),
            "speed": jsonable(self.speed),
            "speed_warnings": list(self.speed_warnings),
        }


def described(method: Method, sizes: Mapping[str, int]) -> str:
    """Return what a method did to a network: how many of its places have another size."""
    what = {"channels": "with fewer channels", "low-rank": "split"}[method]
    return f"{counted(len(sizes), {'channels': 'group', 'low-rank': 'layer'}[method])} {what}"


def faster_of(one: Compressed | None, other: Compressed | None) -> Compressed | None:
    """Return the other if it was seen to be faster, else the first; None if there is neither."""
    if one is None or other is None:
        return one or other
    if one.speed is None or other.speed is None or one.speed.ratio is None or other.speed.ratio_low is None:
        return one
    return other if other.speed.ratio_low > one.speed.ratio else one
