from __future__ import annotations

import math

import pytest

from cnndeploy.benchmark import engine
from cnndeploy.benchmark.engine import measure


class FakeBlock:
    """A candidate whose every call takes so long; keeps the calls it was asked for."""

    def __init__(self, seconds: float, log: list[tuple[float, int]]) -> None:
        self.seconds = seconds
        self.log = log

    def run(self, calls: int) -> list[float]:
        self.log.append((self.seconds, calls))
        return [self.seconds] * calls


def _measure(
    *seconds: float, budget_s: float = 1.0
) -> tuple[engine.Rounds, list[tuple[float, int]], list[float]]:
    log: list[tuple[float, int]] = []
    pauses: list[float] = []
    rounds = measure([FakeBlock(s, log) for s in seconds], budget_s=budget_s, pause=pauses.append)
    return rounds, log, pauses


def test_blocks_last_long_enough_and_every_call_is_kept() -> None:
    rounds, _, _ = _measure(0.001, 0.02)
    for this_round in rounds:
        assert [len(calls) for calls in this_round] == [50, 3]
        assert all(math.fsum(calls) >= engine.BLOCK_S for calls in this_round)


@pytest.mark.parametrize(
    ("seconds", "budget_s", "expected"),
    [(0.001, 100.0, engine.MAX_ROUNDS), (0.001, 0.5, 10), (0.001, 0.01, engine.MIN_ROUNDS), (60.0, 5.0, 5)],
)
def test_rounds_follow_the_budget_within_limits(seconds: float, budget_s: float, expected: int) -> None:
    rounds, _, _ = _measure(seconds, budget_s=budget_s)
    assert len(rounds) == expected


def test_every_candidate_is_warmed_up_before_the_first_round() -> None:
    rounds, log, _ = _measure(0.05, 0.2)
    before = log[: -2 * len(rounds)]
    warm = {s: [calls for seconds, calls in before if seconds == s] for s in (0.05, 0.2)}
    assert sum(warm[0.05]) * 0.05 >= engine.WARM_UP_S
    assert sum(warm[0.2]) >= engine.WARM_UP_CALLS


def test_every_round_has_each_candidate_once_in_an_order_that_changes() -> None:
    rounds, log, pauses = _measure(0.05, 0.06, 0.07, budget_s=100.0)
    blocks = [seconds for seconds, _ in log[-3 * len(rounds) :]]
    orders = [tuple(blocks[at : at + 3]) for at in range(0, len(blocks), 3)]
    assert all(set(order) == {0.05, 0.06, 0.07} for order in orders)
    assert len(set(orders)) == 6
    assert len(pauses) == 3 + 3 * len(rounds)


def test_the_same_seed_gives_the_same_order() -> None:
    assert _measure(0.05, 0.06)[1] == _measure(0.05, 0.06)[1]
