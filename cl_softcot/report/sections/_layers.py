"""What the sections about layers share: a number of each layer, a line a method, a panel a set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Number, Table
from cl_softcot.report.measures import Path, at
from cl_softcot.report.sections._diagnostics import leaf, measured, whole
from cl_softcot.report.studies import Study


def by_layer(
    study: Study, name: str, title: str, caption: str, sets: Mapping[str, Path], axis: str, top: float | None, label: str = ""
) -> Figure | None:
    """Numbers that stand as lists, one entry a layer, in places inside what a diagnostic found; None where there is none.

    Args:
        sets: words of a panel -> place of its list; top: upper end of the axis; label: of its files, else the diagnostic's name.
    """
    rows: list[list[Cell]] = []
    for method, runs in measured(study, name).items():
        for words, inside in sets.items():
            path = (*whole(runs[0], name), *inside)
            rows += [[method, words, str(k + 1), leaf(study, runs, (*path, k))] for k in range(len(at(runs[0], path) or []))]
    if not rows:
        return None
    data = Table(f"{study.name}-{label or name}", title, ["method", "of", "layer", axis], rows, text=3)
    return Figure(data.name, caption, lambda: _draw(study, data, axis, top), data)


def _draw(study: Study, data: Table, axis: str, top: float | None) -> Any:
    sets = list(dict.fromkeys(str(row[1]) for row in data.rows))
    columns = len(sets) if len(sets) <= 5 else 4
    figure, axes = drawing.panels(
        -(-len(sets) // columns), columns, height=1.9, sharey=True, width=drawing.PAGE if columns > 1 else 4
    )
    for k, panel in enumerate(axes.flat):
        if k >= len(sets):
            panel.set_visible(False)
            continue
        for method in dict.fromkeys(str(row[0]) for row in data.rows):
            mine = [(int(str(row[2])), row[3]) for row in data.rows if row[:2] == [method, sets[k]]]
            known = [(x, c) for x, c in mine if isinstance(c, Number) and c.value is not None]
            ends = [drawing.arms(c.value or 0.0, c.low, c.high) or [[0.0], [0.0]] for _, c in known]
            around = [[e[0][0] for e in ends], [e[1][0] for e in ends]]
            style = drawing.style_of(method, study.methods, study.colors)
            values = [c.value for _, c in known]
            panel.errorbar([x for x, _ in known], values, yerr=around, elinewidth=0.8, label=method, **style)
        panel.set_title(sets[k])
        panel.set_xlabel("layer")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylim(0, top)
        panel.grid(axis="y")
    for panel in axes[:, 0]:
        panel.set_ylabel(axis)
    handles = {label: h for panel in axes.flat for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    drawing.legend_below(figure, list(handles.values()), list(handles))
    return figure
