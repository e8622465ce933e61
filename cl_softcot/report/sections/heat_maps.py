"""The accuracy matrix R of every method, mean over seeds, one figure a task order."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Number, Section, Table
from cl_softcot.report.measures import mean_at
from cl_softcot.report.studies import Study


def section(study: Study) -> Section:
    return Section("Accuracy after every task", [_figure(study, order) for order in study.orders])


def _figure(study: Study, order: str) -> Figure:
    tasks = study.orders[order]
    names = ["base", *(f"{i}: {task}" for i, task in enumerate(tasks, start=1))]
    rows: list[list[Cell]] = []
    for method, runs in study.by_method.items():
        runs = [run for run in runs if run.order == order]
        for i, name in enumerate(names):
            cells = [
                mean_at(study, runs, ("accuracy", "matrix", i, j), interval=("accuracy", "intervals", i, j))
                for j in range(len(tasks))
            ]
            rows.append([method, name, *cells])
    title = f"Accuracy on each task (column) after each experience (row), task order {order}"
    data = Table(f"{study.name}-matrix-{order}", title, ["method", "after", *tasks], rows, text=2)
    seeds = ", ".join(map(str, study.seeds))
    caption = f"{title}: means over seeds {seeds}. Framed: right after a task's own turn; below it stands what became of it."
    return Figure(f"{study.name}-matrix-{order}", caption, lambda: _draw(study, names, tasks, data), data)


def _draw(study: Study, names: list[str], tasks: list[str], data: Table) -> Any:
    columns = min(4, len(study.methods))
    lines = -(-len(study.methods) // columns)
    figure, axes = drawing.panels(lines, columns, height=0.75 + 0.19 * len(names), sharex=True, sharey=True)
    image = None
    for k, panel in enumerate(axes.flat):
        if k >= len(study.methods):
            panel.set_visible(False)
            continue
        values = [[c.value for c in row[2:] if isinstance(c, Number)] for row in data.rows if row[0] == study.methods[k]]
        image = drawing.heat(panel, values, [(j + 1, j) for j in range(len(tasks))])
        panel.set_title(study.methods[k])
        panel.set_xticks(range(len(tasks)), tasks, rotation=35, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(labelbottom=k + columns >= len(study.methods))
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, label="accuracy, as used")
    return figure
