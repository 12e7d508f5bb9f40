"""The race: contenders take turns until it is known which is fastest; those seen to be slower leave early.

What is said of two contenders is said by the rounds that both ran: a machine may be slower in some rounds than in
others, and those that left early ran in few of them.

Source: successive halving, Karnin, Koren, Somekh: Almost optimal exploration in multi-armed bandits, 2013. That drops
the slower half by its means; here one is dropped only if the 95% interval of its ratio to the leader says so. The
interval holds for each by itself: among many, one as fast as the leader may be dropped now and then.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cnndeploy.benchmark.engine import Block, measure
from cnndeploy.benchmark.intervals import Interval, ratio_interval, rounds_needed, verdict
from cnndeploy.errors import BenchmarkError
from cnndeploy.progress import ShouldStop

FIRST_ROUNDS = rounds_needed(1)
MOST_ROUNDS = 48
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Slower(Generic[K]):
    """How many times as fast as the leader one was when it left, with a 95% interval."""

    leader: K
    ratio: float
    interval: Interval


class Race(Generic[K]):
    """A race of ``blocks``, each timed against the ``reference`` among them, which never leaves.

    ``failures`` says why contenders broke down, ``slower`` who left for being slower, ``decided`` whether the last run
    came to its end. ``on_leave`` is called with those that are out of the race, perhaps more than once; they may
    come back when the winner is refused.
    """

    def __init__(
        self,
        blocks: Mapping[K, Block],
        *,
        reference: K,
        should_stop: ShouldStop,
        on_round: Callable[[int, int], None],
        on_leave: Callable[[K], None] = lambda _: None,
    ) -> None:
        self.failures: dict[K, str] = {}
        self.decided = False
        self.slower: dict[K, Slower[K]] = {}
        self._blocks = blocks
        self.reference = reference
        self._medians: dict[K, dict[int, float]] = {contender: {} for contender in blocks}  # by round
        self._rounds = 0
        self._should_stop = should_stop
        self._on_round = on_round
        self._on_leave = on_leave

    def run(self, among: Iterable[K]) -> list[K]:
        """Return the contenders not shown to be slower than another, as :meth:`ranked` does.

        It ends when one is left, after ``MOST_ROUNDS``, or when it is to stop; then some may be left that more rounds
        would have told apart.
        """
        running = [
            contender for contender in among if contender in self._blocks and contender not in self.failures
        ]
        self.slower = {contender: by for contender, by in self.slower.items() if contender not in running}
        running = self._remaining(running)  # by the rounds that there are
        while not (decided := self._is_decided(running)) and not self._should_stop():
            self._advance(running, max(FIRST_ROUNDS, self._fewest_rounds(running)))  # as many again
            running = self._remaining([one for one in running if one not in self.failures])
        self.decided = decided
        return self.ranked(running)

    def ranked(self, contenders: Iterable[K]) -> list[K]:
        """Return those of the contenders that were timed: the leader, then the others by their ratio to it."""
        timed = [contender for contender in contenders if self.rounds(contender)]
        if not timed:
            return []
        leader = self._leader(timed)
        others = (contender for contender in timed if contender != leader)
        return [leader, *sorted(others, key=lambda one: self.ratio(one, leader), reverse=True)]

    def ratio(self, contender: K, to: K | None = None) -> float:
        """Return how many times as fast as ``to``, or the reference, it is: the median over rounds that both ran."""
        return statistics.median(self._ratios(self.reference if to is None else to, contender))

    def interval(self, contender: K, to: K | None = None) -> Interval:
        """Return the 95% interval of :meth:`ratio`."""
        return ratio_interval(self._ratios(self.reference if to is None else to, contender))

    def comparable(self, contender: K, anchor: K) -> tuple[float, Interval]:
        """Return how many times as fast as ``anchor`` one is, with an interval, whatever rounds it ran.

        One that left for being slower is compared with the leader that it left to, and that one with the anchor.
        """
        left = self.slower.get(contender)
        if left is None or contender in (anchor, self.reference):
            return self.ratio(contender, anchor), self.interval(contender, anchor)
        ratio, interval = self.comparable(left.leader, anchor)
        return left.ratio * ratio, (left.interval[0] * interval[0], left.interval[1] * interval[1])

    def median_s(self, contender: K) -> float | None:
        """Return the seconds of a call, the median of the rounds; None if it ran none."""
        medians = self._medians.get(contender)
        return statistics.median(medians.values()) if medians else None

    def rounds(self, contender: K) -> int:
        """Return how many rounds it ran."""
        return len(self._medians.get(contender, ()))

    def _fewest_rounds(self, running: Sequence[K]) -> int:
        return min((len(self._medians[contender]) for contender in running), default=0)

    def _is_decided(self, running: Sequence[K]) -> bool:
        rounds = self._fewest_rounds(running)
        return not running or rounds >= MOST_ROUNDS or (rounds > 0 and len(running) == 1)

    def _advance(self, running: Sequence[K], rounds: int) -> None:
        turns = [self.reference, *(one for one in running if one != self.reference)]
        measured = measure(
            [self._blocks[contender] for contender in turns],
            seconds=1e-6,  # no more than so many rounds
            min_rounds=rounds,
            should_stop=self._should_stop,
            seed=self._rounds,
            on_round=lambda done, _: self._on_round(self._rounds + done, len(turns)),
        )
        for contender, measurement in zip(turns, measured, strict=True):
            if measurement.failure:
                self.failures[contender] = measurement.failure
            self._medians[contender] |= dict(enumerate(measurement.medians, self._rounds))
        self._rounds += rounds
        if self.reference in self.failures and not self._medians[self.reference]:
            failure = self.failures[self.reference]
            raise BenchmarkError(f"the reference, which all are timed against, does not run: {failure}")

    def _remaining(self, running: Sequence[K]) -> list[K]:
        """Return those that stay in the race, and let the others leave."""
        remaining = self._still_running(running)
        for contender in self._blocks:
            if contender not in remaining and contender != self.reference:
                self._on_leave(contender)
        return remaining

    def _still_running(self, running: Sequence[K]) -> list[K]:
        """Return those that the leader is not known to beat; note the others as slower."""
        timed = [contender for contender in running if self._medians[contender]]
        if not timed:
            return list(running)
        leader = self._leader(timed)
        for contender in timed:
            ratios = self._ratios(leader, contender)
            interval = ratio_interval(ratios)
            if contender != leader and verdict(interval, len(ratios), 1) == "SLOWER":
                self.slower[contender] = Slower(leader, statistics.median(ratios), interval)
        return [contender for contender in running if contender not in self.slower]

    def _leader(self, timed: Sequence[K]) -> K:
        """Return the one that beats all others; if there is none, the one whose worst ratio to another is best."""
        return max(timed, key=lambda contender: min(self.ratio(contender, other) for other in timed))

    def _ratios(self, reference: K, contender: K) -> list[float]:
        wanted, medians = self._medians[reference], self._medians[contender]
        return [wanted[number] / medians[number] for number in sorted(wanted.keys() & medians.keys())]
