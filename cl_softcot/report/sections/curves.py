"""Accuracy on every task over the experiences, with bands over seeds."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.measures import mean_at, note_on_intervals
from cl_softcot.report.studies import Study

RETENTION = "base's abilities"


def section(study: Study) -> Section:
    return Section("Over the experiences", [Text(note_on_intervals(study)), *(_figure(study, order) for order in study.orders)])


def _figure(study: Study, order: str) -> Figure:
    tasks = study.orders[order]
    rows: list[list[Cell]] = []
    for method, runs in study.by_method.items():
        runs = [run for run in runs if run.order == order]
        for i in range(len(tasks) + 1):
            cells = [
                mean_at(study, runs, ("accuracy", "matrix", i, j), interval=("accuracy", "intervals", i, j))
                for j in range(len(tasks))
            ]
            path = ("retention", "as_used", i)
            rows.append([method, str(i), *cells, mean_at(study, runs, (*path, "all"), interval=(*path, "all_interval"))])
    title = f"Accuracy over the experiences, task order {order}"
    data = Table(f"{study.name}-curves-{order}", title, ["method", "experience", *tasks, RETENTION], rows, text=2)
    caption = (
        f"{title}. Dashed line: the task's own turn. Last panel: retention of the base's own abilities, as used. Bands: 95 % "
        "intervals."
    )
    return Figure(f"{study.name}-curves-{order}", caption, lambda: _draw(study, tasks, data), data)


def _draw(study: Study, tasks: list[str], data: Table) -> Any:
    names = [*tasks, RETENTION]
    if not any(isinstance(row[-1], Number) and row[-1].value is not None for row in data.rows):
        names = tasks
    columns = len(names) if len(names) <= 4 else 4 if len(names) % 4 in (0, 3) else 3
    figure, axes = drawing.panels(-(-len(names) // columns), columns, height=1.75 if len(names) > columns else 2.2, sharey=True)
    for k, panel in enumerate(axes.flat):
        if k >= len(names):
            panel.set_visible(False)
            continue
        for method in study.methods:
            _line(
                panel,
                [row[2 + k] for row in data.rows if row[0] == method],
                drawing.style_of(method, study.methods, study.colors),
                method,
            )
        if k < len(tasks):
            panel.axvline(k + 1, color=drawing.FAINT, linewidth=0.8, linestyle="--", zorder=0)
        panel.set_title(names[k])
        panel.set_xticks(range(len(tasks) + 1), ["base", *map(str, range(1, len(tasks) + 1))])
        panel.set_ylim(-0.03, 1.03)
        if k + columns >= len(names):
            panel.set_xlabel("after experience")
        panel.grid(axis="y")
    for panel in axes[:, 0]:
        panel.set_ylabel("accuracy, as used")
    drawing.legend_below(figure, *axes[0][0].get_legend_handles_labels())
    return figure


def _line(panel: Any, cells: list[Cell], style: dict[str, Any], label: str) -> None:
    numbers = [(i, c) for i, c in enumerate(cells) if isinstance(c, Number) and c.value is not None]
    if not numbers:
        return
    xs = [i for i, _ in numbers]
    ends = [(c.value if c.low is None else c.low, c.value if c.high is None else c.high) for _, c in numbers]
    panel.fill_between(xs, *zip(*ends, strict=True), color=style["color"], alpha=0.13, linewidth=0)
    panel.plot(xs, [c.value for _, c in numbers], label=label, **style)
