"""The numbers of one run, where they stand in its ``result.json``, and what several runs say together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cl_softcot.report.content import Number, Style
from cl_softcot.report.studies import Result, Study
from cl_softcot.report.unanswered import beside
from cl_softcot.results.headline import FORGETTING as FORGETTING_NAME
from cl_softcot.results.record import Rows
from cl_softcot.statistics.aggregate import Estimate, aggregate

Path = tuple[str | int, ...]
FEWEST_IN_ORDER = 3


@dataclass(frozen=True)
class Measure:
    """One number that every run may have.

    Attributes:
        path: where it stands in ``result.json``; interval: where its interval over test examples stands.
        better: an arrow for the head of a table; trained_only: means nothing for methods that learn nothing.
        minus: the number is a difference: what stands there is taken away. over: and a share of what stands there.
    """

    name: str
    title: str
    path: Path
    style: Style = "fraction"
    better: str = ""
    interval: Path | None = None
    trained_only: bool = False
    minus: Path = ()
    over: Path = ()

    @property
    def head(self) -> str:
        return f"{self.title} {self.better}".strip()


def _summary(name: str, title: str, better: str, style: Style = "fraction", trained_only: bool = False) -> Measure:
    return Measure(name, title, ("summary", name), style, better, ("summary", f"{name}_interval"), trained_only)


def _kept(view: str, key: str, title: str) -> Measure:
    path = ("retention", view, -1)
    return Measure(f"retention/{view}/{key}", title, (*path, key), "fraction", "↑", (*path, f"{key}_interval"))


ACC = _summary("acc", "ACC", "↑")
LEARNED = _summary("learning_accuracy", "learning accuracy", "↑", trained_only=True)
BWT = _summary("bwt/gem", "BWT (GEM)", "↑", "change")
FORGETTING = _summary(FORGETTING_NAME, "forgetting since learned", "↓", "change")
RETENTION = _kept("as_used", "all", "retention, as used")
RETENTION_ALONE = _kept("weights_alone", "all", "retention, weights alone")
LOST = Measure(
    "retention/as_used/lost", "own abilities lost", ("retention", "as_used", 0, "all"), "change", "↓", None, False,
    ("retention", "as_used", -1, "all"),
)  # fmt: skip
LOST_SHARE = replace(LOST, name="retention/as_used/lost_share", title="share of them lost", over=LOST.path)
PARAMETERS = Measure("cost/trained_parameters", "trained parameters", ("cost", "trained_parameters"), "count")
TOKENS = Measure("cost/tokens_per_answer", "tokens an answer", ("cost", "tokens_per_answer"), "tokens")
PASSES = Measure("cost/forward_passes_per_answer", "passes an answer", ("cost", "forward_passes_per_answer"), "tokens")

UNANSWERED = Measure("unanswered/final", "unanswered", ("summary", "unanswered/final"), "fraction", "↓")

ROUTING = Measure("routing_accuracy", "routed right", ("routing_accuracy", -1), "fraction", "↑")

COSTS = (PARAMETERS, TOKENS, PASSES)


def otherwise(measure: Measure, reading: str) -> Measure:
    """The same measure in the reading of the answers that is not the headline."""
    path = ("other_reading", *measure.path)
    interval = ("other_reading", *measure.interval) if measure.interval else None
    return replace(measure, name=f"{reading}/{measure.name}", title=f"{measure.title}, {reading}", path=path, interval=interval)


def own_measures(study: Study) -> list[Measure]:
    """The metrics of the experiment's own, in the runs' summaries."""
    found = {name: meaning for run in study.runs for name, meaning in (run.metrics or {}).items()}
    arrow = lambda way: "↑" if way.startswith("higher") else "↓" if way.startswith("lower") else ""  # noqa: E731
    style: Callable[[str], Style] = lambda unit: "fraction" if unit == "fraction" else "plain"  # noqa: E731
    return [Measure(name, name, ("summary", name), style(m.unit), arrow(m.direction)) for name, m in found.items()]


def at(data: Any, path: Path) -> Any:
    """What stands there in a record, or in plain data; None where it does not.

    ``x/*`` as the last step is the mean of all numbers named ``x/...``; ``*`` at any place the mean over everything inside.
    """
    data = data.data if isinstance(data, Rows) else data
    for place, step in enumerate(path):
        if step == "*" and isinstance(data, Mapping):
            inside = [at(value, path[place + 1 :]) for value in data.values()]
            found = [value for value in inside if isinstance(value, int | float)]
            return float(np.mean(found)) if found else None
        if isinstance(step, str) and step.endswith("/*") and isinstance(data, Mapping):
            found = [v for key, v in data.items() if key.startswith(step[:-1]) and v is not None]
            return float(np.mean(found)) if found else None
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def value_of(run: Result, measure: Measure) -> float | None:
    """The measure of one run; None where it was not measured or means nothing."""
    if measure.trained_only and not run.trained:
        return None
    return held_against(run, measure.path, measure.minus, measure.over)


def held_against(run: Result, path: Path, minus: Path = (), over: Path = ()) -> Any:
    """What stands at ``path``, less that at ``minus``, as a share of that at ``over``; None where one is missing."""
    value = at(run, path)
    if minus:
        less = at(run, minus)
        value = None if value is None or less is None else value - less
    if over:
        whole = at(run, over)
        value = value / whole if value is not None and whole else None
    return value


def mean(study: Study, runs: Sequence[Result], measure: Measure) -> Number:
    """Mean over runs with its interval; of a single run the interval over test examples."""
    return mean_at(
        study, runs, measure.path, measure.style, interval=measure.interval, skip=measure.trained_only, minus=measure.minus,
        over=measure.over,
    )  # fmt: skip


def mean_at(
    study: Study,
    runs: Sequence[Result],
    path: Path,
    style: Style = "fraction",
    *,
    interval: Path | None = None,
    skip: bool = False,
    minus: Path = (),
    over: Path = (),
) -> Number:
    """Mean over the runs that have a number at ``path`` (``skip``: of those that trained something); see ``held_against``.

    The interval is Student's over resampled runs, inside task orders, from two runs on; counts get none.
    """
    found = [(run, held_against(run, path, minus, over)) for run in runs if not (skip and not run.trained)]
    asked, more = len(found), {key: list(other) for key, other in (("minus", minus), ("over", over)) if other}
    found = [(run, float(value)) for run, value in found if isinstance(value, int | float) and np.isfinite(value)]
    if not found:
        return Number(None, how="mean", path=path, style=style)
    names = tuple(study.relative(run) for run, _ in found)
    remark = "" if minus or over else beside([run for run, _ in found], path)
    if style == "count":
        return Number(float(np.mean([v for _, v in found])), n=len(found), path=path, runs=names, style=style, more=more)
    if len(found) == 1:
        ends = at(found[0][0], interval) if interval else None
        low, high = ends if ends and None not in ends else (None, None)
        covers = "examples" if low is not None else ""
        note = "one run: how far it would move with another seed is not known"
        return Number(found[0][1], low, high, 1, "mean", path, names, covers, note, style, more, asked, remark)
    estimate = aggregate(by_order(found), "mean", n_boot=study.bootstrap)
    return replace(number(estimate, "mean", path, names, style), asked=asked, more=more, remark=remark)


def by_order(values: Iterable[tuple[Result, Any]]) -> dict[Hashable, list[Any]]:
    """Values by task order, if each order has enough runs to be resampled by itself; else all together.

    Two runs that came out alike by chance would leave an order without any spread.
    """
    strata: dict[Hashable, list[Any]] = {}
    values = list(values)
    for run, value in values:
        strata.setdefault(run.order, []).append(value)
    return strata if min(map(len, strata.values())) >= FEWEST_IN_ORDER else {"all": [value for _, value in values]}


def number(estimate: Estimate, how: str, path: Path, runs: Sequence[str], style: Style = "fraction") -> Number:
    covers = "" if estimate.low is None else "runs"
    return Number(estimate.value, estimate.low, estimate.high, len(runs), how, path, tuple(runs), covers, estimate.note, style)


def interquartile(study: Study, runs: Sequence[Result]) -> Number:
    """Interquartile mean of the last row of R over runs and tasks; the tasks of a run stay together when runs are resampled."""
    path = ("accuracy", "matrix", -1)
    found = [(run, list(at(run, path))) for run in runs]
    if any(None in row for _, row in found):
        return Number(None, how="interquartile mean", path=path)
    estimate = aggregate(by_order(found), "iqm", n_boot=study.bootstrap)
    return number(estimate, "interquartile mean", path, [study.relative(run) for run in runs])


def leaves(numbers: Any, path: Path = ()) -> Iterable[tuple[Path, Any]]:
    """Places of all numbers in what a diagnostic found, and what stands there: plain ones, or ``{"value": ...}``."""
    if isinstance(numbers, Mapping) and "value" not in numbers:
        for key, value in numbers.items():
            yield from leaves(value, (*path, key))
    elif isinstance(numbers, list):
        for place, value in enumerate(numbers):
            yield from leaves(value, (*path, place))
    elif isinstance(numbers, Mapping | int | float) and not isinstance(numbers, bool):
        yield path, numbers


def note_on_intervals(study: Study) -> str:
    """What ± means in this study, in words."""
    n = len(study.runs) // max(1, len(study.methods))
    if n == 1:
        return "One run a method: ± and brackets are 95 % intervals over test examples and say nothing about other seeds."
    spread = f"{len(study.seeds)} seeds" + (f" × {len(study.orders)} task orders" if len(study.orders) > 1 else "")
    inside = "inside their task order" if len(study.seeds) >= FEWEST_IN_ORDER and len(study.orders) > 1 else "all together"
    return (
        f"Means over n = {n} runs a method ({spread}); ±: half of the 95 % interval over runs (resampled {inside}, Student's t); "
        "± 0: all runs came out the same."
    )


def drift(study: Study, direction: str, view: str = "as_used") -> Measure:
    """Drift on general text, or its mean over the prompt sets where the study has no general text."""
    general = any(at(run, ("drift", view, -1, f"{direction}/general")) is not None for run in study.runs)
    where, key = ("general text", "general") if general else ("all prompt sets", "*")
    name = {"forward_kl": "KL(base‖model)", "reverse_kl": "KL(model‖base)"}[direction]
    of = "" if view == "as_used" else ", weights alone"
    return Measure(
        f"drift/{view}/{direction}/{key}", f"{name}, {where}{of}", ("drift", view, -1, f"{direction}/{key}"), "nats", "↓"
    )
