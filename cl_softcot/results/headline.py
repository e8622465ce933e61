"""Which number of a result is the headline of its kind."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_softcot.results.reading import is_trained

# --- the numbers of a row --------------------------------------------------------------------------


def numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The columns of the final table for one run; None where a number is not defined."""
    summary, cost = result.get("summary") or {}, result.get("cost") or {}
    retention = ((result.get("retention") or {}).get("as_used") or [{}])[-1] or {}
    drift = ((result.get("drift") or {}).get("as_used") or [{}])[-1] or {}
    return {
        # What a method did not learn it cannot have learned well: zero-shot rows have no such number.
        "learned": summary.get("learning_accuracy") if is_trained(result) else None,
        "accuracy": summary.get("acc"),
        "bwt": summary.get("bwt/gem"),
        "forgetting": summary.get("forgetting/chaudhry"),
        "retention": retention.get("all"),
        "drift": drift_number(drift),
        "parameters": cost.get("trained_parameters"),
        "tokens": cost.get("tokens_per_answer"),
        "train_seconds": cost.get("train_seconds"),
        "evaluate_seconds": cost.get("evaluate_seconds"),
    }


def drift_number(row: Mapping[str, float | None]) -> float | None:
    """KL(base || model) on general text; the mean over the prompt sets where no general text was measured."""
    if row.get("forward_kl/general") is not None:
        return row["forward_kl/general"]
    values = [v for k, v in row.items() if k.startswith("forward_kl/") and v is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Means:
    """A number over the runs of a method: their mean, standard deviation (None for one run) and count."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Iterable[float | None]) -> Means | None:
    """Mean and sample standard deviation of the values that exist; None if there are none."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return None
    return Means(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def method_numbers(results: Sequence[Mapping[str, Any]]) -> dict[str, Means | None]:
    """`numbers` of all runs of one method, each as a `Means`."""
    rows = [numbers(result) for result in results]
    return {key: spread(row[key] for row in rows) for key in numbers({})}


def drift_title(results: Iterable[Mapping[str, Any]]) -> str:
    """What the drift column holds, in words."""
    rows = [((r.get("drift") or {}).get("as_used") or [{}])[-1] or {} for r in results]
    general = any("forward_kl/general" in row for row in rows)
    return "KL(base‖model) on general text" if general else "mean KL(base‖model) over the prompt sets"
