"""Spurious or true forgetting: how much of a lost task comes back within a few steps, and what anybody would learn in them."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.contrasts import within
from cl_softcot.report.measures import Path, at, mean_at
from cl_softcot.report.sections._diagnostics import leaf, measured, rows_of, verdicts
from cl_softcot.report.studies import Result, Study
from cl_softcot.report.unanswered import why_not
from cl_softcot.results.unanswered import final_of_earlier

DIAGNOSTIC = "relearning"
NOTE = (
    "Each earlier task is learned again for {steps} optimiser steps on a few of its own training examples, from the method as it "
    "is and, as a control, from what it began with; nothing of it stays. What comes back at once was out of reach rather than "
    "gone (Zheng et al. 2025, arXiv 2501.13453); what the control reaches as well, anybody would learn in these steps. Something "
    "of the task is still there where the accuracy after these steps is above the control's."
)
ROLES = {
    "as_learned": "as learned", "before": "now", "after": "after the steps", "control_after": "control after the steps",
}  # fmt: skip


def section(study: Study) -> Section | None:
    by_method = measured(study, DIAGNOSTIC, "tasks")
    if not by_method:
        return None
    row = rows_of(by_method, DIAGNOSTIC)[-1]
    steps = at(next(iter(by_method.values()))[0], _place(row, "steps"))
    lines, ways = _over_tasks(study, by_method, row)
    untold = {method: why_not(runs, (final_of_earlier,), method) for method, runs in by_method.items()}
    words = verdicts(ways, "What is left of the earlier tasks, against the control", "less", "more", untold)
    head = ["method", *ROLES.values(), "lost", "regained", "regained by the control", "after: − control", "p (Holm)"]
    notes = [
        "Means over the earlier tasks of a run, then over runs. lost: now minus as learned; regained: after the steps minus now. "
        "p: two-sided, of no difference between the method and its control after the steps, over runs, corrected over the "
        "methods (Holm)."
    ]
    colors = [study.colors.get(str(line[0])) for line in lines]
    whole = Table(f"{study.name}-relearning", "Learning again what was lost", head, lines, 1, notes, colors)
    data = _by_task(study, by_method, row)
    caption = (
        f"Accuracy on each earlier task: as learned, now, and after {steps} steps of learning it again, against the control (the "
        "same steps from the method's beginning). Means over the runs in which it was an earlier task; lines: 95 % intervals."
    )
    blocks: list[Block] = [Text(NOTE.format(steps=steps)), *([Text(words)] if words else []), whole]
    blocks.append(Figure(data.name, caption, lambda: _draw(data), data))
    return Section("Gone, or out of reach? Relearning", [*blocks, data])


def _place(row: str, *inside: str) -> Path:
    return ("diagnostics", DIAGNOSTIC, "rows", row, *inside)


def _over_tasks(study: Study, by_method: dict[str, list[Result]], row: str) -> tuple[list[list[Cell]], dict[str, int | None]]:
    place = {key: _place(row, "tasks", "*", key, "value") for key in (*ROLES, "control_before")}
    found = within(study, by_method, place["after"], place["control_after"])
    lines: list[list[Cell]] = []
    for method, runs in by_method.items():
        cells: list[Cell] = [mean_at(study, runs, place[key]) for key in ROLES]
        for key, less in (("before", "as_learned"), ("after", "before"), ("control_after", "control_before")):
            cells.append(mean_at(study, runs, place[key], "change", minus=place[less]))
        one = found.get(method)
        lines.append([method, *cells, one.difference if one else "–", one.p if one else "–"])
    return lines, {method: one.way for method, one in found.items()}


def _by_task(study: Study, by_method: dict[str, list[Result]], row: str) -> Table:
    rows: list[list[Cell]] = []
    tasks = dict.fromkeys(task for tasks in study.orders.values() for task in tasks)
    for task in tasks:
        for method, runs in by_method.items():
            mine = [run for run in runs if at(run, _place(row, "tasks", task))]
            if mine:
                cells = [leaf(study, mine, _place(row, "tasks", task, key)) for key in ROLES]
                shares = [leaf(study, mine, _place(row, "tasks", task, key), "ratio") for key in ("recovered", "control")]
                rows.append([task, method, *cells, *shares])
    head = ["task", "method", *ROLES.values(), "share of the loss regained", "the same of the control"]
    notes = ["Shares are told of the runs whose loss is shown (its interval over test examples leaves 0 out); n says how many."]
    return Table(f"{study.name}-relearning-tasks", "Learning again, by task", head, rows, 2, notes)


def _draw(data: Table) -> Any:
    tasks = list(dict.fromkeys(str(row[0]) for row in data.rows))
    methods = list(dict.fromkeys(str(row[1]) for row in data.rows))
    columns = min(4, len(tasks))
    figure, axes = drawing.panels(-(-len(tasks) // columns), columns, height=0.8 + 0.26 * len(methods), sharey=True)
    marks = {"as learned": ("D", "none"), "now": ("o", "#D55E00"), "after the steps": (">", "#0072B2")}
    marks["control after the steps"] = ("x", drawing.INK)
    for k, panel in enumerate(axes.flat):
        if k >= len(tasks):
            panel.set_visible(False)
            continue
        for line in (line for line in data.rows if line[0] == tasks[k]):
            for c, (role, (marker, color)) in enumerate(marks.items()):
                cell, y = line[2 + c], methods.index(str(line[1])) + 0.18 * (c - 1.5)
                if isinstance(cell, Number) and cell.value is not None:
                    ink = drawing.INK if color == "none" else color
                    panel.errorbar(
                        cell.value, y, xerr=drawing.arms(cell.value, cell.low, cell.high), fmt=marker, color=ink,
                        markerfacecolor=color, elinewidth=0.7, label=role,
                    )  # fmt: skip
        panel.set_title(tasks[k])
        panel.set_xlim(-0.03, 1.03)
        panel.set_yticks(range(len(methods)), methods)
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.set_xlabel("accuracy")
        panel.grid(axis="x")
    handles = {label: h for panel in axes.flat for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    drawing.legend_below(figure, list(handles.values()), list(handles))
    return figure
