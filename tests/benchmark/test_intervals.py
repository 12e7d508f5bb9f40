from __future__ import annotations

import math

import numpy as np
import pytest

from cnndeploy.benchmark.intervals import (
    calls_needed,
    change_interval,
    outliers,
    quantile_interval,
    ratio_interval,
    rounds_needed,
    verdict,
)


@pytest.mark.parametrize(("share", "needed"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_an_interval_needs_so_many_calls(share: float, needed: int) -> None:
    assert calls_needed(share) == needed
    assert quantile_interval([np.arange(needed - 1.0)], share) == 1
    assert isinstance(quantile_interval([np.arange(float(needed))], share), tuple)


def test_the_median_of_ten_has_the_interval_of_the_tables() -> None:
    # order statistics 2 and 9 cover the median of ten with 97.9%, 3 and 8 with 89.1%
    assert quantile_interval([np.arange(1.0, 11.0)], 0.5) == (2.0, 9.0)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("of_a_round", [0.0, 0.05])
def test_a_quantiles_interval_holds_it_as_often_as_it_says(share: float, of_a_round: float) -> None:
    """Also where the calls of a round resemble each other."""
    random = np.random.default_rng(0)
    truth = float(np.quantile(random.normal(size=10**6) * np.hypot(of_a_round, 0.05), share))
    held = tries = 0
    for _ in range(600):
        rounds = [of_a_round * random.normal() + 0.05 * random.normal(size=100) for _ in range(60)]
        interval = quantile_interval(rounds, share)
        if isinstance(interval, tuple):
            tries += 1
            held += interval[0] <= truth <= interval[1]
    assert tries >= 300
    assert 0.91 <= held / tries <= 1.0


def test_calls_that_resemble_each_other_are_worth_fewer() -> None:
    """Ten rounds of one and the same value each are ten values, not a thousand."""
    rounds = [np.full(100, value) for value in range(1, 11)]
    missing = quantile_interval([each.astype(float) for each in rounds], 0.9)
    assert isinstance(missing, int)
    assert missing > 1000
    interval = quantile_interval([each.astype(float) for each in rounds], 0.5)
    assert isinstance(interval, tuple)
    assert interval[1] - interval[0] >= 4


def test_the_exact_binomial_is_what_the_interval_is_made_of() -> None:
    count, share = 50, 0.9
    interval = quantile_interval([np.arange(1.0, count + 1)], share)
    assert isinstance(interval, tuple)
    low, high = (int(end) for end in interval)
    chance = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)]
    assert sum(chance[low:high]) >= 0.95  # P(low values or more below the quantile, fewer than high)
    assert sum(chance[: low + 1]) > 0.025  # one value nearer would not do
    assert sum(chance[high - 1 :]) > 0.025


@pytest.mark.parametrize("rounds", [6, 7, 9, 12, 20, 48])
def test_a_ratios_interval_holds_it_as_often_as_it_says(rounds: int) -> None:
    random = np.random.default_rng(0)
    draws = np.exp(0.05 * random.standard_normal((2000, rounds)))
    intervals = [ratio_interval(ratios.tolist()) for ratios in draws]
    held = sum(low <= 1 <= high for low, high in intervals)
    assert held >= 0.94 * 2000  # 1% is two standard deviations of such a count
    below = int(np.flatnonzero(np.sort(draws[0]) == intervals[0][0]).item())  # values beyond each end
    chance = [math.comb(rounds, count) / 2**rounds for count in range(rounds + 1)]
    assert sum(chance[: below + 1]) <= 0.025
    assert sum(chance[: below + 2]) > 0.025, "one value nearer would not do"


def test_few_ratios_have_the_interval_of_the_tables() -> None:
    """Source: Hahn and Meeker, table of distribution-free intervals for a median: 9 values, the 2nd and the 8th."""
    ratios = [float(value) for value in range(1, 10)]
    assert ratio_interval(ratios) == (2, 8)
    assert ratio_interval(ratios, comparisons=10) == (1, 9)
    assert ratio_interval([2.0, 1.0]) == (1, 2)


def test_more_comparisons_widen_the_interval() -> None:
    ratios = np.exp(0.05 * np.random.default_rng(0).standard_normal(50)).tolist()
    (one_low, one_high), (ten_low, ten_high) = ratio_interval(ratios), ratio_interval(ratios, 10)
    assert ten_low < one_low < one_high < ten_high


def test_a_change_is_how_many_times_as_fast_it_is_now() -> None:
    random = np.random.default_rng(0)
    before, now = 2 * (1 + 0.01 * random.random(30)), 1 + 0.01 * random.random(30)
    low, high = change_interval(before.tolist(), now.tolist())
    assert 1.98 < low < 2.0
    assert 2.0 < high < 2.02


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((1.03, 1.05), "FASTER"),
        ((1.01, 1.05), "AMBIGUOUS"),
        ((0.99, 1.01), "SAME"),
        ((0.97, 1.01), "AMBIGUOUS"),
        ((0.90, 0.97), "SLOWER"),
        ((0.90, 1.10), "AMBIGUOUS"),
    ],
)
def test_the_verdict_follows_from_where_the_interval_lies(interval: tuple[float, float], said: str) -> None:
    assert verdict(interval, rounds=10, comparisons=1) == said


def test_too_few_rounds_allow_no_verdict() -> None:
    assert (rounds_needed(1), rounds_needed(10)) == (6, 9)
    assert verdict((3.0, 3.1), rounds=5, comparisons=1) == "AMBIGUOUS"
    assert verdict((3.0, 3.1), rounds=6, comparisons=1) == "FASTER"
    assert verdict((3.0, 3.1), rounds=8, comparisons=10) == "AMBIGUOUS"


def test_outliers_are_what_no_jitter_explains() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(1.0, 0.01, 1000), [1.5, 9.0]])
    assert outliers(values) == 2
    assert outliers(np.array([1.0, 1.0, 1.0, 2.0])) == 1
    assert outliers(np.array([1.0, 1.0, 1.0])) == 0
