from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from cnndeploy.benchmark.bench import _is_precise, engine
from cnndeploy.benchmark.engine import Measurement, measure
from cnndeploy.benchmark.report import Result, compared, summarise
from cnndeploy.errors import ArtifactError


@pytest.fixture(scope="module", autouse=True)
def quick_blocks() -> None:
    """The engine keeps its own times here; a fake clock passes them."""


class FakeClock:
    """Time that passes only when something is run or slept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses = 0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1


class FakeBlock:
    """A candidate whose calls take what ``seconds`` gives; keeps what it was asked for."""

    def __init__(
        self,
        clock: FakeClock,
        seconds: Callable[[int], list[float]],
        log: list[FakeBlock],
        clock_s: float = 0.0,
    ) -> None:
        self.clock_s = clock_s or 1e-9
        self.asked: list[tuple[int, int]] = []
        self._clock, self._seconds, self._log = clock, seconds, log

    def run(self, samples: int, repeats: int) -> list[float]:
        self.asked.append((samples, repeats))
        self._log.append(self)
        seconds = self._seconds(samples)
        self._clock.now += math.fsum(seconds) * repeats
        return seconds


def _repeated(seconds: float, count: int) -> list[float]:
    return [seconds] * count


def _measure(
    *each: float,
    budget_s: float = 1.0,
    clock_s: float = 0.0,
    is_enough: Callable[..., bool] = lambda _: False,
) -> tuple[list[Measurement], list[FakeBlock], list[FakeBlock], FakeClock]:
    clock = FakeClock()
    log: list[FakeBlock] = []
    blocks = [FakeBlock(clock, partial(_repeated, seconds), log, clock_s) for seconds in each]
    found = measure(
        blocks, budget_s=budget_s, min_rounds=3, is_enough=is_enough, pause=clock.pause, clock=clock
    )
    return found, blocks, log, clock


def test_blocks_last_long_enough_and_every_call_is_kept() -> None:
    (fast, slow), _, _, _ = _measure(0.001, 0.02)
    for measured, calls in ((fast, 100), (slow, 5)):
        assert {len(each) for each in measured.rounds} == {calls}
        assert all(math.fsum(each) >= engine.BLOCK_S for each in measured.rounds)


def test_a_block_that_turns_out_too_short_is_run_on() -> None:
    clock = FakeClock()
    log: list[FakeBlock] = []
    speed = {"seconds": 0.010}
    block = FakeBlock(clock, lambda count: [speed["seconds"]] * count, log)

    def pause(seconds: float) -> None:
        clock.pause(seconds)
        if clock.pauses == 2:  # after the warm-up the machine becomes ten times as fast
            speed["seconds"] = 0.001

    (measured,) = measure([block], budget_s=1.0, pause=pause, clock=clock)
    assert all(math.fsum(each) >= engine.BLOCK_S for each in measured.rounds)


@pytest.mark.parametrize(
    ("seconds", "clock_s", "repeats"), [(25e-6, 50e-9, 2), (25e-6, 250e-9, 10), (0.001, 50e-9, 1)]
)
def test_reading_the_clock_takes_at_most_a_thousandth(seconds: float, clock_s: float, repeats: int) -> None:
    (measured,), (block,), _, _ = _measure(seconds, clock_s=clock_s)
    assert measured.calls_per_sample == repeats
    assert clock_s / (seconds * measured.calls_per_sample) <= 0.001
    assert block.asked[-1][1] == repeats
    assert math.fsum(measured.rounds[-1]) * repeats >= engine.BLOCK_S


@pytest.mark.parametrize(
    ("seconds", "budget_s", "rounds"),
    [(0.1, 3.9, 20), (0.1, 0.2, 3), (60.0, 5.0, 3)],
)
def test_rounds_follow_the_budget(seconds: float, budget_s: float, rounds: int) -> None:
    (first, second), _, _, _ = _measure(seconds, seconds, budget_s=budget_s)
    assert len(first.rounds) == len(second.rounds) == rounds


def test_rounds_end_when_what_is_known_is_enough() -> None:
    (measured,), _, _, _ = _measure(0.1, budget_s=100.0, is_enough=lambda found: len(found[0].rounds) >= 12)
    assert 12 <= len(measured.rounds) <= 15


def test_every_candidate_is_warmed_up_before_the_first_round() -> None:
    found, (quick, slow), log, _ = _measure(0.05, 0.2)
    before = len(log) - sum(len(each.rounds) for each in found)
    warm = [
        sum(samples for samples, _ in block.asked[: log[:before].count(block)]) for block in (quick, slow)
    ]
    assert warm[0] * 0.05 >= engine.WARM_UP_S
    assert warm[1] >= engine.WARM_UP_CALLS


def test_every_round_has_each_candidate_once_in_an_order_that_changes_and_repeats_by_seed() -> None:
    found, blocks, log, clock = _measure(0.05, 0.06, 0.07, budget_s=10.0)
    rounds = len(found[0].rounds)
    order = [blocks.index(block) for block in log[-3 * rounds :]]
    orders = [tuple(order[at : at + 3]) for at in range(0, len(order), 3)]
    assert all(set(each) == {0, 1, 2} for each in orders)
    assert len(set(orders)) == 6
    assert clock.pauses == 3 + 3 * rounds
    _, again, second_log, _ = _measure(0.05, 0.06, 0.07, budget_s=10.0)
    assert order == [again.index(block) for block in second_log[-3 * rounds :]]


@pytest.mark.parametrize("at", ["warm-up", "round"])
def test_a_candidate_that_fails_is_left_out_and_the_others_go_on(at: str) -> None:
    clock = FakeClock()
    log: list[FakeBlock] = []
    runs = {"left": 1 if at == "warm-up" else 8}

    def failing(count: int) -> list[float]:
        runs["left"] -= 1
        if not runs["left"]:
            raise ArtifactError("it broke")
        return [0.1] * count

    blocks = [FakeBlock(clock, failing, log), FakeBlock(clock, lambda count: [0.1] * count, log)]
    broken, sound = measure(blocks, budget_s=5.0, pause=clock.pause, clock=clock)
    assert broken.failure == "it broke"
    assert len(sound.rounds) > len(broken.rounds)
    assert len(blocks[0].asked) < len(blocks[1].asked)


def test_stopping_keeps_whole_rounds() -> None:
    clock = FakeClock()
    log: list[FakeBlock] = []
    blocks = [FakeBlock(clock, lambda count: [0.1] * count, log) for _ in range(2)]
    stop_at = 25
    found = measure(
        blocks, budget_s=100.0, should_stop=lambda: len(log) >= stop_at, pause=clock.pause, clock=clock
    )
    assert len(found[0].rounds) == len(found[1].rounds) > 0
    assert len(log) == stop_at


# Speeds that a shared machine gives: the machine's own drift, a block's, a call's, and now and then a hiccup.


def _simulated(seed: int, slower: float) -> str:
    """The verdict on the second of two candidates, the first ``slower`` times as slow."""
    random = np.random.default_rng(seed)
    clock = FakeClock()
    log: list[FakeBlock] = []

    def seconds(factor: float) -> Callable[[int], list[float]]:
        def draw(count: int) -> list[float]:
            machine = 1 + 0.3 * math.sin(clock.now / 5)
            block = math.exp(0.02 * random.standard_normal())
            calls = np.exp(0.05 * random.standard_normal(count)) * np.where(random.random(count) < 0.01, 5, 1)
            return list(0.01 * factor * machine * block * calls)

        return draw

    blocks = [FakeBlock(clock, seconds(factor), log) for factor in (slower, 1.0)]
    found = measure(
        blocks,
        budget_s=20.0,
        is_enough=lambda measured: _is_precise(measured, 0.02, 1),
        seed=seed,
        pause=clock.pause,
        clock=clock,
    )
    rows = [
        summarise(Result(target="x", runtime="y", device="cpu", threads=1, batch_size=1), each)
        for each in found
    ]
    return compared(rows, 1)[1].verdict or ""


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of them makes an interval coarser by little, and a simulation many times quicker."""
    monkeypatch.setattr("cnndeploy.benchmark.intervals._RESAMPLES", 1000)


@pytest.mark.usefixtures("few_resamples")
def test_a_file_against_itself_has_no_winner() -> None:
    said = [_simulated(seed, slower=1.0) for seed in range(150)]
    assert len(said) == 150
    assert sum(verdict in ("FASTER", "SLOWER") for verdict in said) <= 8
    assert sum(verdict == "SAME" for verdict in said) >= 75  # and it is not for saying nothing


@pytest.mark.usefixtures("few_resamples")
def test_a_difference_of_a_twentieth_is_found() -> None:
    said = [_simulated(seed, slower=1.05) for seed in range(50)]
    assert sum(verdict == "FASTER" for verdict in said) >= 45
