"""Forgetting against drift: every checkpoint of every run, and how well drift alone tells what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from cl_softcot.law.fit import DIRECTIONS, FORMS, fit_law
from cl_softcot.law.points import INPUTS, OUTCOMES, VIEWS, Point, moved, points_of
from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Cell, Figure, Missing, Number, Section, Table, Text
from cl_softcot.report.studies import Result, Study
from cl_softcot.report.unanswered import RESTS_ON, why_not

TITLES = {"forward_kl": "KL(base‖model)", "reverse_kl": "KL(model‖base)"}
LINES = {"quadratic": ("-", "quadratic"), "monotone": (":", "monotone")}
WORDS = {"base_abilities": "the base's own abilities", "earlier_tasks": "earlier tasks"}


def section(study: Study) -> Section | None:
    points, runs = _points(study)
    if not points:
        return None
    # The headline of the analysis: the first of its groups that has points.
    first = next(kind for kind in product(VIEWS, INPUTS, OUTCOMES) if any((p.view, p.inputs, p.outcome) == kind for p in points))
    mine = [p for p in points if (p.view, p.inputs, p.outcome) == first]
    group = fit_law(mine, bootstrap=study.bootstrap // 4)["groups"][0]
    data = _data(study, mine, runs)
    what = WORDS[group["outcome"]]
    caption = (
        f"Forgetting of {what} against drift on {group['inputs'].replace('_', ' ')}, {group['view'].replace('_', ' ')}: one "
        f"point a run and experience. Lines: fits over all methods; runs that never moved ({len(group['zero_runs'])}) are not "
        "fitted."
    )
    figure = Figure(f"{study.name}-law", caption, lambda: _draw(study, mine, group), data)
    note = (
        "R² is about the mean, so that it is negative where a form does worse. A law promises that each method follows from the "
        "others. Intervals: runs resampled, since checkpoints of one run are not independent. The analysis was fixed before the "
        "runs (cl_softcot/law/fit.py)."
    )
    table = Table(f"{study.name}-law-fit", "How much of forgetting drift explains", _FITS, _fits(study, group, runs), 2, [note])
    left = _left_out(study, group, runs)
    apart = Table(f"{study.name}-law-left-out", "Each method predicted from the others", _LEFT_OUT, left) if left else None
    untold = _untold(study, group)
    blocks: list[Block] = [*untold, figure, table, *filter(None, [apart, _matched(study, group, runs)])]
    return Section("Drift against forgetting", blocks)


def _untold(study: Study, group: Mapping[str, Any]) -> list[Text]:
    """Whose points say nothing of forgetting, for too many of their answers are unanswered."""
    sets = RESTS_ON["retention/as_used/lost" if group["outcome"] == "base_abilities" else "bwt/gem"]
    found = [why_not(runs, sets, method) for method, runs in study.by_method.items() if any(run.trained for run in runs)]
    reasons = list(dict.fromkeys(filter(None, found)))
    return [Text(f"Not to be read as forgetting: {'; '.join(reasons)}.")] if reasons else []


def _points(study: Study) -> tuple[list[Point], dict[str, Result]]:
    points: list[Point] = []
    runs: dict[str, Result] = {}
    for run in study.runs:
        mine = points_of(run)
        points += mine
        runs |= {p.run: run for p in mine}
    return points, runs


def _data(study: Study, points: list[Point], runs: Mapping[str, Result]) -> Table:
    rows: list[list[Cell]] = []
    for p in points:
        run = study.relative(runs[p.run])
        cells = [_of_point(p, run, name) for name in (*DIRECTIONS, "forgetting")]
        rows.append([p.method, run, str(p.experience), *cells])
    head = ["method", "run", "experience", *TITLES.values(), "forgetting"]
    return Table(f"{study.name}-law", "Points of the figure", head, rows, text=3)


def _of_point(p: Point, run: str, name: str) -> Number:
    path = ("law", p.inputs, p.outcome, p.view, p.experience, name)
    return Number(getattr(p, name), n=1, how="point", path=path, runs=(run,), style="change" if name == "forgetting" else "nats")


_FITS = ("over", "drift", *(f"R² {form.replace('_', ' ')}" for form in FORMS), "Spearman", "points")
_LEFT_OUT = ("drift", *(f"R² {form.replace('_', ' ')}" for form in FORMS))


class _Told:
    """Numbers of a group of the law, with where they come from."""

    def __init__(self, study: Study, group: Mapping[str, Any], runs: Mapping[str, Result]):
        self.where = ("law", group["inputs"], group["outcome"], group["view"])
        self.runs = tuple(study.relative(run) for run in runs.values())

    def number(self, found: Mapping[str, Any], n: int, *what: str) -> Number:
        low, high = found["interval"] or (None, None)
        covers = "runs" if low is not None else ""
        return Number(found["value"], low, high, n, "law", (*self.where, *what), self.runs, covers, style="ratio")


def _fits(study: Study, group: Mapping[str, Any], runs: Mapping[str, Result]) -> list[list[Cell]]:
    told = _Told(study, group, runs)
    rows: list[list[Cell]] = []
    for label, both in [("all methods", group["everything"]), *group["families"].items()]:
        for direction in DIRECTIONS:
            cloud = both[direction]
            if "fits" not in cloud:
                rows.append([label, TITLES[direction], *["–"] * (len(FORMS) + 1), f"{cloud['points']} (too few)"])
                continue
            cells = [told.number(cloud["fits"][form]["r2"], cloud["points"], label, direction, "r2", form) for form in FORMS]
            spearman = told.number(cloud["spearman"], cloud["points"], label, direction, "spearman")
            rows.append([label, TITLES[direction], *cells, spearman, str(cloud["points"])])
    return rows


def _left_out(study: Study, group: Mapping[str, Any], runs: Mapping[str, Result]) -> list[list[Cell]]:
    told = _Told(study, group, runs)
    rows: list[list[Cell]] = []
    for direction in DIRECTIONS:
        cloud = group["everything"][direction]
        if "fits" in cloud:
            left = cloud["leave_one_method_out"]
            where = ("all methods", direction, "left out")
            rows.append([TITLES[direction], *(told.number(left[form]["r2"], cloud["points"], *where, form) for form in FORMS)])
    return rows


def _matched(study: Study, group: Mapping[str, Any], runs: Mapping[str, Result]) -> Table | None:
    """At equal accuracy on the new task: who forgot less?"""
    rows: list[list[Cell]] = []
    for pair in group["accuracy_matched"]["pairs"]:
        names = tuple(study.relative(run) for run in runs.values() if run.method in (pair["a"], pair["b"]))
        span = f"{pair['accuracies'][0]:.2f} to {pair['accuracies'][-1]:.2f}"
        cells = []
        for what in ("forgetting", "forward_kl"):
            found = pair["difference"][what]
            low, high = found["interval"] or (None, None)
            path = ("law", group["inputs"], group["outcome"], group["view"], "accuracy_matched", pair["a"], pair["b"], what)
            cells.append(
                Number(
                    found["value"],
                    low,
                    high,
                    len(pair["accuracies"]),
                    "law",
                    path,
                    names,
                    "runs" if low is not None else "",
                    style="change",
                )
            )
        rows.append([f"{pair['a']} − {pair['b']}", span, *cells])
    if not rows:
        return None
    head = ["pair", "at accuracies", "forgetting", TITLES["forward_kl"]]
    note = (
        "Differences at equal accuracy on the new task, along the methods' own trajectories; pairs without a common accuracy are "
        "left out. Without intervals where a trajectory is made of the ends of several runs."
    )
    return Table(f"{study.name}-law-matched", "At equal accuracy on the new task", head, rows, 2, [note])


def _draw(study: Study, points: list[Point], group: Mapping[str, Any]) -> Any:
    import numpy as np

    figure, axes = drawing.panels(1, 2, height=2.7, sharey=True)
    fitted, still = moved(points)
    for panel, direction in zip(axes[0], DIRECTIONS, strict=True):
        for method in study.methods:
            own = [p for p in fitted if p.method == method and getattr(p, direction) is not None]
            if own:
                style = drawing.style_of(method, study.methods, study.colors)
                panel.plot(
                    [getattr(p, direction) for p in own],
                    [p.forgetting for p in own],
                    linestyle="none",
                    alpha=0.7,
                    label=method,
                    **style,
                )
        if still:
            panel.plot(0, 0, "x", color=drawing.INK, markersize=6, label="never moved, not fitted")
        cloud = group["everything"][direction]
        coefficients = cloud.get("fits", {}).get("quadratic", {}).get("coefficients")
        if coefficients:
            grid = np.linspace(0, max(getattr(p, direction) for p in fitted if getattr(p, direction) is not None), 200)
            values = coefficients["a"] + coefficients["b"] * grid + coefficients["c"] * grid**2
            panel.plot(grid, values, LINES["quadratic"][0], color=drawing.INK, linewidth=1, label="quadratic fit")
        if cloud.get("fits", {}).get("monotone", {}).get("knots"):
            knots = zip(*cloud["fits"]["monotone"]["knots"], strict=True)
            panel.plot(*knots, LINES["monotone"][0], color=drawing.INK, linewidth=1, label="monotone fit")
        r2 = cloud.get("fits", {}).get("quadratic", {}).get("r2", {}).get("value")
        panel.set_title("too few points for a fit" if r2 is None else f"quadratic: R² {r2:.2f}".replace("-", "−"))
        panel.set_xlabel(f"{TITLES[direction]} on {group['inputs'].replace('_', ' ')} (nats a token)")
        panel.axhline(0, color=drawing.FAINT, linewidth=0.8, zorder=0)
        panel.grid()
    axes[0][0].set_ylabel("forgetting (accuracy lost)")
    drawing.legend_below(figure, *axes[0][0].get_legend_handles_labels())
    return figure


def missing(study: Study) -> list[Missing]:
    if _points(study)[0]:
        return []
    return [
        Missing("forgetting against drift", "no method that learned has both drift and retention (or several tasks) measured")
    ]
