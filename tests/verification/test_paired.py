from __future__ import annotations

import math

import numpy as np
import pytest

from cnndeploy.verification.paired import paired_interval

Z = 1.959963984540054


def _score(lost: int, gained: int, images: int, difference: float) -> float:
    """By the definition: the restricted maximum of the likelihood is looked for, not solved for."""
    low, high = max(0.0, -difference), (1 - difference) / 2
    for _ in range(200):  # golden section search; the likelihood is concave
        first, second = (low + share * (high - low) for share in (0.381966, 0.618034))
        if _likelihood(lost, gained, images, difference, first) < _likelihood(
            lost, gained, images, difference, second
        ):
            low = first
        else:
            high = second
    share = (low + high) / 2
    variance = (2 * share + difference - difference**2) / images
    return ((lost - gained) / images - difference) / math.sqrt(variance)


def _likelihood(lost: int, gained: int, images: int, difference: float, share: float) -> float:
    counts = {share + difference: lost, share: gained, 1 - 2 * share - difference: images - lost - gained}
    return sum(count * math.log(max(chance, 1e-300)) for chance, count in counts.items())


@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(30, 20, 10_000), (3, 9, 200), (14, 3, 100), (1, 0, 44)]
)
def test_the_ends_are_where_the_score_test_just_rejects(lost: int, gained: int, images: int) -> None:
    low, high = paired_interval(lost, gained, images)
    assert _score(lost, gained, images, low) == pytest.approx(Z, abs=1e-3)
    assert _score(lost, gained, images, high) == pytest.approx(-Z, abs=1e-3)


def test_swapping_the_two_mirrors_the_interval() -> None:
    low, high = paired_interval(17, 5, 300)
    assert paired_interval(5, 17, 300) == (-high, -low)


def test_no_difference_seen_is_not_no_difference() -> None:
    low, high = paired_interval(0, 0, 10_000)
    assert (
        high == -low == pytest.approx(Z**2 / (10_000 + Z**2))
    )  # by hand, from the score at no discordant pairs


def test_where_all_images_differ_the_interval_ends_at_one() -> None:
    low, high = paired_interval(10, 0, 10)
    assert high == 1
    assert 0 < low < 1
    assert paired_interval(0, 10, 10) == (-1, -low)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 10), (6, 5, 10)])
def test_what_are_no_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no paired counts"):
        paired_interval(*counts)


@pytest.mark.parametrize(("lost", "gained"), [(0.002, 0.001), (0.01, 0.004), (0.0005, 0.0005)])
def test_each_end_errs_in_about_a_fortieth(lost: float, gained: float) -> None:
    """By simulation of 2,000 images; with so few that differ, counts are coarse, so the level is not met exactly."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(2000, [lost, gained, 1 - lost - gained], size=3000)
    pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    ends = [paired_interval(int(a), int(b), 2000) for a, b in pairs]
    missed = sum(count for (_, high), count in zip(ends, times, strict=True) if high < lost - gained)
    assert missed / 3000 < 0.04
    covered = sum(
        count for (low, high), count in zip(ends, times, strict=True) if low <= lost - gained <= high
    )
    assert 0.93 < covered / 3000 < 1
