"""TuneReport: what was tried, what became of it and why, JSON both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cnndeploy.benchmark.intervals import Interval
from cnndeploy.errors import BenchmarkError
from cnndeploy.serial import jsonable

Outcome = Literal["chosen", "as fast", "undecided", "slower", "rejected", "failed", "not tried"]


@dataclass(frozen=True, slots=True)
class Row:
    """One file on one runtime with one setting; ``reason`` says in words why it was not chosen.

    ``variant`` is ``checkpoint``, ``float``, ``simplified``, ``int8`` or ``float16``, or the methods of
    :func:`cnndeploy.compress` that made it, as ``low-rank, int8``. ``ratio`` is how many times as
    fast it is as eager PyTorch, or as an imported file on ONNX Runtime, with a 95% interval, which takes six rounds,
    and ``p50_s`` the seconds of a call; None if it was not timed. They compare from row to row though some left the
    race early: they are the chosen row's, by how many times as fast a row was in the rounds that both ran. ``accuracy``
    is on the test images: of a lossy row None if it was not measured, of a lossless one the checkpoint's, and None if
    it was rejected or not timed. ``loss_high_points`` is the upper end of the 95% interval of what it loses, in
    percentage points.
    """

    variant: str
    runtime: str
    threads: int
    options: Mapping[str, Any]
    lossy: bool
    outcome: Outcome
    reason: str = ""
    ratio: float | None = None
    ratio_interval: Interval | None = None
    p50_s: float | None = None
    accuracy: float | None = None
    loss_high_points: float | None = None


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was tried; exactly one of ``rows`` is chosen, and none if nothing was deployed.

    ``folder`` is the deployment that was written, or would have been. ``complete`` says that the race came to its end,
    so that more time would not change who won it. ``notes`` say what there was no time to try,
    and what to doubt.

    >>> from cnndeploy.tuning.report import Row
    >>> row = Row("simplified", "onnxruntime", 1, {}, False, "chosen", "equivalent", ratio=9.5, accuracy=0.9)
    >>> report = cnndeploy.TuneReport("lenet.pt", "lenet.deploy", "latency", 1, 0.5, (row,), True, 60.0)
    >>> report.chosen.runtime, [each.ratio for each in report.frontier]
    ('onnxruntime', [9.5])
    """

    checkpoint: str
    folder: str
    objective: str
    batch_size: int
    budget_points: float
    rows: tuple[Row, ...]
    complete: bool
    seconds: float
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def reference_runtime(self) -> str:
        """What all were timed against: eager, or for an ONNX file that was imported onnxruntime."""
        return "eager" if any(row.variant == "checkpoint" for row in self.rows) else "onnxruntime"

    @property
    def chosen(self) -> Row:
        """Return the row of the deployment; raise BenchmarkError if nothing could be deployed."""
        for row in self.rows:
            if row.outcome == "chosen":
                return row
        raise BenchmarkError(f"nothing tried of {self.checkpoint} can be deployed", self)

    @property
    def frontier(self) -> tuple[Row, ...]:
        """Return the rows that no other row beats in both speed and accuracy, fastest first.

        Rejected rows, and those whose accuracy is not known, are left out.
        """
        known = [
            (row.ratio, row.accuracy, row)
            for row in self.rows
            if row.ratio is not None and row.accuracy is not None and row.outcome != "rejected"
        ]
        best, frontier = -1.0, []
        for _, accuracy, row in sorted(known, key=lambda entry: entry[:2], reverse=True):
            if accuracy > best:
                best = accuracy
                frontier.append(row)
        return tuple(frontier)

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, field by field."""
        return dict(jsonable(self))
