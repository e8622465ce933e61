"""Flips: which questions a model could answer and now cannot, and the other way round, less what guessing explains.

An accuracy that stays where it was may hide as many questions lost as won. Harmon et al. 2025 (arXiv 2510.17776) count them
question by question, and subtract what a guesser would show: who has no idea at either moment flips all the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cl_softcot.metrics import Meaning

Options = int | None | Sequence[int | None]


def sample_flips(pre: ArrayLike, post: ArrayLike, k: Options = None) -> dict[str, float]:
    """How many examples flipped, less what guessing explains.

    ``pre`` and ``post``: 0/1 outcomes of the same examples before and after; ``k``: number of options to choose from, of all
    examples or of each; None for open answers, where guessing explains nothing. With ā the mean outcome:

    * ``forgotten`` F = mean 1{right -> wrong}, ``gained`` B = mean 1{wrong -> right}; F - B = ā_pre - ā_post
    * ``chance`` = (1-ā_pre)/(k-1) · (1-ā_post): the lucky hits on one side, times wrong on the other; the
      expression is symmetric in pre and post, so it is the chance part of both. Where k differs, the mean of 1/(k-1).
    * ``forgotten_true`` = max(F - chance, 0), ``gained_true`` = max(B - chance, 0)

    Fractions of the examples; forgotten: lower is better, gained: higher is better.

    Raises:
        ValueError: if these are not outcomes of the same examples, or a choice has fewer than two options.
    """
    right_pre, right_post = np.asarray(pre, dtype=np.float64), np.asarray(post, dtype=np.float64)
    if right_pre.shape != right_post.shape or right_pre.ndim != 1 or right_pre.size == 0:
        raise ValueError("flips compare the outcomes of the same examples: two equally long, non-empty lists")
    if not (np.isin(right_pre, (0, 1)).all() and np.isin(right_post, (0, 1)).all()):
        raise ValueError("outcomes are 0 or 1")
    forgotten = float((right_pre * (1 - right_post)).mean())
    gained = float(((1 - right_pre) * right_post).mean())
    chance = float((1 - right_pre.mean()) * _luck(k, right_pre.size) * (1 - right_post.mean()))
    return {
        "forgotten": forgotten,
        "gained": gained,
        "chance": chance,
        "forgotten_true": max(forgotten - chance, 0.0),
        "gained_true": max(gained - chance, 0.0),
    }


def _luck(k: Options, n: int) -> float:
    """Lucky hits for each wrong guess: 1/(k-1), and 0 for open answers."""
    options = [k] * n if k is None or isinstance(k, int) else list(k)
    if len(options) != n:
        raise ValueError(f"{len(options)} numbers of options for {n} examples")
    if few := [o for o in options if o is not None and o < 2]:
        raise ValueError(f"a choice has at least two options, got k={few[0]}")
    return sum(0.0 if o is None else 1 / (o - 1) for o in options) / n


def flips_of_run(
    rows: Sequence[Sequence[Sequence[float]]], tasks: Sequence[str], options: Mapping[str, Options]
) -> dict[str, Any]:
    """Flips of every task of a stream: since its own turn, and since the base.

    Args:
        rows: ``rows[i][j]`` [n_j]: outcomes on the examples of task j after experience i (row 0: the base), as in
            :func:`cl_softcot.metrics.intervals.summary_intervals`.
        options: task -> number of options, as ``k`` of :func:`sample_flips`.

    Returns:
        ``{"tasks": {task: {"since_own": {row: flips}, "since_base": {row: flips}}}, "summary": {name: value}}``: the rows are the
        later ones, as text; the names are those of the ``CATALOGUE``, None with one task.
    """
    T, found = len(tasks), {}
    for j, task in enumerate(tasks):
        starts = {"since_own": j + 1, "since_base": 0}
        found[task] = {
            since: {str(i): _of_the_same(rows[start][j], rows[i][j], options[task]) for i in range(start + 1, T + 1)}
            for since, start in starts.items()
        }
    last = str(T)

    def mean(since: str, part: str) -> float | None:
        values = [found[task][since][last][part] for task in tasks if last in found[task][since]]
        return float(np.mean(values)) if values else None

    names = {"flips/forgotten_true": "since_own", "flips/gained_true": "since_own"}
    names |= {f"{name}_since_base": "since_base" for name in names}
    parts = {name: name.removeprefix("flips/").removesuffix("_since_base") for name in names}
    return {"tasks": found, "summary": {name: mean(since, parts[name]) for name, since in names.items()}}


def _of_the_same(pre: Sequence[float], post: Sequence[float], k: Options) -> dict[str, float]:
    """Flips of the examples that both rows hold: the shorter one has the first ones of the other (``evaluate.between``)."""
    n = min(len(pre), len(post))
    return sample_flips(pre[:n], post[:n], k if k is None or isinstance(k, int) else list(k)[:n])


_SOURCE = "Harmon et al. 2025 (arXiv 2510.17776)"
_FORMULA = "max(mean 1{{{}}} - (1-ā_pre)/(k-1)·(1-ā_post), 0), {}"
_OWN, _BASE = "mean over j<T from row j to row T", "mean over all tasks from row 0 to row T"

CATALOGUE: dict[str, Meaning] = {
    "flips/forgotten_true": Meaning(_FORMULA.format("right -> wrong", _OWN), _SOURCE, "fraction", "lower is better"),
    "flips/gained_true": Meaning(_FORMULA.format("wrong -> right", _OWN), _SOURCE, "fraction", "higher is better"),
    "flips/forgotten_true_since_base": Meaning(_FORMULA.format("right -> wrong", _BASE), _SOURCE, "fraction", "lower is better"),
    "flips/gained_true_since_base": Meaning(_FORMULA.format("wrong -> right", _BASE), _SOURCE, "fraction", "higher is better"),
}
