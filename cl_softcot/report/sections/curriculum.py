"""Forgetting inside a curriculum: how earlier stages still work after later ones."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.measures import at
from cl_softcot.report.sections._diagnostics import leaf, measured, rows_in
from cl_softcot.report.studies import Result, Study

DIAGNOSTIC = "curriculum"


def section(study: Study) -> Section | None:
    rows = [row for method, runs in measured(study, DIAGNOSTIC).items() for row in _rows(study, method, runs)]
    if not rows:
        return None
    columns = max(len(row) for row in rows)
    head = ["method", "task order", "task", "after training at stage", *(f"answered at stage {s}" for s in range(columns - 4))]
    data = Table(
        f"{study.name}-curriculum",
        "Stage × stage: accuracy",
        head,
        [[*row, *["–"] * (columns - len(row))] for row in rows],
        text=4,
    )
    note = (
        "Each task has a matrix: rows are the stages of its training, in their order, columns the stages that it is answered "
        "at (a later stage has fewer written steps and more thoughts). What a column loses from its own row downwards, later "
        "stages cost it."
    )
    figure = Figure(
        f"{study.name}-curriculum",
        f"{data.title}, means over seeds. Framed: the stage that was just trained.",
        lambda: _draw(data),
        data,
    )
    lost = _forgetting(study)
    return Section("Forgetting inside the curriculum", [Text(note), figure, *([lost] if lost else [])])


def _rows(study: Study, method: str, runs: list[Result]) -> list[list[Cell]]:
    found: list[list[Cell]] = []
    for order in dict.fromkeys(run.order for run in runs):
        mine = [run for run in runs if run.order == order]
        for row, numbers in rows_in(mine[0], DIAGNOSTIC).items():
            path = ("diagnostics", DIAGNOSTIC, "rows", row)
            for line, stage in enumerate(numbers.get("trained", [])):
                cells = [leaf(study, mine, (*path, "accuracy", line, k)) for k in range(len(numbers["stages"]))]
                found.append([method, order, str(numbers["task"]), str(stage), *cells])
    return found


def _forgetting(study: Study) -> Table | None:
    """Mean over earlier stages of what was lost by the end of the turn, for each task."""
    rows: list[list[Cell]] = []
    for method, runs in measured(study, DIAGNOSTIC).items():
        for order in dict.fromkeys(run.order for run in runs):
            mine = [run for run in runs if run.order == order]
            for row, numbers in rows_in(mine[0], DIAGNOSTIC).items():
                path = ("diagnostics", DIAGNOSTIC, "rows", row, "forgetting", "mean")
                if at(mine[0], path):
                    cells = [leaf(study, mine, (*path, key), "change") for key in ("forgetting/chaudhry", "change")]
                    rows.append([method, order, str(numbers["task"]), *cells])
    head = ["method", "task order", "task", "forgetting of earlier stages (Chaudhry) ↓", "change since the stage's own turn ↑"]
    return Table(f"{study.name}-curriculum-forgetting", "What later stages cost earlier ones", head, rows, 3) if rows else None


def _draw(data: Table) -> Any:
    places = list(dict.fromkeys(tuple(map(str, row[:3])) for row in data.rows))
    columns = min(4, len(places))
    figure, axes = drawing.panels(-(-len(places) // columns), columns, height=1.25)
    image = None
    for k, panel in enumerate(axes.flat):
        if k >= len(places):
            panel.set_visible(False)
            continue
        rows = [row for row in data.rows if tuple(map(str, row[:3])) == places[k]]
        trained = [str(row[3]) for row in rows]
        values = [[cell.value for cell in row[4:] if isinstance(cell, Number)] for row in rows]
        frames = [(i, int(stage)) for i, stage in enumerate(trained) if int(stage) < len(values[0])]
        image = drawing.heat(panel, values, frames)
        several = len({place[1] for place in places}) > 1
        panel.set_title(f"{places[k][0]}\n{places[k][2]}" + (f" ({places[k][1]})" if several else ""))
        panel.set_xticks(range(len(values[0])))
        panel.set_yticks(range(len(trained)), trained)
        if k + columns >= len(places):
            panel.set_xlabel("answered at stage")
        if k % columns == 0:
            panel.set_ylabel("trained at stage")
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, label="accuracy")
    return figure
