"""The race: contenders take turns until it is known which is fastest; who is seen to be slower leaves early.

Source: successive halving, Karnin, Koren, Somekh: Almost optimal exploration in multi-armed bandits, 2013; but where
that drops the slower half by its means, here one is dropped only when the 95% interval of its ratio to the leader says
so. That is of each by itself: among many, one as fast as the leader may be dropped now and then.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from cnndeploy.benchmark.engine import Block, measure
from cnndeploy.benchmark.intervals import Interval, ratio_interval, rounds_needed, verdict
from cnndeploy.errors import BenchmarkError

FIRST_ROUNDS = rounds_needed(1)
MOST_ROUNDS = 48


class Race:
    """``blocks`` are the contenders, by number. Number 0 is the reference, and never leaves.

    ``failures`` says of those that broke down why they did; ``slower`` how many times as fast as the leader others are,
    with a 95% interval; ``decided`` whether the last run came to its end.
    """

    def __init__(
        self,
        blocks: Mapping[int, Block],
        *,
        should_stop: Callable[[], bool],
        on_round: Callable[[int, int], None],
    ) -> None:
        self.failures: dict[int, str] = {}
        self.decided = False
        self.slower: dict[int, tuple[float, Interval]] = {}
        self._blocks = blocks
        self._medians: dict[int, dict[int, float]] = {at: {} for at in blocks}  # by round
        self._rounds = 0
        self._should_stop = should_stop
        self._on_round = on_round

    def run(self, among: Iterable[int]) -> list[int]:
        """The numbers ``among`` which no other is known to be faster, fastest first.

        Ends when one is left, after ``MOST_ROUNDS``, or when it is to stop; then some may be left that more rounds
        would have told apart.
        """
        running = [at for at in among if at in self._blocks and at not in self.failures]
        self.slower = {at: found for at, found in self.slower.items() if at not in running}
        running = self._still_running(running)  # by the rounds that there are
        while not (decided := self._is_decided(running)) and not self._should_stop():
            have = min((len(self._medians[at]) for at in running), default=0)
            self._advance(running, max(FIRST_ROUNDS, have))  # as many again
            running = self._still_running([at for at in running if at not in self.failures])
        self.decided = decided
        return sorted((at for at in running if self._medians[at]), key=self.ratio, reverse=True)

    def _is_decided(self, running: Sequence[int]) -> bool:
        have = min((len(self._medians[at]) for at in running), default=0)
        return not running or have >= MOST_ROUNDS or (have > 0 and len(running) == 1)

    def ratio(self, number: int) -> float:
        """How many times as fast as the reference: the median over the rounds that both ran."""
        return statistics.median(self._ratios(0, number))

    def interval(self, number: int) -> Interval:
        """The 95% interval of :meth:`ratio`."""
        return ratio_interval(self._ratios(0, number))

    def median_s(self, number: int) -> float | None:
        """Seconds a call, the median of the rounds; None where it ran none."""
        medians = self._medians.get(number)
        return statistics.median(medians.values()) if medians else None

    def rounds(self, number: int) -> int:
        """How many it ran."""
        return len(self._medians.get(number, ()))

    def _advance(self, running: Sequence[int], rounds: int) -> None:
        turns = [0, *(at for at in running if at != 0)]
        measured = measure(
            [self._blocks[at] for at in turns],
            seconds=1e-6,  # no more than so many rounds
            min_rounds=rounds,
            should_stop=self._should_stop,
            seed=self._rounds,
            on_round=lambda done, _: self._on_round(self._rounds + done, len(turns)),
        )
        for at, found in zip(turns, measured, strict=True):
            if found.failure:
                self.failures[at] = found.failure
            self._medians[at] |= dict(enumerate(found.medians, self._rounds))
        self._rounds += rounds
        if 0 in self.failures and not self._medians[0]:
            raise BenchmarkError(
                f"the reference, which all are timed against, does not run: {self.failures[0]}"
            )

    def _still_running(self, running: Sequence[int]) -> list[int]:
        """Those that the leader is not known to beat; the others are noted as slower."""
        timed = [at for at in running if self._medians[at]]
        if not timed:
            return list(running)
        leader = max(timed, key=self.ratio)
        for at in timed:
            ratios = self._ratios(leader, at)
            found = ratio_interval(ratios)
            if at != leader and verdict(found, len(ratios), 1) == "SLOWER":
                self.slower[at] = (statistics.median(ratios), found)
        return [at for at in running if at not in self.slower]

    def _ratios(self, reference: int, number: int) -> list[float]:
        theirs, ours = self._medians[reference], self._medians[number]
        return [theirs[at] / ours[at] for at in sorted(theirs.keys() & ours.keys())]
