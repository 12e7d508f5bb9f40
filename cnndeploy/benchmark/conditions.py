"""Conditions: what else went on at the machine, and what to doubt about a report for it."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.machine import busy_cpus, cpu_ticks, usable_cpus

_LISTEN_S = 0.5
_BUSY_CPUS, _STEAL, _DRIFT = 0.25, 0.02, 0.05
_SLOW_FIRST_S, _SLOW_FIRST_TIMES = 0.2, 20
_THROTTLED = "devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"


class Watch:
    """Listens for other programs while all candidates wait, then counts until :meth:`facts`."""

    def __init__(self) -> None:
        self._busy = busy_cpus(_LISTEN_S)
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._before = cpu_ticks()
        self._throttled = _throttled()

    def facts(self) -> dict[str, Any]:
        """JSON-ready: ``busy_cpus`` before, ``load_average`` of the minute before, ``steal`` as a share of all CPU
        time, and how often a CPU was ``throttled``; None where the machine does not say.
        """
        after, steal = cpu_ticks(), None
        if self._before is not None and after is not None:
            passed = {name: after[name] - self._before[name] for name in after}
            steal = passed["steal"] / max(1, sum(passed.values()))
        return {
            "busy_cpus": self._busy,
            "load_average": self._load,
            "steal": steal,
            "throttled": _throttled() - self._throttled,
        }


def _throttled() -> int:
    count = 0
    for path in Path("/sys").glob(_THROTTLED):
        with contextlib.suppress(OSError, ValueError):  # a container may list it and not let it be read
            count += int(path.read_text())
    return count


def doubts(report: BenchmarkReport) -> tuple[str, ...]:
    """What a reader should know before believing the figures, and what to do about it."""
    return tuple(_about_the_machine(report)) + tuple(_about_the_figures(report))


def _about_the_machine(report: BenchmarkReport) -> Iterator[str]:
    machine = report.environment
    if (machine["busy_cpus"] or 0) > _BUSY_CPUS:
        yield (
            f"Other programs kept {machine['busy_cpus']:.1f} CPUs busy just before. Programs with several threads "
            "suffer from that out of all proportion, so these figures may be far off; repeat them on an idle machine."
        )
    if (machine["steal"] or 0) > _STEAL:
        yield (
            f"The hypervisor gave {machine['steal']:.0%} of the CPU time to other machines; repeat this at another "
            "time, or on a machine of your own."
        )
    if machine["throttled"]:
        yield f"The CPU throttled itself {machine['throttled']} times for heat; let it cool, and repeat."
    drifts = [found for row in report.results if (found := _drift(row)) is not None]
    drift = statistics.median(drifts) if drifts else 0.0
    if abs(drift) > _DRIFT:
        yield (
            f"The machine became {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} while it was measured (its "
            "frequency, heat, or other programs). Ratios bear that; do not quote the times."
        )
    threads = max((row.threads or 0 for row in report.results), default=0)
    if threads > usable_cpus():
        yield (
            f"{threads} threads were asked for, but this process may use {usable_cpus()} CPUs; leave --threads out, or "
            f"give at most {usable_cpus()}."
        )


def _about_the_figures(report: BenchmarkReport) -> Iterator[str]:
    rows = [row for row in report.results if not row.failure]
    settings = report.settings or {}
    for row in rows:
        first, p50 = row.first_call_s or 0, row.p50_s or 0
        if first > max(_SLOW_FIRST_S, _SLOW_FIRST_TIMES * p50):
            how = "" if settings.get("cold_starts") else "; --cold-start 3 tells it apart from opening"
            yield (
                f"{_named(row)}: the first call took {first:.2f} s, a later one {1000 * p50:.3g} ms. Warm it "
                f"up before it serves{how}."
            )
    grouped = [row for row in rows if row.calls_per_sample > 1]
    if grouped:
        most = max(row.calls_per_sample for row in grouped)
        yield (
            f"In {len(grouped)} of {len(rows)} rows a call is too short for the clock: their quantiles are of "
            f"means of up to {most} calls in a row."
        )
    if report.interrupted:
        return
    budget, precision = settings.get("budget_s", 20.0), settings.get("precision", 0.02)
    few = [row for row in rows if (row.more_calls_needed or {}).keys() & {"p50", "p90"}]
    if few:
        yield (
            f"In {len(few)} of {len(rows)} rows there are too few calls for a p90 with an interval: --budget "
            f"{4 * budget:g} takes four times as many."
        )
    unclear = [row for row in rows if row.verdict == "AMBIGUOUS"]
    if unclear:
        widths = [((row.ratio_high or 0) - (row.ratio_low or 0)) / (row.ratio or 1) for row in unclear]
        more = min(30.0, max(2.0, (max(widths) / precision) ** 2))
        advice = (
            f"--budget {math.ceil(budget * more)}"
            if max(widths) > precision
            else f"--precision {precision / 2:g}"
        )
        yield (
            f"{len(unclear)} of {len(rows)} rows are AMBIGUOUS: their intervals reach over the 2% that count as the "
            f"same. More rounds may tell: {advice}."
        )


def _named(row: Result) -> str:
    return f"{Path(row.target).name} on {row.runtime} at batch {row.batch_size}"


def _drift(row: Result) -> float | None:
    """How much slower the last third of the rounds was than the first."""
    third = len(row.round_p50_s) // 3
    if third < 3:
        return None
    return statistics.median(row.round_p50_s[-third:]) / statistics.median(row.round_p50_s[:third]) - 1
