"""The engine: blocks of calls, in turns, in random order. It knows neither models nor processes nor clocks."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

WARM_UP_S = 0.3
WARM_UP_CALLS = 3
BLOCK_S = 0.05
PAUSE_S = 0.1
MIN_ROUNDS, MAX_ROUNDS = 5, 30

Rounds = list[list[list[float]]]
"""Seconds per call, by round, candidate and call."""


class Block(Protocol):
    """Something to time; it owns the clock."""

    def run(self, calls: int) -> list[float]:
        """Make so many calls and give the seconds that each took."""


def measure(
    blocks: Sequence[Block],
    *,
    budget_s: float,
    seed: int = 0,
    pause: Callable[[float], None] = time.sleep,
    on_round: Callable[[int, int], None] | None = None,
) -> Rounds:
    """Warm every candidate up, then let them take turns.

    A block has as many calls as last ``BLOCK_S``, at least one. In every round each candidate runs one block,
    in an order drawn anew; before each block a pause lets the worker threads of the one before, which spin
    for a while after their work, fall asleep. There are as many rounds as fit the budget, within limits.

    Args:
        blocks: The candidates.
        budget_s: Seconds of measurement for each candidate, pauses not counted.
        seed: Of the order.
        pause: Sleeps for some seconds.
        on_round: Called with the rounds done and the rounds in all.
    """
    calls = [_warm_up(block, pause) for block in blocks]
    slowest = max(seconds * count for seconds, count in calls)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(budget_s / slowest)))
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    measured: Rounds = []
    for done in range(1, rounds + 1):
        this_round: list[list[float]] = [[] for _ in blocks]
        for index in order.sample(range(len(blocks)), len(blocks)):
            pause(PAUSE_S)
            this_round[index] = blocks[index].run(calls[index][1])
        measured.append(this_round)
        if on_round is not None:
            on_round(done, rounds)
    return measured


def _warm_up(block: Block, pause: Callable[[float], None]) -> tuple[float, int]:
    """Run until both limits are met; gives the seconds of a warm call and the calls that fill a block."""
    pause(PAUSE_S)
    spent, last = 0.0, 0.0
    calls = 0
    while calls < WARM_UP_CALLS or spent < WARM_UP_S:
        batch = block.run(max(1, calls))  # doubles, so that a fast model does not pay for a message each call
        calls += len(batch)
        spent += math.fsum(batch)
        last = sorted(batch)[len(batch) // 2]
    return last, max(1, math.ceil(BLOCK_S / last))
