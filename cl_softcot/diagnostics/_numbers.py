"""Numbers that the diagnostics of thoughts report: changes with their intervals, ranks, shares of variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cl_softcot.metrics.intervals import stratified_difference, stratified_interval, stratified_mean

if TYPE_CHECKING:
    from cl_softcot.diagnostics._thoughts import Answered

Values = NDArray[np.float64]


def probabilities(logp: Sequence[float]) -> list[float]:
    """exp, held at 1 where rounding puts it above."""
    return [min(1.0, float(np.exp(value))) for value in logp]


def level_of(answered: Mapping[str, Answered], n_boot: int) -> dict[str, Any]:
    """Accuracy and answer probability of {task: answered}: means over tasks of the tasks' means, with 95 % intervals."""
    right = [a.right for a in answered.values()]
    logp, interval = stratified_mean([a.logp for a in answered.values()], (-np.inf, 0.0), n_boot)
    return {
        "n": sum(map(len, right)),
        "accuracy": mean_of(right, n_boot),
        "logp": {"value": logp, "low": interval.low, "high": interval.high},
    }


def change(edited: Mapping[str, Answered], own: Mapping[str, Answered], n_boot: int) -> dict[str, Any]:
    """What an edit did, over the tasks of ``edited``: edited minus own, paired by example, each with its 95 % interval.

    Keys:
        n: examples; accuracy: under the edit.
        accuracy_change: of the fraction right.
        p_change: of the probability of the gold answer's tokens.
        logp_change: of its logarithm, in nats; an end of its interval is null where nothing bounds it.
        text_logp_change: of the log-probability of all gold tokens that are still to be written, steps and answer.
    """
    pairs = [(edited[task], own[task]) for task in edited]
    right = [e.right for e, _ in pairs], [o.right for _, o in pairs]
    p = [probabilities(e.logp) for e, _ in pairs], [probabilities(o.logp) for _, o in pairs]
    numbers = {
        "n": sum(len(e.right) for e, _ in pairs),
        "accuracy": float(np.mean([np.mean(e.right) for e, _ in pairs])),
        "accuracy_change": _named(stratified_difference(*right, n_boot)),
        "p_change": _named(stratified_difference(*p, n_boot)),
        "logp_change": _mean_change([(e.logp, o.logp) for e, o in pairs], n_boot),
    }
    if pairs[0][0].text_logp:
        numbers["text_logp_change"] = _mean_change([(e.text_logp, o.text_logp) for e, o in pairs], n_boot)
    return numbers


def _mean_change(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], n_boot: int) -> dict[str, float]:
    value, interval = stratified_mean([np.subtract(edited, own) for edited, own in pairs], n_boot=n_boot)
    return {"value": value, "low": interval.low, "high": interval.high}


def mean_of(strata: Sequence[Sequence[float]], n_boot: int) -> dict[str, Any]:
    """Mean over tasks of means of numbers between 0 and 1, with its 95 % interval."""
    value = float(np.mean([np.mean(values) for values in strata]))
    low, high = stratified_interval(strata, n_boot)
    return {"value": value, "low": low, "high": high}


def by_task_and_pooled(tasks: Mapping[str, Any], pool: Callable[[], Any]) -> dict[str, Any]:
    """{"tasks": ..., "pooled": ...}; pooled only where more than one task was measured."""
    measured = [task for task in tasks.values() if "skipped" not in task]
    return {"tasks": dict(tasks), **({"pooled": pool()} if len(measured) > 1 else {})}


def _named(difference: Any) -> dict[str, float]:
    return {"value": difference.value, "low": difference.low, "high": difference.high}


def ratio(a: Sequence[Values], b: Sequence[Values], n_boot: int, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """mean(a) / mean(b), paired by example and means over strata, with a percentile bootstrap interval.

    ``value`` is None where b's own interval holds 0: a share of something that was not shown means nothing.
    """
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(x), size=(n_boot, len(x))) for x in a]
    tops = np.mean([np.asarray(x)[d].mean(1) for x, d in zip(a, draws, strict=True)], axis=0)
    bottoms = np.mean([np.asarray(y)[d].mean(1) for y, d in zip(b, draws, strict=True)], axis=0)
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(bottoms, ends)
    if low <= 0 <= high:
        return {"value": None, "low": None, "high": None, "why": "the interval of what it is a share of holds 0"}
    value = float(np.mean([np.mean(x) for x in a]) / np.mean([np.mean(y) for y in b]))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = tops / bottoms
    low, high = np.quantile(shares[np.isfinite(shares)], ends)
    return {"value": value, "low": float(low), "high": float(high)}


def effective_rank(rows_ND: Any, *, centred: bool = False) -> float:
    """exp of the entropy of the singular values, scaled to a sum of 1: from 1 (all rows alike, up to their length) to
    min(N, D) (Roy & Vetterli 2007, "The effective rank"). NaN where all rows are 0.

    Args:
        centred: of what is left after the mean row was taken away.
    """
    rows = np.asarray(rows_ND, dtype=np.float64)
    rows = rows - rows.mean(0) if centred else rows
    values = np.linalg.svd(rows, compute_uv=False)
    # What rounding leaves of rows that are all alike is no direction of its own.
    values = values[values > max(rows.shape) * np.finfo(np.float32).eps * np.abs(np.asarray(rows_ND)).max()]
    return rank_of(values)


def rank_of(singular_values: Any) -> float:
    """exp of the entropy of positive singular values, scaled to a sum of 1; NaN if there are none."""
    if not len(singular_values):
        return float("nan")
    shares = singular_values / singular_values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


SOURCES = ("task", "slot", "task_by_slot", "question", "question_by_slot")


def variance_shares(thoughts_TQKD: Any) -> dict[str, float]:
    """Where the squared distance of thoughts from their grand mean comes from: shares that sum to 1 (a balanced analysis of
    variance, summed over the D dimensions; questions are nested in tasks).

    Args:
        thoughts_TQKD: of T tasks, Q questions each, in K slots.

    Returns:
        task, slot, task_by_slot (the same for every question of a task), question and question_by_slot (inside a task); all
        NaN where nothing varies.
    """
    x = np.asarray(thoughts_TQKD, dtype=np.float64)
    grand = x.mean((0, 1, 2), keepdims=True)
    task, slot = x.mean((1, 2), keepdims=True), x.mean((0, 1), keepdims=True)
    cell, question = x.mean(1, keepdims=True), x.mean(2, keepdims=True)
    parts = {
        "task": task - grand,
        "slot": slot - grand,
        "task_by_slot": cell - task - slot + grand,
        "question": question - task,
        "question_by_slot": x - question - cell + task,
    }
    sums = {name: float((np.broadcast_to(part, x.shape) ** 2).sum()) for name, part in parts.items()}
    total = sum(sums.values())
    if total <= x.size * (np.finfo(np.float32).eps * np.abs(x).max()) ** 2:
        return dict.fromkeys(SOURCES, float("nan"))
    return {name: sums[name] / total for name in SOURCES}
