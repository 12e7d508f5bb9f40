"""BenchmarkReport: what was measured, on what, JSON both ways."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnndeploy.benchmark.engine import Measurement
from cnndeploy.benchmark.intervals import (
    Interval,
    Verdict,
    outliers,
    quantile_interval,
    ratio_interval,
    verdict,
)
from cnndeploy.errors import BenchmarkError
from cnndeploy.run import RuntimeOptions
from cnndeploy.serial import jsonable, structure

BUSY_CPUS = 0.25
"""If other programs keep more CPUs busy than this, figures are shown and none is judged."""
_GRID = np.linspace(0, 1, 101)
_PERCENTS = {"p50": 50, "p90": 90, "p99": 99}
_BFLOAT16 = {"bf16": "bfloat16"}  # as OpenVINO says it
# What keys of the JSON were called before; until 1.0 they are written beside the new ones.
_OLD_KEYS = {"artifact": "target", "seconds": "budget_s", "until": "precision"}


def with_old_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with each renamed key under its old name too."""
    return {**values, **{old: values[new] for new, old in _OLD_KEYS.items() if new in values}}


def _with_new_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object of any version under the new names only."""
    renamed = {new: values[old] for new, old in _OLD_KEYS.items() if old in values}
    return renamed | {key: value for key, value in values.items() if key not in _OLD_KEYS.values()}


def _with_options(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its options, which older reports have among the settings alone."""
    settings = row.get("settings") or {}
    told = {"spinning": False} if settings.get("spinning") is False else {}
    computed = "tf32" if settings.get("tf32") is True else _BFLOAT16.get(str(settings.get("precision")))
    return {"options": told if computed is None else {**told, "precision": computed}} | row


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Seconds that a fresh process takes, from its start: until all is imported, then to open the file, then for the
    first and the second run at the first batch size. Medians over ``starts`` processes.
    """

    import_s: float
    open_s: float
    first_run_s: float
    second_run_s: float
    starts: int = 1

    @classmethod
    def median(cls, starts: Sequence[ColdStart]) -> ColdStart:
        """Return the medians of several, each part by itself."""
        medians = cls(*map(statistics.median, zip(*map(astuple, starts), strict=True)))
        return replace(medians, starts=len(starts))


@dataclass(frozen=True, slots=True)
class Result:
    """One artifact on one runtime, with one number of threads, at one batch size.

    ``p50_s``, ``p90_s`` and ``p99_s`` are seconds per call, over ``calls`` calls in ``rounds`` rounds: quantiles of
    samples, each the mean of ``calls_per_sample`` calls in a row. p90 takes 10 samples and p99 takes 100; with fewer it
    is None. The 95% interval of a quantile is None if it is not known, and ``more_calls_needed`` says how many more
    calls would tell. That happens after many thousands of calls too, because those of a round resemble each other: the
    quantile is then that of the calls that were timed, and other rounds may give another. ``outliers`` of the samples
    lie far from the rest; they are in all figures. ``images_per_s`` follows from ``p50_s``.

    ``ratio`` is how many times as fast as the reference, the first candidate that could be run: the median over the
    rounds of the ratio of the two medians in a round; above 1 is faster. ``ratio_low`` and ``ratio_high`` hold for
    all rows together with 95% confidence. ``verdict`` is None if the machine was busy with other programs.
    ``failure`` says why a candidate has no figures.

    ``options`` are those of the runtime that differ from their defaults, such as a precision. ``threads`` were chosen
    by measuring if ``auto_threads``. ``peak_memory_bytes`` is of the whole process at this batch size, ``first_call_s``
    its first call there. ``gpu_memory_bytes`` is what the process held of the GPU's memory after its last call; None on
    the CPU, and if it is unknown. ``quantiles_s`` are the samples' 0th to 100th percentiles,
    ``round_p50_s`` the median of each round. ``accuracy`` is that of
    :func:`cnndeploy.certificate.known_accuracy`, on ``accuracy_images`` test images; None if it is not known.
    """

    artifact: str
    runtime: str
    device: str
    threads: int | None
    batch_size: int
    auto_threads: bool = False
    end_to_end: bool = False
    failure: str = ""
    calls: int = 0
    rounds: int = 0
    calls_per_sample: int = 1
    p50_s: float | None = None
    p50_interval_s: Interval | None = None
    p90_s: float | None = None
    p90_interval_s: Interval | None = None
    p99_s: float | None = None
    p99_interval_s: Interval | None = None
    more_calls_needed: Mapping[str, int] | None = None
    outliers: int = 0
    images_per_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    verdict: Verdict | None = None
    first_call_s: float | None = None
    peak_memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    file_bytes: int | None = None
    cold_start: ColdStart | None = None
    accuracy: float | None = None
    accuracy_images: int | None = None
    settings: Mapping[str, Any] | None = None
    quantiles_s: tuple[float, ...] = ()
    round_p50_s: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes it the same line in another report."""
        threads = "auto" if self.auto_threads else self.threads
        how = (self.runtime, self.device, threads, self.batch_size, self.end_to_end)
        return Path(self.artifact).name, *how, tuple(sorted(self.options.items()))


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """All results, the machine and versions they were measured on, and what to doubt about them.

    ``settings`` are the limits that were given: until, seconds, timeout_s, cold_starts, seed. ``interrupted`` says that
    it was stopped before its end.

    >>> report = cnndeploy.bench(["lenet.pt", "lenet.onnx"], seconds=0.1, cold_starts=0)
    >>> [result.runtime for result in report.results]
    ['eager', 'onnxruntime']
    """

    results: tuple[Result, ...]
    environment: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready, field by field, with the old names of keys beside the new ones."""
        values: dict[str, Any] = jsonable(self)
        values["results"] = list(map(with_old_keys, values["results"]))
        if values["settings"] is not None:
            values["settings"] = with_old_keys(values["settings"])
        return values

    @classmethod
    def from_json(cls, text: str) -> BenchmarkReport:
        """Read the JSON of :meth:`to_dict`, of older versions too; raise BenchmarkError if it is something else."""
        try:
            values = json.loads(text)
            values["results"] = [_with_options(_with_new_keys(row)) for row in values["results"]]
            if values.get("settings") is not None:
                values["settings"] = _with_new_keys(values["settings"])
            report = structure(cls, values)
            for row in report.results:
                RuntimeOptions.of(row.options)
            dict(report.environment["versions"])
            float(report.environment.get("busy_cpus") or 0.0)
            if not all(0 < seconds < math.inf for row in report.results for seconds in row.round_p50_s):
                raise ValueError("a round's median is no time")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BenchmarkError(f"this is no report of cnndeploy bench --json: {error!r}") from error
        return report

    @property
    def was_busy(self) -> bool:
        """Whether other programs kept the machine so busy that no ratio can be believed."""
        return (self.environment.get("busy_cpus") or 0.0) > BUSY_CPUS

    @property
    def failures(self) -> tuple[Result, ...]:
        """The rows without figures."""
        return tuple(result for result in self.results if result.failure)


def summarise(row: Result, measured: Measurement) -> Result:
    """Fill a row with what the engine measured, all but the comparison with other rows."""
    if measured.failure or not measured.rounds:
        return replace(row, failure=measured.failure or "stopped before its first round was over")
    rounds = [np.asarray(seconds) for seconds in measured.rounds]
    samples = np.concatenate(rounds)
    quantiles: dict[str, Any] = {}
    missing: dict[str, int] = {}
    for name, percent in _PERCENTS.items():
        share = percent / 100
        if len(samples) * (100 - percent) >= 100:
            quantiles[f"{name}_s"] = float(np.quantile(samples, share, method="inverted_cdf"))
        interval = quantile_interval(rounds, share)
        if isinstance(interval, int):
            missing[name] = interval * measured.calls_per_sample
        elif missing:  # a rarer quantile is not known better than a milder one
            missing[name] = max(missing.values())
        else:
            quantiles[f"{name}_interval_s"] = interval
    median = float(np.median(samples))
    return replace(
        row,
        calls=len(samples) * measured.calls_per_sample,
        rounds=len(measured.rounds),
        calls_per_sample=measured.calls_per_sample,
        **{**quantiles, "p50_s": median},
        more_calls_needed=missing,
        outliers=outliers(samples),
        images_per_s=row.batch_size / median,
        first_call_s=measured.first_call_s,
        quantiles_s=tuple(np.quantile(samples, _GRID).tolist()),
        round_p50_s=tuple(measured.medians),
    )


def compared(rows: Sequence[Result], comparisons: int) -> list[Result]:
    """Return rows that ran in the same rounds, each with its ratio to the first that could be run.

    The intervals are corrected for ``comparisons``, the ratios in the whole report.
    """
    reference = next((row for row in rows if not row.failure), None)
    return [row if row.failure or not reference else _against(row, reference, comparisons) for row in rows]


def _against(row: Result, reference: Result, comparisons: int) -> Result:
    if row is reference:
        return replace(row, ratio=1.0, ratio_low=1.0, ratio_high=1.0, verdict="REFERENCE")
    ratios = round_ratios(reference, row)
    low, high = ratio_interval(ratios, comparisons)
    judged = verdict((low, high), len(ratios), comparisons)
    return replace(row, ratio=statistics.median(ratios), ratio_low=low, ratio_high=high, verdict=judged)


def unjudged(row: Result) -> Result:
    """Return a row with its figures and without a verdict, for a machine that was busy."""
    return row if row.verdict == "REFERENCE" else replace(row, verdict=None)


def round_ratios(reference: Result, row: Result) -> list[float]:
    """Return how many times as fast as the reference a row is in each round."""
    return [a / b for a, b in zip(reference.round_p50_s, row.round_p50_s, strict=True)]
