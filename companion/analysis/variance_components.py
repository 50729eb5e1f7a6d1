"""How much two groups of runs differ in spread: ratio of standard deviations, nested variance components, power.

Normal theory (F, t, chi-squared) unless said otherwise; arrays may carry leading dimensions, runs come last.
Sources: Searle, Casella and McCulloch 1992 (nested intervals), Schuirmann 1987 (two one-sided tests).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from companion.errors import CompanionError

Array = NDArray[np.float64]


def _runs(values: ArrayLike, axes: int = 1) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < axes or min(array.shape[-axes:]) < 2:
        raise CompanionError(f"a spread needs at least two runs, found shape {list(array.shape)}")
    return array


def _variance(array: Array) -> Array:
    # The mean of equal numbers may be rounded; equal runs have no variance all the same
    return np.where(np.ptp(array, axis=-1) > 0, array.var(-1, ddof=1), 0.0)


class Ratio(NamedTuple):
    """Ratio of standard deviations with its 95% interval, and the two-sided p of the F test for equal variances."""

    value: Array
    low: Array
    high: Array
    p: Array


def sd_ratio(fixed: ArrayLike, free: ArrayLike, level: float = 0.95) -> Ratio:
    """Return sd(fixed) / sd(free) of `[..., runs]` with the exact normal-theory interval.

    No spread in `fixed` gives 0 with the interval [0, 0]. Raises CompanionError below two runs or without any
    spread in `free`.
    """
    a, b = _runs(fixed), _runs(free)
    m, n = a.shape[-1] - 1, b.shape[-1] - 1
    top, bottom = _variance(a), _variance(b)
    if not np.all(bottom > 0):
        raise CompanionError("the free runs have no spread, so there is nothing to compare with")
    f = top / bottom
    tail = (1 - level) / 2
    low, high = np.sqrt(f / stats.f.ppf(1 - tail, m, n)), np.sqrt(f / stats.f.ppf(tail, m, n))
    p = 2 * np.minimum(stats.f.cdf(f, m, n), stats.f.sf(f, m, n))
    return Ratio(np.sqrt(f), low, high, p)


def bootstrap_ratio(
    fixed: ArrayLike, free: ArrayLike, *, draws: int, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of sd(fixed) / sd(free), each arm `[runs]` resampled alone."""
    a, b = _runs(fixed), _runs(free)
    tops = a[rng.integers(len(a), size=(draws, len(a)))].std(1, ddof=1)
    bottoms = b[rng.integers(len(b), size=(draws, len(b)))].std(1, ddof=1)
    kept = bottoms > 0  # a resample of one run repeated has no spread
    low, high = np.quantile(tops[kept] / bottoms[kept], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def permutation_p(fixed: ArrayLike, free: ArrayLike, *, draws: int, rng: np.random.Generator) -> float:
    """Return the two-sided permutation p of equal spread: runs centred by arm, absolute log of the sd ratio."""
    a, b = _runs(fixed), _runs(free)
    pool = np.concatenate([a - a.mean(), b - b.mean()])

    def statistic(rows: Array) -> Array:
        top, bottom = rows[..., : len(a)].std(-1, ddof=1), rows[..., len(a) :].std(-1, ddof=1)
        with np.errstate(divide="ignore"):
            return np.abs(np.log(top) - np.log(bottom))

    shuffled = rng.permuted(np.broadcast_to(pool, (draws, len(pool))), axis=1)
    return float((1 + (statistic(shuffled) >= statistic(pool) - 1e-12).sum()) / (1 + draws))


def brown_forsythe_p(fixed: ArrayLike, free: ArrayLike) -> float:
    """Return the p of Levene's test about medians (Brown and Forsythe 1974), robust to heavy tails."""
    return float(stats.levene(_runs(fixed), _runs(free), center="median").pvalue)


class Nested(NamedTuple):
    """One-way random effects of runs nested in seeds: variances, share of the execution, and their intervals.

    `share` = within / (within + between); `f` and `p` test whether the seed matters at all.
    """

    within: Array
    between: Array
    share: Array
    low: Array
    high: Array
    f: Array
    p: Array


def nested(values: ArrayLike, level: float = 0.95) -> Nested:
    """Split the variance of `[..., seeds, repeats]` into execution (within a seed) and seed (between seeds).

    The interval of the share is exact under normality, clipped to [0, 1]. No spread within gives a share of 0.
    Raises CompanionError for fewer than two seeds or repeats, or no spread at all.
    """
    y = _runs(values, axes=2)
    seeds, repeats = y.shape[-2:]
    means = y.mean(-1)
    within = _variance(y).mean(-1)
    between_squares = repeats * _variance(means)
    if not np.all(within + between_squares > 0):
        raise CompanionError("no spread at all, so there are no shares of it")
    with np.errstate(divide="ignore"):
        f = np.where(within > 0, between_squares / np.where(within > 0, within, 1.0), np.inf)
    d1, d2, tail = seeds - 1, seeds * (repeats - 1), (1 - level) / 2
    lower, upper = f / stats.f.ppf(1 - tail, d1, d2), f / stats.f.ppf(tail, d1, d2)
    between = np.maximum((between_squares - within) / repeats, 0.0)
    low = np.clip(repeats / (repeats - 1 + upper), 0, 1)
    high = np.clip(repeats / (repeats - 1 + lower), 0, 1)
    return Nested(within, between, within / (within + between), low, high, f, stats.f.sf(f, d1, d2))


def nested_sd_ratio(values: ArrayLike) -> Ratio:
    """Return sd(execution) / sd(a run of a fresh seed), the root of the share in `nested`, with its interval."""
    parts = nested(values)
    return Ratio(np.sqrt(parts.share), np.sqrt(parts.low), np.sqrt(parts.high), parts.p)


def equivalence_p(a: ArrayLike, b: ArrayLike, margin: float) -> float:
    """Return the p of two one-sided Welch tests that the means of two arms differ by less than `margin`."""
    if margin <= 0:
        raise CompanionError(f"an equivalence margin must be positive, not {margin}")
    x, y = _runs(a), _runs(b)
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    gap, error = x.mean() - y.mean(), math.sqrt(u + v)
    if error == 0:
        return 0.0 if abs(gap) < margin else 1.0
    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    return float(max(stats.t.sf((gap + margin) / error, freedom), stats.t.cdf((gap - margin) / error, freedom)))


def power(ratio: float, runs: ArrayLike, against: float = 1.0, level: float = 0.05) -> Array:
    """Return the exact power of the two-sided F test of sd ratio = `against` with `runs` per arm, at true `ratio`."""
    d = np.asarray(runs) - 1
    scale = (against / ratio) ** 2
    lower, upper = stats.f.ppf(level / 2, d, d), stats.f.ppf(1 - level / 2, d, d)
    return stats.f.cdf(scale * lower, d, d) + stats.f.sf(scale * upper, d, d)


def runs_needed(ratio: float, against: float = 1.0, target: float = 0.8) -> int:
    """Return the smallest number of runs per arm with that power; CompanionError where no number will do."""
    if math.isclose(ratio, against):
        raise CompanionError("no number of runs tells a ratio from itself")
    enough = 2
    while power(ratio, enough, against) < target:  # the power grows with the runs: double, then halve the gap
        enough *= 2
        if enough > 1_000_000:
            raise CompanionError("more than a million runs per arm")
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (low, middle) if power(ratio, middle, against) >= target else (middle, enough)
    return enough
