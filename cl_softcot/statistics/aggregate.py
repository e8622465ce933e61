"""One method over several runs: interquartile means, profiles, probabilities of improvement."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cl_softcot.metrics.intervals import interquartile_means
from cl_softcot.statistics.resampling import Values, chunks, satterthwaite

Runs = Mapping[Hashable, ArrayLike]
"""Stratum -> scores of its runs: [runs], or [runs, tasks] where the tasks of a run belong together."""
Statistic = Literal["iqm", "mean"] | Callable[[Values], Values]

_STATISTICS: dict[str, Callable[[Values], Values]] = {
    "iqm": interquartile_means,
    "mean": lambda rows: rows.mean(axis=1),
}
_FOR_FREEDOM = 200  # resamples of each stratum for its share in the variance


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (None where too few runs leave it unknown), in the unit of the scores.

    Attributes:
        n: runs behind it.
        note: what the interval does not tell; empty where there is nothing to add.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class Profile:
    """Share of the scores above each threshold, with a band for each threshold by itself (fractions)."""

    thresholds: list[float]
    share: list[float]
    low: list[float | None]
    high: list[float | None]
    n: int
    note: str = ""


def aggregate(
    scores: Runs,
    statistic: Statistic = "iqm",
    *,
    interval: Literal["t", "percentile"] = "t",
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """A statistic over all scores, with its stratified bootstrap interval: runs are resampled inside their stratum.

    Args:
        scores: runs by stratum. Tasks as strata, [runs] each, is rliable's way, which takes the tasks of a run for independent;
            orders as strata, [runs, tasks] each, keeps the tasks of a run together. All scores weigh equally.
        statistic: "iqm" (the mean of the middle half), "mean", or a map of [n_boot, scores] to [n_boot].
        interval: "t": value ± Student's t times the bootstrap's standard error, corrected for its shrinking (Hesterberg 2015,
            arXiv 1411.5279), degrees of freedom by Satterthwaite; holds its level from two runs on for smooth statistics.
            "percentile": rliable's, too narrow below about ten runs.

    Raises:
        ValueError: if there are no scores, or one is missing.
    """
    tables = _tables(scores)
    measure = _STATISTICS[statistic] if isinstance(statistic, str) else statistic
    value = float(measure(np.concatenate([t.ravel() for t in tables])[None])[0])
    low, high, note = _around(np.array([value]), tables, lambda rows: measure(rows)[:, None], interval, n_boot, seed, level)
    return Estimate(value, _float(low, 0), _float(high, 0), sum(map(len, tables)), note)


def performance_profile(
    scores: Runs, thresholds: Sequence[float], *, n_boot: int = 2000, seed: int = 0, level: float = 0.95
) -> Profile:
    """Share of all scores that are above each threshold (rliable's score distribution), with a pointwise percentile band.

    Higher is better. Where no run, or every run, is above a threshold the band has no width: resampling cannot tell more.
    """
    tables, taus = _tables(scores), np.asarray(thresholds, dtype=np.float64)

    def share(rows: Values) -> Values:
        return (rows[:, :, None] > taus).mean(axis=1)

    value = share(np.concatenate([t.ravel() for t in tables])[None])[0]
    low, high, note = _around(value, tables, share, "percentile", n_boot, seed, level)
    unknown: list[float | None] = [None] * len(taus)
    lows, highs = (unknown if end is None else end.tolist() for end in (low, high))
    return Profile(taus.tolist(), value.tolist(), lows, highs, sum(map(len, tables)), note)


def probability_of_improvement(a: Runs, b: Runs, *, n_boot: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """P(a run of A scores above a run of B), ties half, averaged over strata (tasks): Agarwal et al. 2021, section 4.

    Runs of both are resampled inside each stratum, apart from each other; percentile interval. Above .5 speaks for A.
    """
    if set(a) != set(b):
        raise ValueError(f"the two sides hold different strata: {sorted(map(str, set(a) ^ set(b)))}")
    pairs = [(_table(a[s]).ravel(), _table(b[s]).ravel()) for s in a]
    rng, wins = np.random.default_rng(seed), []
    for left, right in pairs:
        above_AB = np.sign(left[:, None] - right[None]) / 2 + 0.5
        drawn_a = rng.multinomial(left.size, np.full(left.size, 1 / left.size), size=n_boot) / left.size
        drawn_b = rng.multinomial(right.size, np.full(right.size, 1 / right.size), size=n_boot) / right.size
        wins.append((above_AB.mean(), np.einsum("ba,ac,bc->b", drawn_a, above_AB, drawn_b)))
    value, n = float(np.mean([mean for mean, _ in wins])), min(min(left.size, right.size) for left, right in pairs)
    if n < 2:
        return Estimate(value, None, None, n, _ONE_RUN)
    drawn = np.mean([draws for _, draws in wins], axis=0).clip(0.0, 1.0)  # rounding
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, _few(n))


_ONE_RUN = "one run: how far it would move with another seed is not known"


def _few(n: int) -> str:
    return f"{n} runs a stratum: a percentile interval is too narrow" if n < 10 else ""


def _table(values: ArrayLike) -> Values:
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores of a stratum are [runs] or [runs, tasks], none missing; got shape {table.shape}")
    return table


def _tables(scores: Runs) -> list[Values]:
    if not scores:
        raise ValueError("there are no scores to aggregate")
    return [_table(values) for values in scores.values()]


def _around(
    value_M: Values,
    tables: Sequence[Values],
    measure: Callable[[Values], Values],
    interval: str,
    n_boot: int,
    seed: int,
    level: float,
) -> tuple[Values | None, Values | None, str]:
    """Ends of the intervals of M numbers, and what to add; ``measure`` maps [n, scores] to [n, M]."""
    fewest = min(map(len, tables))
    if fewest < 2:
        return None, None, _ONE_RUN if len(tables) == 1 else "a stratum of one run: nothing to resample inside it"
    rng = np.random.default_rng(seed)
    sizes = chunks(n_boot, sum(t.size for t in tables) * value_M.size)
    drawn_BM = np.concatenate([measure(_resampled(tables, size, rng)) for size in sizes])
    if interval == "percentile":
        low, high = np.quantile(drawn_BM, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high, _few(fewest)
    half = _t(level, _freedom(tables, measure, rng)) * drawn_BM.std(axis=0) * math.sqrt(fewest / (fewest - 1))
    return value_M - half, value_M + half, ""


def _freedom(tables: Sequence[Values], measure: Callable[[Values], Values], rng: np.random.Generator) -> float:
    """Degrees of freedom by Satterthwaite, from what each stratum adds to the variance: an interquartile mean, for one, hangs on
    the strata in the middle only."""
    parts = []
    for s in range(len(tables)):
        drawn = [_resampled([t], _FOR_FREEDOM, rng) if s == i else _repeated(t) for i, t in enumerate(tables)]
        parts.append(float(measure(np.concatenate(drawn, axis=1)).var()))
    return satterthwaite(parts, [len(t) - 1 for t in tables])


def _repeated(table: Values) -> Values:
    return np.broadcast_to(table.ravel(), (_FOR_FREEDOM, table.size))


def _resampled(tables: Sequence[Values], size: int, rng: np.random.Generator) -> Values:
    drawn = [table[rng.integers(len(table), size=(size, len(table)))].reshape(size, -1) for table in tables]
    return np.concatenate(drawn, axis=1)


def _float(ends: Values | None, i: int) -> float | None:
    return None if ends is None else float(ends[i])


def _t(level: float, df: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, df))
