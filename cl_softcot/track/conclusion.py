"""The sentences that the numbers of an experiment support, and no more than that.

Three questions are asked of every trained method, as used: is it better on the stream's tasks than the base's
zero-shot CoT, has it lost what it had learned, and has it lost what the base could do? A difference is claimed
only if its interval leaves zero out; otherwise the sentence says that none was shown. Where more than a third of
the answers on one of its sides are unanswered, none is claimed: the sentence says so instead.

The differences are paired: the same test examples are answered before and after, and where the predictions are
on the disk their outcomes are matched one by one (Miller, arXiv 2411.00640, section 4.2). Forgetting is asked
as mean_j R[j,j] - R[T,j] (that is -BWT of Lopez-Paz and Ranzato 2017), not as Chaudhry's maximum over rows,
which noise alone pushes above zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from cl_softcot.results import kept
from cl_softcot.results.reading import by_method
from cl_softcot.results.record import RunRecord
from cl_softcot.results.unanswered import Cell, Unanswered, of_the_base, unanswered

BASES_ANSWERS = "the base's answers"
DRAWS = 10_000
SOLVED = 0.8  # a task that the base answers this well without training counts as solved zero-shot

Stratum = tuple[str, int, str, int]  # (set, row before, name, row after); a set is "task" or "retention"


@dataclass(frozen=True)
class Change:
    """A difference after - before over one or more runs of a method, with its interval.

    Attributes:
        identical: every single example came out the same, so the difference is zero without any uncertainty.
        paired: the outcomes were matched example by example (False: only their counts were known, which gives
            a wider interval).
        unanswered_before, unanswered_after: of the answers on either side; None where nobody knows.
    """

    method: str
    value: float
    low: float
    high: float
    before: float
    runs: int
    n: int
    identical: bool
    paired: bool
    unanswered_before: Unanswered | None = None
    unanswered_after: Unanswered | None = None

    @property
    def untold(self) -> str:
        """Why no difference is claimed, whatever its interval; empty where one may be."""
        sides = (
            (self.unanswered_after, "its answers at the end"),
            (self.unanswered_before, "its answers right after their turn"),
        )
        return next((found.of(whose) for found, whose in sides if found and found.too_many), "")

    @property
    def sign(self) -> int:
        """-1 or +1 if the interval lies on one side of zero, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def sentence(results: Sequence[RunRecord], *, full: bool = False, level: float = 0.95, seed: int = 0) -> str:
    """What the results of an experiment support, one sentence a line.

    Args:
        results: the records of any number of runs; those from `cl_softcot.results.load_results` know their folder, and
            with it the predictions that make the comparison paired.
        full: tell every method's number; else a group of more than three is told by its two ends.
        level: of all the intervals of one line together (Bonferroni over the methods).
    """
    trained = {m: [r for r in runs if r.trained] for m, runs in by_method(results).items()}
    trained = {m: runs for m, runs in trained.items() if runs}
    if not trained:
        return "No trained method among the results, so there is nothing to compare with the base."
    alpha = (1 - level) / len(trained)
    lines: list[str] = []
    asked: list[_Question] = []
    compared: list[Change] = []
    for question in _QUESTIONS:
        found = [(_change(m, runs, question.strata, alpha, seed), runs) for m, runs in trained.items()]
        changes = sorted((_with_unanswered(c, runs, question.strata) for c, runs in found if c), key=lambda c: c.value)
        if changes and not (question.last_resort and any(q.about_retention for q in asked)):
            lines.append(_line(question, changes, full))
            asked.append(question)
            compared = ([] if question.of_the_base(changes) else [c for c in changes if not c.untold]) or compared
    if not lines:
        return "The results hold nothing that could be compared with the base."
    return "\n".join([*lines, *([_note(compared, len(trained), level)] if compared else [])])


# --- the questions: which outcomes before are compared with which after ----------------------------------


def _learning(result: RunRecord) -> list[Stratum]:
    tasks = result.tasks
    return [("task", 0, name, len(tasks)) for name in tasks]


def _solved(result: RunRecord) -> list[Stratum]:
    base = result.accuracy.matrix[0]
    solved = [name for name, score in zip(result.tasks, base, strict=True) if (score or 0) >= SOLVED]
    return [("task", 0, name, len(result.tasks)) for name in solved]


def _forgetting(result: RunRecord) -> list[Stratum]:
    tasks = result.tasks
    return [("task", turn, name, len(tasks)) for turn, name in enumerate(tasks[:-1], start=1)]


def _retention(group: str) -> Callable[[RunRecord], list[Stratum]]:
    """The families of a group. Without `retention.same_family` (their names) they are not told apart."""

    def strata(result: RunRecord) -> list[Stratum]:
        rows, trained = result.retention.as_used, result.retention.same_family
        if len(rows) < 2 or not rows[0] or not rows[-1] or (group != "all" and trained is None):
            return []
        return [
            ("retention", 0, name, len(rows) - 1)
            for name in rows[0].families
            if group == "all" or (name in (trained or [])) == (group == "same_family")
        ]

    return strata


@dataclass(frozen=True)
class _Question:
    title: str
    strata: Callable[[RunRecord], list[Stratum]]
    up: str = "above it"
    down: str = "below it"
    same: str = "every outcome as the base's"
    shows_base: bool = True
    about_retention: bool = False
    last_resort: bool = False  # only asked where the families cannot be told apart
    from_base: bool = True  # what is before is the base, the same for every method

    def of_the_base(self, changes: Sequence[Change]) -> Unanswered | None:
        """The base's answers, where too many of them are unanswered to compare anything with it."""
        before = next((c.unanswered_before for c in changes if c.unanswered_before), None) if self.from_base else None
        return before if before and before.too_many else None


_QUESTIONS = (
    _Question("The stream's tasks at the end, against the base's zero-shot CoT", _learning),
    _Question(f"Those of them that the base solves untrained (from {SOLVED:.2f} on), against it", _solved),
    _Question(
        "Earlier tasks at the end, against right after their turn",
        _forgetting, up="improved", down="forgotten", same="every outcome as it was", shows_base=False,
        from_base=False,
    ),
    _Question("Retention as used, families that the stream never touches", _retention("unrelated"), about_retention=True),
    _Question(
        "Retention as used, families that the stream trains on (a new convention must cost some of the old)",
        _retention("same_family"), about_retention=True,
    ),
    _Question("Retention as used, all families", _retention("all"), about_retention=True, last_resort=True),
)  # fmt: skip


# --- differences and their intervals --------------------------------------------------------------------


def read_outcomes(run_folder: str | Path, row: int) -> dict[tuple[str, str], dict[str, bool]]:
    """The outcomes in `predictions/row_<row>.jsonl`, or those that were kept of them, as `{(set, name): {example id: right?}}`;
    {} without either.
    """
    written = kept.written(run_folder, row)
    return {} if written is None else _read_outcomes(Path(run_folder), row, written)


@lru_cache(maxsize=1024)  # each of several questions asks for the same rows
def _read_outcomes(run: Path, row: int, _changed: int) -> dict[tuple[str, str], dict[str, bool]]:
    outcomes: dict[tuple[str, str], dict[str, bool]] = {}
    for line in kept.answers(run, row) or []:
        outcomes.setdefault((line["set"], line["task"]), {})[line["id"]] = line["outcome"] == "right"
    return outcomes


def _change(
    method: str,
    runs: Sequence[RunRecord],
    strata: Callable[[RunRecord], list[Stratum]],
    alpha: float,
    seed: int,
) -> Change | None:
    """The mean over strata of accuracy after - before, averaged over runs, with its (1 - alpha) interval."""
    rng = np.random.default_rng(seed)
    found = [_run_change(run, strata(run), rng) for run in runs]
    parts = [part for part in found if part is not None]
    if not parts:
        return None
    values = np.array([part.value for part in parts])
    draws_RN = np.stack([part.draws for part in parts])
    if len(parts) == 1:
        draws_N = draws_RN[0]
    else:
        # The spread over runs, with Student's t for so few of them. The examples' noise comes on top and is not
        # divided by R: all runs answer the same test examples, so it does not average out.
        over_runs_N = np.sqrt(values.var(ddof=1) / len(parts)) * rng.standard_t(len(parts) - 1, size=DRAWS)
        over_examples_N = np.sqrt(draws_RN.var(axis=1).mean()) * rng.standard_normal(DRAWS)
        draws_N = values.mean() + over_runs_N + over_examples_N
    low, high = np.quantile(draws_N, [alpha / 2, 1 - alpha / 2])
    identical = all(part.identical for part in parts)
    return Change(
        method=method,
        value=float(values.mean()),
        low=0.0 if identical else float(max(low, -1)),
        high=0.0 if identical else float(min(high, 1)),
        before=float(np.mean([part.before for part in parts])),
        runs=len(parts),
        n=parts[0].n,
        identical=identical,
        paired=all(part.paired for part in parts),
    )


def _with_unanswered(change: Change, runs: Sequence[RunRecord], strata: Callable[[RunRecord], list[Stratum]]) -> Change:
    """The change, with what is unanswered of its answers: before, where those of the base count once, and after."""
    before: Callable[[RunRecord], list[Cell]] = lambda run: [(kind, row, name) for kind, row, name, _ in strata(run)]  # noqa: E731
    after: Callable[[RunRecord], list[Cell]] = lambda run: [(kind, row, name) for kind, _, name, row in strata(run)]  # noqa: E731
    is_base = all(row == 0 for run in runs for _, row, _, _ in strata(run))
    counted = (of_the_base if is_base else unanswered)(runs, before)
    return replace(change, unanswered_before=counted, unanswered_after=unanswered(runs, after))


@dataclass(frozen=True)
class _RunChange:
    value: float
    before: float
    draws: np.ndarray  # [DRAWS]
    n: int
    identical: bool
    paired: bool


def _run_change(run: RunRecord, strata: Sequence[Stratum], rng: np.random.Generator) -> _RunChange | None:
    found = [_stratum_change(run, stratum, rng) for stratum in strata]
    parts = [part for part in found if part is not None]
    if not parts or len(parts) < len(found):
        return None
    return _RunChange(
        value=float(np.mean([p.value for p in parts])),
        before=float(np.mean([p.before for p in parts])),
        draws=np.mean([p.draws for p in parts], axis=0),
        n=sum(p.n for p in parts),
        identical=all(p.identical for p in parts),
        paired=all(p.paired for p in parts),
    )


def _stratum_change(run: RunRecord, stratum: Stratum, rng: np.random.Generator) -> _RunChange | None:
    kind, row_before, name, row_after = stratum
    folder = run.folder
    before = read_outcomes(folder, row_before).get((kind, name)) if folder else None
    after = read_outcomes(folder, row_after).get((kind, name)) if folder else None
    if before and after and before.keys() == after.keys():
        return _paired(np.array([before[k] for k in before], dtype=int), np.array([after[k] for k in before], dtype=int), rng)
    return _unpaired(run, stratum, rng)


def _paired(before_N: np.ndarray, after_N: np.ndarray, rng: np.random.Generator) -> _RunChange:
    """Resamples pairs. They take three values only, so the bootstrap is a multinomial draw.

    A pair is added on either side (Bonett and Price 2012): with a handful of discordant pairs the plain
    bootstrap is too sure of itself (five against none of 300 would count as shown, which McNemar's exact test
    denies).
    """
    n = len(before_N)
    lost, won = int(np.sum(after_N < before_N)), int(np.sum(after_N > before_N))
    p = np.array([lost + 1, n - lost - won, won + 1]) / (n + 2)
    counts = rng.multinomial(n, p, size=DRAWS)
    draws = (counts[:, 2] - counts[:, 0]) / n
    return _RunChange((won - lost) / n, float(before_N.mean()), draws, n, lost == won == 0, True)


def _unpaired(run: RunRecord, stratum: Stratum, rng: np.random.Generator) -> _RunChange | None:
    """Two independent binomials: too wide for paired data, but honest where only the counts are known."""
    kind, row_before, name, row_after = stratum
    if kind == "task":
        column = run.tasks.index(name)
        matrix, n = run.accuracy.matrix, run.accuracy.n and run.accuracy.n[column]
        before, after = matrix[row_before][column], matrix[row_after][column]
    else:
        first, last = (run.retention_row("as_used", row) for row in (row_before, row_after))
        n = first.n.get(name) if first else None
        before, after = (row.families.get(name) if row else None for row in (first, last))
    if before is None or after is None or not n:
        return None
    p_before, p_after = (before * n + 0.5) / (n + 1), (after * n + 0.5) / (n + 1)
    draws = (rng.binomial(n, p_after, size=DRAWS) - rng.binomial(n, p_before, size=DRAWS)) / n
    return _RunChange(after - before, before, draws, n, False, False)


# --- words ----------------------------------------------------------------------------------------------


def _line(question: _Question, changes: Sequence[Change], full: bool) -> str:
    base = f"base {changes[0].before:.3f}, " if question.shows_base else ""
    of_the_base = question.of_the_base(changes)
    if of_the_base:
        start = f"{question.title} ({base}n = {changes[0].n})"
        return f"{start}: not compared: {of_the_base.of(BASES_ANSWERS)}."
    told = [c for c in changes if not c.untold]
    groups = (
        (question.down, [c for c in told if c.sign < 0]),
        (question.up, [c for c in reversed(told) if c.sign > 0]),
        ("no difference shown", [c for c in told if c.sign == 0 and not c.identical]),
    )
    parts = [f"{word}: {_listed(group, full)}" for word, group in groups if group]
    exact = [c.method for c in told if c.identical]
    if exact:
        parts.append(f"{question.same}: {', '.join(exact)}")
    untold = [f"{c.method} ({c.untold})" for c in changes if c.untold]
    parts += [f"not compared: {', '.join(untold)}"] if untold else []
    return f"{question.title} ({base}n = {changes[0].n}): {'; '.join(parts)}."


def _listed(changes: Sequence[Change], full: bool) -> str:
    if full or len(changes) <= 3:
        return ", ".join(_told(c) for c in changes)
    between = ", ".join(c.method for c in changes[1:-1])
    return f"{len(changes)} methods, from {_told(changes[0])} to {_told(changes[-1])} (between: {between})"


def _told(change: Change) -> str:
    numbers = (change.value, change.low, change.high)
    # A bound that leaves zero out must not be rounded to zero.
    fine = max(map(abs, numbers)) < 0.05 or any(x != 0 and abs(x) < 0.005 for x in numbers)
    value, low, high = (f"{x:+.{3 if fine else 2}f}".replace("-", "−") for x in numbers)
    return f"{change.method} {value} [{low}, {high}]"


def _note(changes: Sequence[Change], methods: int, level: float) -> str:
    together = f", for all {methods} methods of a line together (Bonferroni)" if methods > 1 else ""
    pairing = (
        "paired on the test examples"
        if all(c.paired for c in changes)
        else "from counts only, so wider than paired ones would be"
    )
    counts = sorted({c.runs for c in changes})
    if counts == [1]:
        runs = "One run a method: they do not cover another seed or task order."
    else:
        told = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        runs = f"They cover the spread over runs too ({told} a method)."
    return f"Brackets: {level * 100:g} % intervals{together}, {pairing}. {runs}"
