"""Do two methods differ? Scores of the same questions in runs of the same seed and order, with clustered errors."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cl_softcot.errors import UserError
from cl_softcot.metrics.intervals import all_equal_margin
from cl_softcot.statistics.resampling import Values, chunks, satterthwaite

_NOTHING = 1e-12  # below this a difference is rounding
_GRID = (np.arange(500) + 0.5) / 500  # quantiles that an average over a distribution is taken at


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
        return float(variance_T.sum()), satterthwaite(variance_T.tolist(), np.maximum(n_T - 1, 1).tolist())

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
        for size in chunks(n_boot, self.d.size):
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


def _codes(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Equal keys get equal numbers, from 0 in the order of their first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
