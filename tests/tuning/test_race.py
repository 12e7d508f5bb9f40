"""The race, on simulated contenders: no clock is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from cnndeploy.benchmark.engine import measure
from cnndeploy.errors import ArtifactError, BenchmarkError
from cnndeploy.tuning import race as module
from cnndeploy.tuning.race import FIRST_ROUNDS, MOST_ROUNDS, Race


class Simulated:
    """Takes so many seconds a call, give or take a few percent; fails from one block on if told to."""

    clock_s = 1e-9

    def __init__(self, seconds: float | Callable[[], float], seed: int, fails_at: int | None = None) -> None:
        self._seconds = seconds
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        self._fails_at = fails_at
        self.blocks = 0

    def run(self, samples: int, repeats: int) -> list[float]:
        self.blocks += 1
        if self.blocks == self._fails_at:
            raise ArtifactError("it broke down")
        seconds = self._seconds() if callable(self._seconds) else self._seconds
        of_block = seconds * self._random.uniform(0.98, 1.02)
        return [of_block * self._random.uniform(0.99, 1.01) for _ in range(samples)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure", lambda *args, **more: measure(*args, pause=lambda _: None, **more))


def _race(*blocks: Simulated, should_stop: object = bool, **more: Any) -> Race[int]:
    more = {"on_round": lambda *_: None, **more}
    return Race(dict(enumerate(blocks)), reference=0, should_stop=should_stop, **more)  # type: ignore[arg-type]


def test_the_fastest_wins_and_the_hopeless_leave_after_the_first_rounds() -> None:
    race = _race(*(Simulated(seconds, seed) for seed, seconds in enumerate((0.1, 0.02, 0.05, 0.01, 0.3))))
    assert race.run(range(5)) == [3]
    assert race.ratio(3) == pytest.approx(10, rel=0.05)
    assert {at: race.rounds(at) for at in range(5)} == dict.fromkeys(range(5), FIRST_ROUNDS)
    left = race.slower[1]
    assert left.interval[0] <= left.ratio <= left.interval[1] < 1
    assert left.leader == 3
    assert left.ratio == pytest.approx(0.5, rel=0.05)


def test_contenders_that_are_as_fast_stay_to_the_end_and_get_more_rounds() -> None:
    race = _race(*(Simulated(seconds, seed) for seed, seconds in enumerate((0.1, 0.0200, 0.0201, 0.08))))
    assert set(race.run(range(4))) == {1, 2}
    assert race.rounds(1) == race.rounds(2) >= MOST_ROUNDS
    assert race.rounds(3) == FIRST_ROUNDS
    assert race.rounds(0) >= MOST_ROUNDS, "the reference runs in every round"


def test_after_the_winner_is_refused_those_that_it_beat_race_again() -> None:
    race = _race(*(Simulated(seconds, seed) for seed, seconds in enumerate((0.1, 0.01, 0.02, 0.04))))
    assert race.run(range(4)) == [1]
    assert race.run([0, 2, 3]) == [2]
    assert race.slower.keys() == {0, 1, 3} - {1} | ({1} & race.slower.keys())


def test_one_that_breaks_down_is_out_and_says_why() -> None:
    race = _race(Simulated(0.1, 0), Simulated(0.01, 1, fails_at=9), Simulated(0.02, 2))
    assert race.run(range(3)) == [2]
    assert race.failures == {1: "it broke down"}


def test_when_the_time_is_over_the_best_so_far_is_first() -> None:
    calls = 0

    def over() -> bool:
        nonlocal calls
        calls += 1
        return calls > 60

    race = _race(
        *(Simulated(seconds, seed) for seed, seconds in enumerate((0.1, 0.0201, 0.0200))), should_stop=over
    )
    standing = race.run(range(3))
    assert standing, "rounds that were over count"
    assert standing[0] in (1, 2)
    assert race.rounds(1) < MOST_ROUNDS
    assert not race.decided


def test_without_a_round_nobody_stands() -> None:
    assert _race(Simulated(1, 0), Simulated(1, 1), should_stop=lambda: True).run(range(2)) == []


def test_it_says_whether_it_came_to_its_end() -> None:
    race = _race(Simulated(0.1, 0), Simulated(0.01, 1))
    race.run(range(2))
    assert race.decided
    stopped = _race(Simulated(0.1, 0), Simulated(0.01, 1), should_stop=lambda: True)
    stopped.run(range(2))
    assert not stopped.decided


def test_a_reference_that_breaks_down_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"the reference.*it broke down"):
        _race(Simulated(0.1, 0, fails_at=1), Simulated(0.01, 1)).run(range(2))


def _drifting() -> tuple[Race[int], Callable[[], list[int]]]:
    """A machine that is slow in the first rounds, most of all for the reference; 1 leaves early, 2 and 3 stay."""
    rounds = [0]

    def is_slow() -> bool:
        return rounds[0] < FIRST_ROUNDS

    blocks = (
        Simulated(lambda: 0.3 if is_slow() else 0.1, 0),
        Simulated(lambda: 0.0070 if is_slow() else 0.0040, 1),
        Simulated(lambda: 0.0058 if is_slow() else 0.0036, 2),
        Simulated(lambda: 0.0058 if is_slow() else 0.0036, 3),
    )

    def on_round(done: int, _running: int) -> None:
        rounds[0] = done

    race = _race(*blocks, on_round=on_round)
    return race, lambda: race.run(range(4))


def test_one_that_left_in_slow_rounds_is_compared_by_the_rounds_that_both_ran() -> None:
    race, run = _drifting()
    standing = run()
    assert set(standing) == {2, 3}
    assert race.ratio(1) > race.ratio(standing[0]), "to the reference it looks faster, in other rounds"
    assert race.ranked(range(4)) == [*standing, 1, 0]
    ratio, (low, high) = race.comparable(1, standing[0])
    assert low <= ratio <= high < 1
    assert ratio == pytest.approx(58 / 70, rel=0.05)
    assert race.comparable(0, standing[0])[0] == pytest.approx(1 / race.ratio(standing[0]), rel=0.05)
    assert race.comparable(standing[0], standing[0]) == (1.0, (1.0, 1.0))


def test_the_leader_is_the_one_that_is_fastest_side_by_side() -> None:
    """Ratios to a reference that jumps about would name another."""
    race = _race(Simulated(1.0, 0), Simulated(1.0, 1), Simulated(1.0, 2))
    race._medians = {
        0: dict(enumerate((0.5, 0.5, 2.0, 2.0, 2.0))),
        1: dict(enumerate((1.0, 1.0, 1.0, 1.0, 1.0))),
        2: dict(enumerate((0.9, 0.9, 1.2, 0.9, 1.2))),
    }
    assert race.ratio(1) > race.ratio(2)
    assert race.ranked([1, 2]) == [2, 1]
    assert race.ratio(2, 1) == pytest.approx(1 / 0.9)


def test_those_that_are_out_leave_and_may_come_back() -> None:
    left: list[int] = []
    blocks = [Simulated(seconds, seed) for seed, seconds in enumerate((0.1, 0.01, 0.02, 0.04))]
    race = _race(*blocks, Simulated(0.01, 9, fails_at=1), on_leave=left.append)
    assert race.run(range(5)) == [1]
    assert set(left) == {2, 3, 4}
    left.clear()
    assert race.run([2, 3]) == [2]
    assert set(left) == {1, 3, 4}
