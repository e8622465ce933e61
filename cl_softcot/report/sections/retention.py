"""What is left of the base's own abilities: families close to the stream's tasks, and those it never touches."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Number, Section, Table, is_known
from cl_softcot.report.measures import mean_at
from cl_softcot.report.studies import Study

KEYS = {"all": "all families", "same_family": "families of the stream", "unrelated": "unrelated families"}
VIEWS = {"as_used": "as used", "weights_alone": "weights alone"}


def section(study: Study) -> Section | None:
    rows: list[list[Cell]] = []
    for method, runs in study.by_method.items():
        numbers = []
        for view in VIEWS:
            path = ("retention", view, -1)
            numbers += [mean_at(study, runs, (*path, key), interval=(*path, f"{key}_interval")) for key in KEYS]
        rows.append([method, *numbers])
    if not any(is_known(cell) for row in rows for cell in row[1:]):
        return None
    head = ["method", *(f"{key}, {view}" for view in VIEWS.values() for key in KEYS.values())]
    colors = [study.colors.get(method) for method in study.methods]
    data = Table(f"{study.name}-retention", "Retention of the base's own abilities at the end", head, rows, colors=colors)
    caption = (
        "Accuracy on the base's own abilities at the end: filled as used, outlined with weights alone; lines: 95 % intervals. "
        "A new convention must cost some of the old one in families that the stream trains on; unrelated families have no such "
        "excuse."
    )
    return Section(
        "What is left of the base", [Figure(f"{study.name}-retention", caption, lambda: _draw(study, data), data), data]
    )


def _draw(study: Study, data: Table) -> Any:
    figure, axes = drawing.panels(1, len(KEYS), height=0.7 + 0.24 * len(data.rows), sharey=True)
    for k, (panel, title) in enumerate(zip(axes[0], KEYS.values(), strict=True)):
        for y, row in enumerate(data.rows):
            color = study.colors[str(row[0])]
            _bar(panel, y - 0.18, row[1 + k], {"color": color})
            _bar(panel, y + 0.18, row[1 + len(KEYS) + k], {"facecolor": "none", "edgecolor": color, "linewidth": 0.9})
        panel.set_title(title)
        panel.set_xlim(0, 1.03)
        panel.grid(axis="x")
    axes[0][0].set_yticks(range(len(data.rows)), [str(row[0]) for row in data.rows])
    axes[0][0].set_ylim(len(data.rows) - 0.5, -0.5)
    figure.supxlabel("accuracy", fontsize=8)
    return figure


def _bar(panel: Any, y: float, cell: Any, style: dict[str, Any]) -> None:
    if isinstance(cell, Number) and cell.value is not None:
        panel.barh(y, cell.value, height=0.32, **style)
        around = drawing.arms(cell.value, cell.low, cell.high)
        if around:
            panel.errorbar(cell.value, y, xerr=around, fmt="none", ecolor=drawing.INK, elinewidth=0.8)
