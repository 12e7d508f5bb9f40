"""Statistics of measured seconds: quantiles and ratios with intervals, and a verdict.

Sources: order-statistic intervals: Hahn, Meeker, Statistical Intervals, 1991, section 5.2; of samples that come in
clusters: Kish, Survey sampling, 1965, effective sample size, and Woodruff, Confidence intervals for medians and other
position measures, 1952. Bootstrap, of the quotient of two medians: Efron, Bootstrap methods, 1979, percentile
intervals. Correction for several comparisons: Bonferroni. The verdict is that of equivalence testing: Schuirmann, A
comparison of the two one-sided tests procedure, 1987. Outliers: Iglewicz, Hoaglin, How to detect and handle outliers,
1993, with hyperfine's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Verdict = Literal["REFERENCE", "FASTER", "SLOWER", "SAME", "AMBIGUOUS"]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95
SAME_WITHIN = 0.02
_RESAMPLES, _CHUNK = 10_000, 500
_OUTLYING = 14.826  # median absolute deviations; ten standard deviations of a normal distribution


def quantile_interval(rounds: Sequence[Floats], share: float) -> Interval | int:
    """Return the two values of a sample between which its distribution's quantile lies, with 95% confidence.

    If there are too few calls for any, return how many are missing.
    The number of values below the quantile is binomial, whatever the distribution. Calls of one round resemble each
    other, so that a sample says only as much as a smaller one of independent calls would: as large as explains by how
    much the rounds differ in their share of values below the quantile.
    """
    ordered = np.sort(np.concatenate(rounds))
    quantile = np.quantile(ordered, share, method="inverted_cdf")
    below = np.array([(each <= quantile).mean() for each in rounds])
    weights = np.array([len(each) for each in rounds]) / len(ordered)
    variance = float((weights**2 * (below - below @ weights) ** 2).sum())
    count = len(ordered) if variance == 0 else int(min(len(ordered), share * (1 - share) / variance))
    if count < calls_needed(share):
        return math.ceil((calls_needed(share) - count) * len(ordered) / max(1, count))
    tail = (1 - CONFIDENCE) / 2
    cumulated = _binomial_cumulated(count, share)  # of at most k values below the quantile, k from 0
    low = max(1, int(np.searchsorted(cumulated, tail, side="right")))
    high = min(count, int(np.searchsorted(cumulated, 1 - tail, side="left")) + 1)
    ranks = [round(rank * len(ordered) / count) for rank in (low, high)]
    return float(ordered[max(1, ranks[0]) - 1]), float(ordered[min(len(ordered), ranks[1]) - 1])


def calls_needed(share: float) -> int:
    """Return the size of the smallest sample that has a 95% interval for this quantile."""
    extreme = max(share, 1 - share)
    if extreme == 0.5:  # both ends count
        return math.ceil(1 - math.log2(1 - CONFIDENCE))
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(extreme))


def _binomial_cumulated(count: int, share: float) -> Floats:
    k = np.arange(count + 1)
    choose = np.concatenate(([0.0], np.cumsum(np.log((count + 1 - k[1:]) / k[1:]))))
    return np.cumsum(np.exp(choose + k * math.log(share) + (count - k) * math.log1p(-share)))


def ratio_interval(ratios: Sequence[float], comparisons: int = 1) -> Interval:
    """Return two ratios between which the median lies, with 95% confidence for all ``comparisons`` of a run together.

    With fewer rounds than :func:`rounds_needed` they are the smallest and the largest, with less confidence.
    """
    ordered = np.sort(np.asarray(ratios, np.float64))
    tail = (1 - CONFIDENCE) / comparisons / 2
    beyond = max(0, int(np.searchsorted(_binomial_cumulated(len(ordered), 0.5), tail, side="right")) - 1)
    return float(ordered[beyond]), float(ordered[len(ordered) - 1 - beyond])


def change_interval(before: Sequence[float], now: Sequence[float], comparisons: int = 1) -> Interval:
    """Return a bootstrap interval for median(before) / median(now), of two runs whose rounds do not pair."""
    changes = _resampled_medians(np.asarray(before), 0) / _resampled_medians(np.asarray(now), 1)
    tail = (1 - CONFIDENCE) / comparisons / 2
    low, high = np.quantile(changes, (tail, 1 - tail))
    return float(low), float(high)


def _resampled_medians(values: Floats, seed: int) -> Floats:
    random, shape = np.random.default_rng(seed), (_CHUNK, len(values))  # in pieces, which take less memory
    drawn = (values[random.integers(len(values), size=shape)] for _ in range(_RESAMPLES // _CHUNK))
    return np.concatenate([np.median(resamples, axis=1) for resamples in drawn])


def rounds_needed(comparisons: int) -> int:
    """Return the rounds below which even the smallest and the largest ratio are no interval of that confidence."""
    return math.ceil(1 + math.log2(comparisons / (1 - CONFIDENCE)))


def verdict(interval: Interval, rounds: int, comparisons: int) -> Verdict:
    """Return what an interval of a ratio of speeds allows to say, if 2% count as the same."""
    low, high = interval
    slower, faster = 1 / (1 + SAME_WITHIN), 1 + SAME_WITHIN
    if rounds < rounds_needed(comparisons):
        return "AMBIGUOUS"
    if low > faster:
        return "FASTER"
    if high < slower:
        return "SLOWER"
    return "SAME" if slower <= low and high <= faster else "AMBIGUOUS"


def outliers(values: Floats) -> int:
    """Count the values that lie further from the median than any jitter explains; they are never dropped."""
    distance = np.abs(values - np.median(values))
    return int((distance > _OUTLYING * np.median(distance)).sum())
