"""Numbers of a result by their names: dotted paths into `result.json`, such as `summary.acc` or `retention.as_used.all`.

Where a path meets a list of rows (one an experience), the last row counts. The names are known before anything runs, from the
experiment alone, so that a mistyped objective is told before the first trial.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.files import read_json
from cl_softcot.results.record import VIEWS, Cost, Rows, RunRecord

COSTS = tuple(Cost.model_fields)
GROUPS = ("all", "same_family", "unrelated")
# What early experiences say about the end. Every other number also falls by what is forgotten later.
OF_LEARNING_ALONE = ("summary.learning_accuracy", "summary.own_task_change")


def names(config: Experiment) -> list[str]:
    """The numbers that every result of an experiment holds (retention's single families aside: `is_known` takes them)."""
    found = [f"summary.{name}" for name in _summary_names(config)]
    if _measures_retention(config):
        found += [f"retention.{view}.{group}" for view in VIEWS for group in GROUPS]
    if config.evaluate.drift:
        general = config.evaluate.general_text and _knows_families(config)
        sets = [*(["general"] if general else []), *next(iter(config.orders.values()))]
        found += [f"drift.{view}.{direction}_kl/{s}" for view in VIEWS for direction in ("forward", "reverse") for s in sets]
    return found + [f"cost.{name}" for name in COSTS]


def near(name: str, config: Experiment) -> list[str]:
    """The names that may have been meant: those of the same section, or the summary's."""
    known = names(config)
    section = name.split(".")[0]
    return [k for k in known if k.startswith(f"{section}.")] or [k for k in known if k.startswith("summary.")]


def _summary_names(config: Experiment) -> list[str]:
    """Those that are defined for streams of this length."""
    from cl_softcot.metrics.flips import CATALOGUE as FLIPS
    from cl_softcot.metrics.matrix import summary
    from cl_softcot.metrics.own import find_metrics
    from cl_softcot.metrics.unanswered import CATALOGUE as UNANSWERED

    shortest = min(map(len, config.orders.values()))
    some_matrix = [[0.5] * shortest for _ in range(shortest + 1)]
    of_matrix = [name for name, value in summary(some_matrix).items() if value is not None]
    own = [metric.name for metric in find_metrics(config.evaluate.metrics)]
    return [*of_matrix, *own, *UNANSWERED] + [name for name in FLIPS if shortest > 1 or name.endswith("since_base")]


def is_known(name: str, config: Experiment) -> bool:
    families = tuple(f"retention.{view}.families." for view in VIEWS)
    return name in names(config) or (_measures_retention(config) and name.startswith(families))


def _measures_retention(config: Experiment) -> bool:
    wanted = config.evaluate.retention_tasks
    return config.evaluate.retention > 0 and (bool(wanted) if wanted is not None else _knows_families(config))


def _knows_families(config: Experiment) -> bool:
    """Whether the backbone says what it was made with: the embedded ones do, and folders with such a file."""
    marker = Path(config.backbone.path) / "cl_softcot.json"
    if config.backbone.path.startswith("builtin:"):
        return True
    found = read_json(marker) if marker.is_file() else None
    return isinstance(found, dict) and bool(found.get("families"))


def value(result: Rows, name: str) -> float | None:
    """The number of that name; None where it is not defined in this result.

    Raises:
        UserError: if the result holds nothing of that name.
    """
    try:
        found = result.at(name)
    except KeyError:
        raise UserError(f"no result holds {name!r}") from None
    return float(found) if isinstance(found, int | float) else None


def mean_value(results: Sequence[RunRecord], name: str) -> float:
    """The mean over a trial's runs (seeds and orders).

    Raises:
        UserError: if it is not defined in one of them.
    """
    values = [value(result, name) for result in results]
    defined = [one for one in values if one is not None]
    if not values or len(defined) < len(values):
        raise UserError(f"{name} is not defined in the result of {'a run' if values else 'no run'}")
    return statistics.fmean(defined)


def interval(results: Sequence[RunRecord], name: str, resamples: int = 2000) -> list[float] | None:
    """95 % interval of a trial's value: over its runs where there are several, over examples where there is one.

    Of one run: the interval that its result holds, resampled over examples (None: it holds none). Of several: a percentile
    bootstrap of the runs' mean, which with few runs is too narrow rather than too wide.
    """
    if len(results) == 1:
        try:
            found = results[0].at(f"{name}_interval")
        except KeyError:
            return None
        return list(found) if found else None
    import numpy as np

    values = np.array([value(result, name) for result in results], dtype=float)
    means = np.random.default_rng(0).choice(values, (resamples, len(values))).mean(1)
    return [float(np.quantile(means, q)) for q in (0.025, 0.975)]


def can_be_followed(name: str) -> bool:
    """Whether the number has a value after every experience."""
    # Flips are counted from the predictions of all rows, at the end.
    return name.split(".")[0] in ("summary", "retention", "drift") and not name.startswith("summary.flips/")


def so_far(partial: Rows, name: str) -> float | None:
    """The number after the experiences that a partial result holds, over the tasks learned so far; None where undefined."""
    if not name.startswith("summary."):
        return value(partial, name)
    from cl_softcot.metrics.matrix import summary

    matrix = partial.accuracy.matrix
    learned = len(matrix) - 1
    return summary([row[:learned] for row in matrix]).get(name.removeprefix("summary.")) if learned else None
