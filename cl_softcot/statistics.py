"""What several runs say: aggregates with intervals, and whether one method is better than another.

Three kinds of questions, each with its own functions:

* **How good is a method over its runs?** :func:`aggregate` (interquartile mean or mean),
  :func:`performance_profile` and :func:`probability_of_improvement` resample whole runs inside strata, as rliable does
  (Agarwal et al. 2021, arXiv 2108.13264). rliable itself is not used: its last release pins a version of `arch` that does not
  import beside pandas 3. The tests hold its values.
* **Do two methods differ?** :func:`paired_difference` on scores of the same questions in runs of the same seed and order, with
  standard errors clustered by question and by run (Miller 2024, arXiv 2411.00640; Cameron, Gelbach & Miller 2011,
  doi 10.1198/jbes.2010.07136), in closed form or by a cluster bootstrap.
* **Which of many differences are shown?** :func:`compare`: all pairs, p-values corrected (:func:`holm`,
  :func:`benjamini_hochberg`), a verdict in words, and the smallest difference that these data could have shown.

With one run a method, only the spread over test questions is known, not that over training seeds: results say so in ``covers``
and ``note``. With two or three runs intervals are Student's, which makes them as wide as so little data deserve. Intervals of
one accuracy of one run are in :mod:`cl_softcot.metrics.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cl_softcot.errors import UserError
from cl_softcot.metrics.intervals import all_equal_margin, interquartile_means
from cl_softcot.reports import kept

Values = NDArray[np.float64]
Runs = Mapping[Hashable, ArrayLike]
"""Stratum -> scores of its runs: [runs], or [runs, tasks] where the tasks of a run belong together."""
Statistic = Literal["iqm", "mean"] | Callable[[Values], Values]

_STATISTICS: dict[str, Callable[[Values], Values]] = {
    "iqm": interquartile_means,
    "mean": lambda rows: rows.mean(axis=1),
}
_DRAWN = 20_000_000  # numbers drawn at a time
_NOTHING = 1e-12  # below this a difference is rounding
_GRID = (np.arange(500) + 0.5) / 500  # quantiles that an average over a distribution is taken at
_FOR_FREEDOM = 200  # resamples of each stratum for its share in the variance


# ------------------------------------------------------------------------------------------------ one method, several runs


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
    unknown = [None] * len(taus)
    ends = [unknown if end is None else end.tolist() for end in (low, high)]
    return Profile(taus.tolist(), value.tolist(), *ends, sum(map(len, tables)), note)


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
    sizes = _chunks(n_boot, sum(t.size for t in tables) * value_M.size)
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
    return _satterthwaite(parts, [len(t) - 1 for t in tables])


def _repeated(table: Values) -> Values:
    return np.broadcast_to(table.ravel(), (_FOR_FREEDOM, table.size))


def _resampled(tables: Sequence[Values], size: int, rng: np.random.Generator) -> Values:
    drawn = [table[rng.integers(len(table), size=(size, len(table)))].reshape(size, -1) for table in tables]
    return np.concatenate(drawn, axis=1)


def _float(ends: Values | None, i: int) -> float | None:
    return None if ends is None else float(ends[i])


# --------------------------------------------------------------------------------------------------- two methods, paired


class Unit(NamedTuple):
    """What a score is of. Two methods are compared on the units that both have.

    Attributes:
        run: seed and order: what a training run is repeated over.
        task: tasks weigh equally in every mean.
        question: the test question; None where the score is of the whole run (an accuracy, BWT, ...).
        cluster: what questions that belong together share (a passage, a template); None: each question by itself.
    """

    run: Hashable
    task: str
    question: str | None = None
    cluster: Hashable = None


Scores = Mapping[Unit, float]


def scores_of_run(folder: str | Path, row: int | None = None) -> dict[Unit, float]:
    """Outcomes (1 right, 0 not) of every test question of a finished run's stream, after an experience (None: the last).

    Raises:
        UserError: if the folder has no ``result.json``, or the row's predictions are missing.
    """
    folder = Path(folder)
    result = kept.result(folder)
    if result is None:
        raise UserError("this run is not finished: it has no result.json", where=str(folder), fix="start the experiment again")
    row = len(result["accuracy"]["matrix"]) - 1 if row is None else row
    run, answers = (result["seed"], result["order"]), kept.answers(folder, row)
    if answers is None:
        raise UserError("nothing was kept of this row's answers", where=str(folder / "predictions" / f"row_{row}.jsonl"))
    return {
        Unit(run, p["task"], p["id"], p["meta"].get("cluster")): float(p["outcome"] == "right")
        for p in answers
        if p["set"] == "task"
    }


@dataclass(frozen=True)
class Spread:
    """What a difference's uncertainty is made of: variances of the mean with their degrees of freedom.

    Attributes:
        questions: as clusters of questions show it.
        runs: as whole runs show it; 0 with one run.
        units: the part that both of these count.
    """

    questions: float
    df_questions: float
    runs: float
    df_runs: float
    units: float

    @property
    def se(self) -> float:
        return math.sqrt(self.questions + max(self.runs - self.units, 0.0))

    def p(self, difference: float) -> float:
        """Two-sided probability of so large a difference where there is none.

        With two or three runs their variance is hardly known: a small one may be luck. So it is not plugged in but averaged
        over its fiducial distribution, runs·df/χ² (a generalised p-value: Weerahandi 1993, Hannig et al. 2006). Without
        questions, or with one run, this is Student's test.
        """
        from scipy.special import stdtr

        if not self.runs:
            return self._student(difference, self.questions, self.df_questions)
        if not self.questions:
            return self._student(difference, self.runs, self.df_runs)
        likely_runs = self.runs * self.df_runs / _chi2_quantiles(self.df_runs)
        se = np.sqrt(self.questions + np.maximum(likely_runs - self.units, 0.0))
        return float(2 * stdtr(self.df_questions, -abs(difference) / se).mean())

    @staticmethod
    def _student(difference: float, variance: float, df: float) -> float:
        from scipy.special import stdtr

        if not variance:
            return 1.0 if difference == 0 else 0.0
        return float(2 * stdtr(df, -abs(difference) / math.sqrt(variance)))

    def half_width(self, alpha: float) -> float:
        """The difference whose p is ``alpha``: half of the interval of level 1 - alpha."""
        from scipy.optimize import brentq

        if not self.se and not self.runs:
            return 0.0
        top = max(self.se, math.sqrt(self.runs))
        while self.p(top) > alpha:
            top *= 4
        return float(brentq(lambda d: self.p(d) - alpha, 0.0, top, xtol=1e-5 * self.se, rtol=1e-7))


@cache
def _chi2_quantiles(df: float) -> Values:
    from scipy.stats import chi2

    return chi2.ppf(_GRID, df)


@dataclass(frozen=True)
class PairedDifference:
    """mean(A) - mean(B), tasks weighing equally, with what is known about its uncertainty.

    Attributes:
        se: standard error; None where nothing is known about it.
        low, high: interval of the chosen level, without correction for other comparisons.
        p: two-sided, of no difference.
        n_runs, n_questions: runs and questions (clusters of them) that both have.
        covers: what would be drawn anew: "questions", "runs", "runs and questions", or "nothing".
        note: what the interval does not tell.
        spread: what the standard error is made of.
    """

    value: float
    se: float | None
    low: float | None
    high: float | None
    p: float | None
    n_runs: int
    n_questions: int
    covers: str
    note: str
    spread: Spread | None


def paired_difference(
    a: Scores,
    b: Scores,
    *,
    how: Literal["closed", "bootstrap"] = "closed",
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Difference of two methods' mean scores on the same units, standard error clustered.

    The difference of unit u of task t counts with w = 1/(T·n_t). With the residuals e of the task's mean, clusters g and
    S_g = Σ_{u in g} w_u e_u, the variance is G/(G-1) Σ S_g². Clusters are

    * the questions (each task for itself), with one run: what would other test questions give;
    * the runs, for scores of whole runs;
    * both, with several runs and questions: V = V_questions + max(V_runs - V_units, 0) (Cameron, Gelbach & Miller 2011); see
      :meth:`Spread.p` for what few runs make of it. Where runs hardly differ this errs on the wide side.

    ``how="bootstrap"`` takes each of these variances from resampled clusters in place of the closed form. In a task where all
    differences are equal neither shows anything: it brings the margin of
    :func:`cl_softcot.metrics.intervals.all_equal_margin`.

    Scores are fractions between 0 and 1 if they are of questions. Runs that only one side has are left out, and ``note`` says so.

    Raises:
        UserError: if the two have no run in common, or other questions in a common one.
    """
    table, left_out = _Paired.of(a, b)
    value, runs, questions = table.value, table.n_runs, table.n_questions
    notes = [f"{left_out} runs that only one of the two has are left out"] if left_out else []
    spread, covers = table.spread(how, n_boot, seed)
    if runs == 1:
        notes.append("one run each: how far the difference would move with other training seeds is not known")
    elif runs < 4:
        notes.append(f"{runs} runs each: the interval is wide because so few runs say little about the next")
    if table.whole_runs and runs > 1 and spread is None:
        notes.append(
            "every run shows the same difference: p is the sign test's, and how far the next run would be from it is not known"
        )
    note = "; ".join(notes)
    if spread is None:
        return PairedDifference(value, None, None, None, table.sign_test(), runs, questions, covers, note, None)
    half = spread.half_width(1 - level)
    low, high = value - half, value + half
    if not table.whole_runs:
        low, high = max(low, -1.0), min(high, 1.0)
    return PairedDifference(value, spread.se, low, high, spread.p(value), runs, questions, covers, note, spread)


class _Paired:
    """Differences of N units with their weights, and who belongs to which run, task and cluster of questions."""

    @classmethod
    def of(cls, a: Scores, b: Scores) -> tuple[_Paired, int]:
        runs_a, runs_b = {unit.run for unit in a}, {unit.run for unit in b}
        common = runs_a & runs_b
        if not common:
            raise UserError("the two methods have no run in common", fix="compare runs of the same seeds and orders")
        units = [unit for unit in a if unit.run in common]
        theirs = {unit for unit in b if unit.run in common}
        if theirs != set(units):
            one = sorted(map(str, theirs ^ set(units)))[0]
            raise UserError(
                f"the two methods were not measured on the same questions ({len(theirs ^ set(units))} differ, such as {one})",
                fix="compare runs of one experiment, or of experiments with the same `tasks` and `evaluate`",
            )
        return cls(units, np.array([a[u] - b[u] for u in units], dtype=np.float64)), len(runs_a ^ runs_b)

    def __init__(self, units: Sequence[Unit], differences_N: Values):
        if not np.isfinite(differences_N).all():
            raise ValueError("a score is missing")
        self.d = differences_N
        self.whole_runs = units[0].question is None
        self.run = _codes(u.run for u in units)
        self.task = _codes(u.task for u in units)
        self.cluster = _codes((u.task, u.question if u.cluster is None else ("cluster", u.cluster)) for u in units)
        self.unit = _codes(zip(self.cluster.tolist(), self.run.tolist(), strict=True))
        self.n_runs, self.n_tasks, self.n_questions = (int(c.max()) + 1 for c in (self.run, self.task, self.cluster))
        self.n_questions = 0 if self.whole_runs else self.n_questions
        self.n_of_task = np.bincount(self.task)
        self.mean_of_task = np.bincount(self.task, self.d) / self.n_of_task
        self.value = float(self.mean_of_task.mean())
        self.weight = 1 / (self.n_tasks * self.n_of_task[self.task])
        self.influence = self.weight * (self.d - self.mean_of_task[self.task])

    def spread(self, how: str, n_boot: int, seed: int) -> tuple[Spread | None, str]:
        """What is known about the uncertainty (None: nothing), and what would be drawn anew."""
        if self.whole_runs and self.n_runs < 2:
            return None, "nothing"
        runs, df_runs = self._variance_by_run()
        if self.whole_runs and runs <= _NOTHING * max(self.value**2, _NOTHING):
            return None, "runs"
        questions, df_questions = self._variance_by_question(self.cluster)
        units, _ = self._variance_by_question(self.unit)
        if how == "bootstrap":
            groups = (self.run, False), (self.cluster, True), (self.unit, True)
            runs, questions, units = (self._resampled_variance(*group, n_boot, seed) for group in groups)
        if self.whole_runs:
            return Spread(0.0, df_questions, runs, df_runs, 0.0), "runs"
        questions += self._all_equal_variance()
        if self.n_runs < 2:
            return Spread(questions, df_questions, 0.0, df_runs, 0.0), "questions"
        return Spread(questions, df_questions, runs, df_runs, units), "runs and questions"

    def sign_test(self) -> float | None:
        """Two-sided p of runs that all show the same difference, which Student's test would call certain from two runs on;
        None with one run.
        """
        if not self.whole_runs or self.n_runs < 2:
            return None
        return 1.0 if abs(self.value) <= _NOTHING else 2.0 ** (1 - self.n_runs)

    def _variance_by_run(self) -> tuple[float, float]:
        sums = np.bincount(self.run, self.influence)
        n = sums.size
        return (float(n / (n - 1) * (sums**2).sum()) if n > 1 else 0.0), float(max(n - 1, 1))

    def _variance_by_question(self, clusters: NDArray[np.int64]) -> tuple[float, float]:
        """Clusters lie inside tasks, and each task has its own G/(G-1); degrees of freedom by Satterthwaite."""
        sums = np.bincount(clusters, self.influence)
        task = np.zeros(sums.size, dtype=np.int64)
        task[clusters] = self.task
        n_T = np.bincount(task, minlength=self.n_tasks)
        variance_T = np.bincount(task, sums**2, minlength=self.n_tasks) * n_T / np.maximum(n_T - 1, 1)
        return float(variance_T.sum()), _satterthwaite(variance_T.tolist(), np.maximum(n_T - 1, 1).tolist())

    def _all_equal_variance(self) -> float:
        """Of tasks whose differences are all the same: the square of a standard error that gives Wilson's margin."""
        z, total = NormalDist().inv_cdf(0.975), 0.0
        for t in range(self.n_tasks):
            mine = self.task == t
            if np.ptp(self.d[mine]) == 0:
                n = np.unique(self.cluster[mine]).size
                total += (all_equal_margin(n) * (1 + abs(self.d[mine][0])) / self.n_tasks / z) ** 2
        return total

    def _resampled_variance(self, clusters: NDArray[np.int64], inside_tasks: bool, n_boot: int, seed: int) -> float:
        """Variance over resampled clusters; a draw of n-1 of n has the unbiased one (Rao & Wu 1988)."""
        rng, n = np.random.default_rng(seed), int(clusters.max()) + 1
        strata = [np.unique(clusters[self.task == t]) for t in range(self.n_tasks)] if inside_tasks else [np.arange(n)]
        values = []
        for size in _chunks(n_boot, self.d.size):
            count_BG = np.zeros((size, n))
            for members in strata:
                draws, m = max(members.size - 1, 1), members.size
                count_BG[:, members] = rng.multinomial(draws, np.full(m, 1 / m), size=size)
            values.append(self._values(count_BG[:, clusters]))
        return float(np.concatenate(values).var())

    def _values(self, count_BN: Values) -> Values:
        """The difference with each unit counted so many times; a task that was not drawn keeps its mean."""
        total_B = np.zeros(len(count_BN))
        for t in range(self.n_tasks):
            count_BU = count_BN[:, self.task == t]
            drawn_B = count_BU.sum(axis=1)
            mean_B = count_BU @ self.d[self.task == t] / np.maximum(drawn_B, 1)
            total_B += np.where(drawn_B > 0, mean_B, self.mean_of_task[t]) / self.n_tasks
        return total_B


def _satterthwaite(parts: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances."""
    spread = sum(v**2 / df for v, df in zip(parts, dfs, strict=True))
    return max(sum(parts) ** 2 / spread, 1.0) if spread else float(min(dfs))


def _chunks(n_boot: int, numbers: int) -> list[int]:
    """Sizes of the parts that resamples are drawn in, so that memory stays bounded."""
    rows = max(1, _DRAWN // numbers)
    return [min(rows, n_boot - done) for done in range(0, n_boot, rows)]


def _codes(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Equal keys get equal numbers, from 0 in the order of their first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _t(level: float, df: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, df))


# ------------------------------------------------------------------------------------------------------ many comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): max over the smaller ones of (m - rank) p. They bound the chance of *any* false claim."""
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Benjamini & Hochberg (1995). They bound the expected *share* of false claims among all claims."""
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.minimum.accumulate((p[order] * p.size / np.arange(1, p.size + 1))[::-1])[::-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def _p_values(p_values: Sequence[float]) -> Values:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values lie between 0 and 1")
    return p


_CORRECTIONS = {"holm": holm, "bh": benjamini_hochberg, "none": lambda p: list(p)}


@dataclass(frozen=True)
class Comparison:
    """One line of :func:`compare`.

    Attributes:
        difference: A - B, its standard error, interval and p-value, not corrected.
        p_adjusted: corrected for all comparisons of the call; None where there is no p-value.
        verdict: "<A> better", "<B> better" or "no difference shown".
        smallest_shown: the smallest difference, either way, that would have been shown with this spread and number of runs and
            questions, if all comparisons count (Bonferroni's bound). Differences below it may well exist.
        smallest_with_power_80: the true difference that data like these show four times out of five.
    """

    a: str
    b: str
    difference: PairedDifference
    p_adjusted: float | None
    verdict: str
    smallest_shown: float | None
    smallest_with_power_80: float | None

    def to_data(self) -> dict[str, Any]:
        """As plain data for a file."""
        return asdict(self)


def compare(
    methods: Mapping[str, Scores],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    correction: Literal["holm", "bh", "none"] = "holm",
    higher_is_better: bool = True,
    level: float = 0.95,
    how: Literal["closed", "bootstrap"] = "closed",
    seed: int = 0,
) -> list[Comparison]:
    """Paired differences between methods (all pairs, unless given), with corrected p-values and a verdict each.

    A verdict follows the corrected p-value at 1 - ``level``; the intervals are each by itself, so one may leave zero out where
    no difference is shown. See :func:`paired_difference` for what is compared and what an interval covers.

    Raises:
        UserError: as :func:`paired_difference`; or if a pair names an unknown method.
    """
    pairs = list(combinations(methods, 2)) if pairs is None else list(pairs)
    unknown = [name for pair in pairs for name in pair if name not in methods]
    if unknown:
        raise UserError(f"there is no method {unknown[0]!r} to compare", fix=f"known: {', '.join(methods)}")
    differences = [paired_difference(methods[a], methods[b], how=how, seed=seed, level=level) for a, b in pairs]
    tested = [d.p for d in differences if d.p is not None]
    adjusted = iter(_CORRECTIONS[correction](tested))
    alpha = (1 - level) / (1 if correction == "none" else max(len(tested), 1))
    lines = []
    for (a, b), difference in zip(pairs, differences, strict=True):
        p = None if difference.p is None else next(adjusted)
        verdict = "no difference shown"
        if p is not None and p < 1 - level:
            verdict = f"{a if (difference.value > 0) == higher_is_better else b} better"
        lines.append(Comparison(a, b, difference, p, verdict, *_smallest(difference, alpha)))
    return lines


def _smallest(difference: PairedDifference, alpha: float) -> tuple[float | None, float | None]:
    if difference.spread is None or difference.se is None:
        return None, None
    critical = difference.spread.half_width(alpha)
    return critical, critical + NormalDist().inv_cdf(0.8) * difference.se
