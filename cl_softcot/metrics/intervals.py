"""How sure a number is: intervals for accuracies, for their differences and for means over tasks.

Two things vary:

* **the test examples**: :func:`bootstrap_interval`, :func:`paired_difference`, :func:`stratified_interval`,
  :func:`stratified_difference` and :func:`summary_intervals` say how far a number would move on other test
  examples, with the trained model as it is;
* **training runs** (seeds x task orders): :func:`cl_softcot.statistics.aggregate.aggregate` says how far it would move with
  other seeds; here is only its statistic.

The bootstrap is the percentile one (Efron & Tibshirani 1993, chapter 13). A resample with replacement of n
values, of which few are distinct, is a draw of their counts from a multinomial distribution: exactly the same
thing as drawing n indices, and a thousand resamples take less than a millisecond.

Where all outcomes are equal, resampling can only repeat them and would claim certainty. Those cases use
Wilson's score interval (1927) instead: with 0 of n seen, an unseen share of up to u = z²/(n+z²) is compatible
with the data; and it may lie anywhere in the range of possible values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cl_softcot.metrics import Meaning

Values = NDArray[np.float64]
Strata = Mapping[str, ArrayLike] | Sequence[ArrayLike]

_FEW = 64  # distinct values up to which counts are drawn instead of indices
_BLOCK = 4_000_000  # indices drawn at a time otherwise


class Interval(NamedTuple):
    """Lower and upper end, in the unit of the number that it belongs to."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference a - b of two accuracies (fractions) with its interval."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out: only then do the data show a difference."""
        return self.low > 0 or self.high < 0


def bootstrap_interval(outcomes: ArrayLike, n_boot: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of ``outcomes`` (0/1 or scores between 0 and 1), resampling
    examples.

    Wilson's interval where all outcomes are 0 or all are 1. Deterministic in ``seed``. ValueError when there
    is nothing to measure: no outcomes is not an accuracy of 0.
    """
    _, interval = _mean_of_strata([_checked(outcomes, 0.0, 1.0)], (0.0, 1.0), n_boot, seed, level)
    return interval


def paired_difference(a: ArrayLike, b: ArrayLike, n_boot: int = 1000, seed: int = 0, level: float = 0.95) -> Difference:
    """mean(a) - mean(b) for outcomes of the same examples, resampling the examples (pairs stay together).

    Far tighter than comparing two intervals, since the examples' difficulty cancels (Miller 2024, arXiv
    2411.00640).
    """
    return stratified_difference([a], [b], n_boot, seed, level)


def stratified_interval(outcomes: Strata, n_boot: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Interval of the mean over tasks of each task's mean outcome, examples resampled inside each task.

    ``outcomes``: one list of outcomes (0..1) a task, each with its own n; tasks weigh equally (ACC, learning
    accuracy, retention). Tasks in which all outcomes are equal bring their Wilson interval, joined to the
    bootstrap of the others by the distances from the point estimate, root of summed squares (MOVER, Zou &
    Donner 2008).
    """
    strata = [_checked(values, 0.0, 1.0) for values in _as_list(outcomes)]
    _, interval = _mean_of_strata(strata, (0.0, 1.0), n_boot, seed, level)
    return interval


def stratified_mean(
    values: Strata,
    support: tuple[float, float] = (-np.inf, np.inf),
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """Mean over tasks of each task's mean, and its interval, of numbers that lie in ``support``, such as differences of
    log-probabilities.

    As in :func:`stratified_interval`. Where all numbers of a task are equal and the support has no end, neither has the
    interval: nothing bounds what was not seen.
    """
    return _mean_of_strata([_checked(v, *support) for v in _as_list(values)], support, n_boot, seed, level)


def stratified_difference(a: Strata, b: Strata, n_boot: int = 1000, seed: int = 0, level: float = 0.95) -> Difference:
    """Mean over tasks of mean(a) - mean(b), paired inside each task as in :func:`paired_difference`.

    BWT, FWT and every change of a mean accuracy over the same tasks are differences of this kind.
    """
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ValueError("give both sides of a difference in the same form")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            raise ValueError(f"the two sides hold different tasks: {sorted(set(a) ^ set(b))}")
        b = [b[task] for task in a]
    left, right = _as_list(a), _as_list(b)
    if len(left) != len(right):
        raise ValueError(f"the two sides hold {len(left)} and {len(right)} tasks")
    differences = []
    for one, other in zip(left, right, strict=True):
        one, other = _checked(one, 0.0, 1.0), _checked(other, 0.0, 1.0)
        if one.shape != other.shape:
            raise ValueError(f"paired outcomes are of the same examples; got {one.size} and {other.size}")
        differences.append(one - other)
    value, interval = _mean_of_strata(differences, (-1.0, 1.0), n_boot, seed, level)
    return Difference(value, *interval)


def summary_intervals(
    outcomes: Sequence[Sequence[ArrayLike]], n_boot: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval | None]:
    """Intervals for the numbers of :func:`cl_softcot.metrics.matrix.summary` that are means of (paired)
    outcomes.

    ``outcomes[i][j]`` [n_j]: outcomes on task j's test examples after experience i (row 0 = the base), the
    same examples in every row. Keys: acc, learning_accuracy, own_task_change, final_change, bwt/gem, fwt/gem;
    None where undefined (T = 1). Forgetting that takes a maximum over rows has no interval here: resampling a
    maximum of noisy numbers is biased.
    """
    T = len(outcomes[0]) if len(outcomes) else 0
    if T == 0 or len(outcomes) != T + 1 or any(len(row) != T for row in outcomes):
        raise ValueError("outcomes of T tasks have T+1 rows (row 0 = the base) and T columns")
    base, last, options = list(outcomes[0]), list(outcomes[T]), (n_boot, seed, level)
    own = [outcomes[j + 1][j] for j in range(T)]
    before = [outcomes[j][j] for j in range(T)]

    def change(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> Interval | None:
        return Interval(*stratified_difference(a, b, *options)[1:]) if a else None

    return {
        "acc": stratified_interval(last, *options),
        "learning_accuracy": stratified_interval(own, *options),
        "own_task_change": change(own, base),
        "final_change": change(last, base),
        "bwt/gem": change(last[:-1], own[:-1]),
        "fwt/gem": change(before[1:], base[1:]),
    }


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) for a share of ``successes`` among ``n``."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n} is not a share")
    z2 = _z(level) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(max(low, 0.0), min(high, 1.0))


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all scores: a quarter of them (rounded down) is dropped at each end.

    Agarwal et al. 2021 (rliable, arXiv 2108.13264): nearly as robust to an outlying run as the median, and it
    uses more data.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    if ordered.size == 0 or np.isnan(ordered).any():
        raise ValueError("an interquartile mean needs scores, none of them missing")
    return float(_middle_half(ordered[None])[0])


def interquartile_means(rows: Values) -> Values:
    """:func:`interquartile_mean` of each row [n, scores] -> [n]."""
    return _middle_half(np.sort(rows, axis=1))


def all_equal_margin(n: int, level: float = 0.95) -> float:
    """z²/(n+z²): the share of unseen, different outcomes that is compatible with n equal ones (Wilson 1927)."""
    z2 = _z(level) ** 2
    return z2 / (n + z2)


def _middle_half(sorted_rows: Values) -> Values:
    cut = sorted_rows.shape[1] // 4
    return sorted_rows[:, cut : sorted_rows.shape[1] - cut].mean(axis=1)


def _as_list(strata: Strata) -> list[ArrayLike]:
    values = list(strata.values()) if isinstance(strata, Mapping) else list(strata)
    if not values:
        raise ValueError("there is no task to take the mean over")
    return values


def _checked(outcomes: ArrayLike, low: float, high: float) -> Values:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("an accuracy needs at least one outcome, in a flat list")
    if np.isnan(values).any() or values.min() < low or values.max() > high:
        raise ValueError(f"outcomes lie between {low:g} and {high:g}, and none is missing")
    return values


def _mean_of_strata(
    strata: Sequence[Values], support: tuple[float, float], n_boot: int, seed: int, level: float
) -> tuple[float, Interval]:
    """Mean over strata of their means, and its interval; ``support`` is the range of possible values."""
    if n_boot < 1 or not 0 < level < 1:
        raise ValueError(f"a bootstrap needs n_boot >= 1 and a level between 0 and 1, got {n_boot} and {level}")
    rng = np.random.default_rng(seed)
    value = float(np.mean([values.mean() for values in strata]))
    resampled = np.zeros(n_boot)  # distances from the value
    below, above = 0.0, 0.0  # squared distances from the value to the ends
    for values in strata:
        if values.min() < values.max():
            resampled += (_resampled_means(values, n_boot, rng) - values.mean()) / len(strata)
        else:
            unseen = all_equal_margin(values.size, level)
            below += (unseen * (values[0] - support[0]) / len(strata)) ** 2
            above += (unseen * (support[1] - values[0]) / len(strata)) ** 2
    low, high = _percentiles(resampled, level)
    below += min(low, 0.0) ** 2  # with a handful of resamples an end may lie on the wrong side of the value
    above += max(high, 0.0) ** 2
    low, high = max(value - below**0.5, support[0]), min(value + above**0.5, support[1])
    return value, Interval(float(low), float(high))


def _resampled_means(values: Values, n_boot: int, rng: np.random.Generator) -> Values:
    """Means of ``n_boot`` resamples with replacement, each of all n values."""
    n = values.size
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= _FEW:
        return rng.multinomial(n, counts / n, size=n_boot) @ distinct / n
    rows = max(1, _BLOCK // n)
    sizes = [min(rows, n_boot - done) for done in range(0, n_boot, rows)]
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


def _percentiles(resampled: Values, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


CATALOGUE: dict[str, Meaning] = {
    "interquartile_mean": Meaning(
        "mean of the middle half of runs x tasks",
        "Agarwal et al. 2021 (rliable, arXiv 2108.13264)",
        "the unit of the scores",
        "that of the scores",
    ),
}
