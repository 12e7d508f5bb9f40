"""BenchmarkReport: what was measured, on what, JSON both ways."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.engine import Rounds


@dataclass(frozen=True, slots=True)
class Result:
    """One artifact at one batch size.

    ``p50_s`` and ``p90_s`` are seconds per call, over ``calls`` calls in ``rounds`` rounds; ``images_per_s``
    follows from ``p50_s``. ``ratio`` is how many times as fast as the first candidate: the median over the
    rounds of the ratio of the two medians in a round; above 1 is faster.
    """

    target: str
    runtime: str
    device: str
    threads: int
    batch_size: int
    calls: int
    rounds: int
    p50_s: float
    p90_s: float
    images_per_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """All results, the machine and versions they were measured on, and what to doubt about them."""

    results: tuple[Result, ...]
    environment: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, field by field."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> BenchmarkReport:
        """Read the JSON of :meth:`to_dict`."""
        values = json.loads(text)
        results = tuple(Result(**result) for result in values["results"])
        return cls(results, values["environment"], tuple(values["warnings"]))


class Measured(Protocol):
    """What identifies a candidate in the report."""

    artifact: Artifact
    runtime: str
    device: str
    threads: int


def summarise(candidates: Sequence[Measured], rounds: Rounds, batch_size: int) -> list[Result]:
    """Turn the engine's seconds, by round, candidate and call, into one result for each candidate."""
    results = []
    for index, candidate in enumerate(candidates):
        calls = sorted(seconds for each in rounds for seconds in each[index])
        ratios = [statistics.median(each[0]) / statistics.median(each[index]) for each in rounds]
        p50 = statistics.median(calls)
        results.append(
            Result(
                target=str(candidate.artifact.path),
                runtime=candidate.runtime,
                device=candidate.device,
                threads=candidate.threads,
                batch_size=batch_size,
                calls=len(calls),
                rounds=len(rounds),
                p50_s=p50,
                p90_s=calls[max(0, -(-len(calls) * 9 // 10) - 1)],  # nearest rank
                images_per_s=batch_size / p50,
                ratio=statistics.median(ratios),
            )
        )
    return results
