"""Accuracy while turns go on: the worst that earlier tasks saw, and the area under their forgetting curves."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.measures import at, mean_at
from cl_softcot.report.sections._diagnostics import grid, measured, rows_in
from cl_softcot.report.studies import Result, Study

DIAGNOSTIC = "during"
COLUMNS = {"min-ACC ↑": "acc/min", "WC-ACC ↑": "acc/wc", "forgetting-curve area ↓": "forgetting/curve_area"}


def section(study: Study) -> Section | None:
    by_method = measured(study, DIAGNOSTIC)
    if not by_method:
        return None
    table = grid(
        study, DIAGNOSTIC, "Inside the turns", {head: ((name,), "fraction") for head, name in COLUMNS.items()}, label="during"
    )
    note = (
        "min-ACC: the worst accuracy of each earlier task since its own turn; WC-ACC: that, and the last task (De Lange et al. "
        "2022, "
        "arXiv 2205.13452); area: mean over time of what was lost. A minimum over few examples is too low by their noise."
    )
    figures = [_figure(study, order, by_method) for order in study.orders]
    blocks: list[Block] = [Text(note), *([table] if table else []), *filter(None, figures)]
    return Section("Inside the turns", blocks)


def _figure(study: Study, order: str, by_method: dict[str, list[Result]]) -> Figure | None:
    tasks, rows = study.orders[order], []
    for method, runs in by_method.items():
        mine = [run for run in runs if run.order == order]
        rows += _points(study, method, mine, tasks) if mine else []
    if not rows:
        return None
    title = f"Accuracy while turns go on, task order {order}"
    data = Table(f"{study.name}-during-{order}", title, ["method", "step", *tasks], rows, text=2)
    caption = f"{title}, means over seeds; each line begins in its task's own turn. Bands: 95 % intervals over runs."
    return Figure(f"{study.name}-during-{order}", caption, lambda: _draw(study, tasks, data), data)


def _points(study: Study, method: str, runs: list[Result], tasks: list[str]) -> list[list[Cell]]:
    """A row for each point; steps are counted since the start of the stream."""
    found: list[list[Cell]] = []
    start = 0
    for row, numbers in rows_in(runs[0], DIAGNOSTIC).items():
        for place, step in enumerate(numbers["steps"]):
            path = ("diagnostics", DIAGNOSTIC, "rows", row, "accuracy")
            known = at(runs[0], path) or {}
            cells: list[Cell] = [mean_at(study, runs, (*path, task, place)) if task in known else "–" for task in tasks]
            found.append([method, str(start + step), *cells])
        start += numbers["steps"][-1]
    return found


def _draw(study: Study, tasks: list[str], data: Table) -> Any:
    columns = len(tasks) if len(tasks) <= 3 else 2 if len(tasks) == 4 else 3
    figure, axes = drawing.panels(-(-len(tasks) // columns), columns, height=1.9, sharey=True, sharex=True)
    for k, panel in enumerate(axes.flat):
        if k >= len(tasks):
            panel.set_visible(False)
            continue
        for method in dict.fromkeys(str(row[0]) for row in data.rows):
            mine = [(int(str(row[1])), row[2 + k]) for row in data.rows if row[0] == method]
            known = [(x, c) for x, c in mine if isinstance(c, Number) and c.value is not None]
            style = drawing.style_of(method, study.methods, study.colors)
            low = [c.value if c.low is None else c.low for _, c in known]
            high = [c.value if c.high is None else c.high for _, c in known]
            panel.fill_between([x for x, _ in known], low, high, color=style["color"], alpha=0.12, linewidth=0)
            panel.plot([x for x, _ in known], [c.value for _, c in known], label=method, **style)
        panel.set_title(tasks[k])
        panel.set_ylim(-0.03, 1.03)
        if k + columns >= len(tasks):
            panel.set_xlabel("optimiser steps since the start")
        panel.grid(axis="y")
    for panel in axes[:, 0]:
        panel.set_ylabel("accuracy, as used")
    drawing.legend_below(figure, *axes[0][0].get_legend_handles_labels())
    return figure
