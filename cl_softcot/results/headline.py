"""Which number of a result is the headline of its kind."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cl_softcot.results.record import RunRecord

# Forgetting has rival definitions; these are the two that stand as *the* forgetting somewhere, and here is where. The report's
# counts from the task's own turn on and is the better headline: what was never learned is not forgotten (see its main table).
# The terminal, ``table.txt`` and the README's tables still show the original, which the report has beside its own.
FORGETTING = "forgetting/chaudhry_from_learned"
FORGETTING_IN_TERMINAL = "forgetting/chaudhry"


def numbers(result: RunRecord) -> dict[str, float | None]:
    """The columns of the final table for one run; None where a number is not defined."""
    summary, cost, retention = result.summary, result.cost, result.retention_row("as_used", -1)
    routing = result.routing_accuracy or [None]
    return {
        # What a method did not learn it cannot have learned well: zero-shot rows have no such number.
        "learned": summary.get("learning_accuracy") if result.trained else None,
        "accuracy": summary.get("acc"),
        "bwt": summary.get("bwt/gem"),
        "forgetting": summary.get(FORGETTING_IN_TERMINAL),
        "retention": retention.all if retention else None,
        "drift": drift_number(result.drift_row("as_used", -1)),
        "routing": routing[-1],
        "parameters": cost.trained_parameters,
        "tokens": cost.tokens_per_answer,
        "train_seconds": cost.train_seconds,
        "evaluate_seconds": cost.evaluate_seconds,
        **{f"summary/{name}": summary.get(name) for name in result.metrics or {}},
        **_otherwise(result),
    }


def _otherwise(result: RunRecord) -> dict[str, float | None]:
    """The same in the reading that is not the headline, and what is unanswered in both; nothing where there is one only."""
    other = result.other_reading
    if other is None:
        return {}
    kept = other.retention_row("as_used", -1)
    return {
        "accuracy_otherwise": other.summary.get("acc"),
        "retention_otherwise": kept.all if kept else None,
        "unanswered": result.summary.get("unanswered/final"),
        "unanswered_otherwise": other.summary.get("unanswered/final"),
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


def method_numbers(results: Sequence[RunRecord]) -> dict[str, Means | None]:
    """`numbers` of all runs of one method, each as a `Means`."""
    rows = [numbers(result) for result in results]
    return {key: spread(row.get(key) for row in rows) for key in dict.fromkeys(key for row in rows for key in row)}


def drift_title(results: Iterable[RunRecord]) -> str:
    """What the drift column holds, in words."""
    general = any("forward_kl/general" in result.drift_row("as_used", -1) for result in results)
    return "KL(base‖model) on general text" if general else "mean KL(base‖model) over the prompt sets"
