"""The engine: blocks of calls, in turns, in random order. It knows neither models nor processes nor clocks."""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cnndeploy.errors import CnndeployError, Stopped
from cnndeploy.progress import ShouldStop, never

WARM_UP_S = 0.3
WARM_UP_CALLS = 3
BLOCK_S = 0.05
_AIM_S = 0.1
PAUSE_S = 0.1
CLOCK_SHARE = 0.001
_FIRST_LOOK, _LOOK_GROWTH = 10, 1.25


class Block(Protocol):
    """A candidate to time; it reads its own clock, which takes ``clock_s`` seconds; known once it has run."""

    clock_s: float

    def run(self, samples: int, repeats: int) -> list[float]:
        """Return seconds per call of ``samples`` samples of ``repeats`` calls; not run again after a CnndeployError."""


@dataclass(slots=True)
class Measurement:
    """What one candidate took: ``rounds`` holds the seconds per call of each block.

    A sample is the mean of ``calls_per_sample`` calls in a row, more than one only if reading the clock would
    take more than a thousandth of a call. ``failure`` says why there is no more.
    """

    rounds: list[list[float]] = field(default_factory=list)
    calls_per_sample: int = 1
    first_call_s: float | None = None
    failure: str = ""
    samples: int = 1

    @property
    def medians(self) -> list[float]:
        """The median of each round."""
        return [statistics.median(seconds) for seconds in self.rounds]


def measure(
    blocks: Sequence[Block],
    *,
    seconds: float,
    min_rounds: int = 1,
    is_enough: Callable[[list[Measurement]], bool] = lambda _: False,
    should_stop: ShouldStop = never,
    seed: int = 0,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    on_round: Callable[[int, float], None] = lambda *_: None,
) -> list[Measurement]:
    """Warm every candidate up, then let them take turns.

    A block has as many calls as last ``BLOCK_S`` and more, at least one. In every round each candidate runs one block,
    in an order drawn again; before each block a pause lets the worker threads of the one before, which spin
    for a while after their work, fall asleep. A candidate that fails is left out from then on; a round counts only
    when all the others have finished it.

    Args:
        blocks: The candidates.
        seconds: How long to measure each candidate; this counts pauses, and not the warm-up.
        min_rounds: How many rounds to run, however long they take.
        is_enough: Asked ever more rarely whether what was measured will do; the rounds then end.
        should_stop: Asked after every block; once it returns True, what was measured until then is returned.
        seed: Draws the order.
        pause: Sleeps for some seconds.
        clock: For ``seconds`` only.
        on_round: Called with the rounds done and the share of the time used.
    """
    measured = [Measurement() for _ in blocks]
    for block, of_block in zip(blocks, measured, strict=True):
        if should_stop():
            return measured
        pause(PAUSE_S)
        with _noting(of_block):
            _warm_up(block, of_block)
    order = random.Random(seed)  # noqa: S311 - an order, not a secret
    next_look = _FIRST_LOOK
    started, done = clock(), 0
    while running := [index for index, of_block in enumerate(measured) if not of_block.failure]:
        if not _round(blocks, measured, order.sample(running, len(running)), pause, should_stop):
            break
        done += 1
        used = (clock() - started) / (seconds * len(blocks))
        on_round(done, min(1.0, used))
        if done >= min_rounds and used >= 1:
            break
        if done >= max(min_rounds, next_look):
            if is_enough(measured):
                break
            next_look = math.ceil(done * _LOOK_GROWTH)
    return measured


def _round(
    blocks: Sequence[Block],
    measured: Sequence[Measurement],
    order: Sequence[int],
    pause: Callable[[float], None],
    should_stop: ShouldStop,
) -> bool:
    """Run one block of each; return whether the round was finished, and so is kept."""
    seconds = {}
    for index in order:
        pause(PAUSE_S)
        with _noting(measured[index]):
            seconds[index] = _block(blocks[index], measured[index])
        if should_stop():
            return False
    for index, of_block in seconds.items():
        measured[index].rounds.append(of_block)
    return True


@contextlib.contextmanager
def _noting(measured: Measurement) -> Iterator[None]:
    """Note the block's error, with which the candidate is out."""
    try:
        yield
    except Stopped:  # what asks whether to stop may raise
        raise
    except CnndeployError as error:
        measured.failure = str(error)


def _warm_up(block: Block, measured: Measurement) -> None:
    """Run until both limits are met, then settle how many calls fill a sample and samples a block."""
    (measured.first_call_s,) = last = block.run(1, 1)
    spent, calls = 0.0, 1
    while calls < WARM_UP_CALLS or spent < WARM_UP_S:
        last = block.run(calls, 1)  # doubles, so that a fast model does not pay for a message each call
        calls += len(last)
        spent += math.fsum(last)
    call_s = statistics.median(last)
    measured.calls_per_sample = math.ceil(block.clock_s / (CLOCK_SHARE * call_s))
    measured.samples = math.ceil(_AIM_S / (call_s * measured.calls_per_sample))


def _block(block: Block, measured: Measurement) -> list[float]:
    """Run one block, and more of it if the machine has become so fast that it is too short."""
    seconds = block.run(measured.samples, measured.calls_per_sample)
    while (spent := math.fsum(seconds) * measured.calls_per_sample) < BLOCK_S:
        missing = math.ceil(len(seconds) * (BLOCK_S / spent - 1))
        seconds += block.run(max(1, missing), measured.calls_per_sample)
    return seconds
