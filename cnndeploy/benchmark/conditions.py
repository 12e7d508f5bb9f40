"""Conditions: what else went on at the machine, and what to doubt about a report for it."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cnndeploy import nvml
from cnndeploy.benchmark.report import BUSY_CPUS, BenchmarkReport, Result
from cnndeploy.machine import busy_cpus, cpu_ticks, usable_cpus

_LISTEN_S = 0.5
_GPU_LISTEN_S, _GPU_STEP_S = 1.5, 0.1
_BUSY_GPU = 0.05
_SLOW_FIRST_S, _SLOW_FIRST_TIMES = 0.2, 20
_MOST_TIMES_LONGER = 30.0


class Watch:
    """A watch over the machine from now on, while all candidates wait.

    ``gpus`` are the PCI bus ids of the GPUs that the candidates use.
    """

    def __init__(self, gpus: Collection[str] = ()) -> None:
        self._gpus, self._busy_gpus, self._gpu_slowed = gpus, list[float](), set[str]()
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._busy: float | None = None
        self.listen()
        self._before, self._throttled = cpu_ticks(), _throttled()

    def listen(self) -> None:
        """Listen for other programs; no candidate may be at work."""
        heard = busy_cpus(_LISTEN_S)
        self._busy = max((one for one in (self._busy, heard) if one is not None), default=None)
        self._busy_gpus += [use for gpu in self._gpus if (use := _gpu_use(gpu)) is not None]

    def look(self) -> None:
        """Note why GPUs lower their clocks.

        Call this right after a candidate's work, because an idle GPU does not show the reason.
        """
        for gpu in self._gpus:
            self._gpu_slowed |= nvml.slowed_by(gpu)

    def conditions(self) -> dict[str, Any]:
        """Return the conditions until now, JSON-ready.

        They are ``busy_cpus``, the most that was heard at any time, ``load_average`` of the minute before, ``steal`` as
        a share of all CPU time, and how often a CPU was ``throttled``; None if the machine does not say. With GPUs
        also ``busy_gpu``, the largest share of the time that others used one, and ``gpu_slowed``, why one lowered its
        clock.
        """
        after, steal = cpu_ticks(), None
        if self._before is not None and after is not None:
            passed = {name: after[name] - self._before[name] for name in after}
            steal = passed["steal"] / max(1, sum(passed.values()))
        slowed = _throttled() - self._throttled
        found = {"busy_cpus": self._busy, "load_average": self._load, "steal": steal, "throttled": slowed}
        if not self._gpus:
            return found
        busy_gpu = max(self._busy_gpus, default=None)
        return {**found, "busy_gpu": busy_gpu, "gpu_slowed": sorted(self._gpu_slowed)}


def _gpu_use(gpu: str) -> float | None:
    """Return the share of the time that a GPU is used while no candidate uses it; None if it does not say.

    Wait until it is idle, but not for long: at first the share may be that of a candidate's last work.
    """
    ends = time.monotonic() + _GPU_LISTEN_S
    while (use := nvml.utilization(gpu)) and time.monotonic() < ends:
        time.sleep(_GPU_STEP_S)
    return use


def _throttled() -> int:
    count = 0
    for path in Path("/sys").glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"):
        with contextlib.suppress(OSError, ValueError):  # a container may list it and not let it be read
            count += int(path.read_text())
    return count


@dataclass(frozen=True, slots=True)
class Facts:
    """The figures of a report that doubts are about.

    The first six are about the machine. They are 0, or empty, if it does not say.
    ``drift`` is how much slower rows became from their first third of rounds to the last, ``threads`` the most that a
    row has. ``slow_starts`` names rows whose first call took far longer than a later one. Of all ``rows`` with figures,
    ``grouped`` have samples of several calls, at most ``calls``; ``few`` have no interval for p90; ``unclear`` are
    AMBIGUOUS, and their widest interval is ``width`` of its ratio. The rest is what the benchmark was told.
    """

    busy_cpus: float
    steal: float
    throttled: int
    busy_gpu: float
    gpu_slowed: str
    drift: float
    threads: int
    cpus: int
    slow_starts: str
    rows: int
    grouped: int
    calls: int
    few: int
    unclear: int
    width: float
    seconds: float
    until: float
    cold_starts: int
    interrupted: bool


class Doubt(NamedTuple):
    """A sentence to say if ``applies``: a format that takes the facts and what :func:`doubts` adds."""

    applies: Callable[[Facts], bool]
    sentence: str


_UNCLEAR = (
    "{unclear} of {rows} rows are AMBIGUOUS: their intervals reach over the 2% that count as the same. "
    "More rounds may tell: "
)
DOUBTS = (
    Doubt(
        lambda facts: facts.busy_cpus > BUSY_CPUS,
        "Other programs kept {busy_cpus:.1f} CPUs busy just before or after the rounds. That slows programs with "
        "several threads most, so the figures may be far off and no speed-up is claimed; measure again on an idle "
        "machine.",
    ),
    Doubt(
        lambda facts: facts.steal > 0.02,
        "The hypervisor gave {steal:.0%} of the CPU time to other machines; repeat this at another time, or on a "
        "machine of your own.",
    ),
    Doubt(
        lambda facts: facts.throttled > 0,
        "The CPU throttled itself {throttled} times for heat; let it cool, and repeat.",
    ),
    Doubt(
        lambda facts: facts.busy_gpu > _BUSY_GPU,
        "Other programs kept the GPU busy for {busy_gpu:.0%} of the time just before or after the rounds, so the "
        "figures may be far off; end those programs, or wait, and measure again.",
    ),
    Doubt(
        lambda facts: facts.gpu_slowed != "",
        "The GPU lowered its clock because of {gpu_slowed}. That affects times more than speed-ups; let it cool or "
        "raise its power limit, and repeat.",
    ),
    Doubt(
        lambda facts: abs(facts.drift) > 0.05,
        "The machine became {change:.0%} {direction} while it was measured (its frequency, heat, or other programs). "
        "That affects times more than speed-ups, each of which is a ratio within a turn.",
    ),
    Doubt(
        lambda facts: facts.threads > facts.cpus,
        "{threads} threads were asked for, but this process may use {cpus} CPUs; leave the number out, or take at "
        "most {cpus} threads.",
    ),
    Doubt(
        lambda facts: facts.slow_starts != "",
        "The first call is slow: {slow_starts}. Warm up before serving.",
    ),
    Doubt(
        lambda facts: facts.slow_starts != "" and not facts.cold_starts,
        "Cold starts, which were left out, tell whether the first call or the opening before it is slow.",
    ),
    Doubt(
        lambda facts: facts.grouped > 0,
        "In {grouped} of {rows} rows calls are so short that percentiles are taken over averages of {group} calls.",
    ),
    Doubt(
        lambda facts: facts.few > 0 and not facts.interrupted,
        "In {few} of {rows} rows there are too few rounds to say how far off the p90 may be; {enough:g} seconds for "
        "each candidate would bring four times as many.",
    ),
    Doubt(
        lambda facts: facts.unclear > 0 and not facts.interrupted and facts.width > facts.until,
        _UNCLEAR + "take {longer} seconds for each candidate.",
    ),
    Doubt(
        lambda facts: facts.unclear > 0 and not facts.interrupted and facts.width <= facts.until,
        _UNCLEAR + "go on until {narrower:g}.",
    ),
)
"""What a reader should know before believing the figures."""


def doubts(report: BenchmarkReport) -> tuple[str, ...]:
    """Return what a reader should know before believing the figures, and what to do about it."""
    facts = _facts(report)
    # how many times as long may make the intervals narrow enough
    times = min(_MOST_TIMES_LONGER, max(2.0, (facts.width / facts.until) ** 2))
    values = asdict(facts) | {
        "change": abs(facts.drift),
        "direction": "slower" if facts.drift > 0 else "faster",
        "group": "2" if facts.calls == 2 else f"up to {facts.calls}",
        "enough": 4 * facts.seconds,
        "longer": math.ceil(facts.seconds * times),
        "narrower": facts.until / 2,
    }
    return tuple(doubt.sentence.format_map(values) for doubt in DOUBTS if doubt.applies(facts))


def _facts(report: BenchmarkReport) -> Facts:
    machine, settings = report.environment, report.settings or {}
    rows = [row for row in report.results if not row.failure]
    grouped = [row.calls_per_sample for row in rows if row.calls_per_sample > 1]
    unclear = [row for row in rows if row.verdict == "AMBIGUOUS"]
    widths = [((row.ratio_high or 0) - (row.ratio_low or 0)) / (row.ratio or 1) for row in unclear]
    thirds = [(row.round_p50_s, n) for row in report.results if (n := len(row.round_p50_s) // 3) >= 3]
    drifts = [statistics.median(rounds[-n:]) / statistics.median(rounds[:n]) - 1 for rounds, n in thirds]
    return Facts(
        busy_cpus=machine["busy_cpus"] or 0.0,
        steal=machine["steal"] or 0.0,
        throttled=machine["throttled"] or 0,
        busy_gpu=machine.get("busy_gpu") or 0.0,
        gpu_slowed=" and ".join(machine.get("gpu_slowed") or ()),
        drift=statistics.median(drifts or [0.0]),
        threads=max((row.threads or 0 for row in report.results), default=0),
        cpus=usable_cpus(),
        slow_starts="; ".join(filter(None, map(_slow_start, rows))),
        rows=len(rows),
        grouped=len(grouped),
        calls=max(grouped, default=1),
        few=sum(not {"p50", "p90"}.isdisjoint(row.more_calls_needed or ()) for row in rows),
        unclear=len(unclear),
        width=max(widths, default=0.0),
        seconds=settings.get("seconds", 20.0),
        until=settings.get("until", 0.02),
        cold_starts=settings.get("cold_starts", 0),
        interrupted=report.interrupted,
    )


def _slow_start(row: Result) -> str:
    """Say how slow the first call was if it was far slower than a later one, else nothing."""
    first_s, p50_s = row.first_call_s or 0.0, row.p50_s or 0.0
    if first_s <= max(_SLOW_FIRST_S, _SLOW_FIRST_TIMES * p50_s):
        return ""
    name = f"{Path(row.artifact).name} on {row.runtime} at batch {row.batch_size}"
    return f"{name}: the first call took {first_s:.2f} s, a later one {1000 * p50_s:.3g} ms"
