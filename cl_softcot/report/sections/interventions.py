"""Are the thoughts used? What changes when they are truncated, zeroed, swapped, or replaced."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Figure, Number, Section, Table, Text
from cl_softcot.report.sections._diagnostics import grid, keys_at
from cl_softcot.report.studies import Study

DIAGNOSTIC = "interventions"
WHAT = {"accuracy_change": "Change in accuracy", "p_change": "Change in the probability of the gold answer"}
NOTE = (
    "Edited minus unedited thoughts, the same questions: truncate keeps a share of the thoughts, noise is as long as the "
    "thought was, swap gives another question's, filler the embedding of a token that says nothing. Near 0: the answer does "
    "not need them."
)


def section(study: Study) -> Section | None:
    kinds = keys_at(study, DIAGNOSTIC, "edits")
    tables = {
        what: grid(
            study, DIAGNOSTIC, f"{title} under each edit of the thoughts",
            {kind: (("edits", kind, what), "change") for kind in kinds},
            label=f"interventions-{what.split('_')[0]}",
        )
        for what, title in WHAT.items()
    }  # fmt: skip
    known = {what: table for what, table in tables.items() if table}
    if not known:
        return None
    figure = Figure(
        f"{study.name}-interventions", f"{NOTE} Lines: 95 % intervals.", lambda: _draw(study, known), next(iter(known.values()))
    )
    blocks: list[Block] = [Text(NOTE), figure, *known.values()]
    return Section("Are the thoughts used?", blocks)


def _draw(study: Study, tables: dict[str, Table]) -> Any:
    lines = max(len(table.head) - 1 for table in tables.values())
    methods = max(len(table.rows) for table in tables.values())
    figure, axes = drawing.panels(1, len(tables), height=0.9 + lines * (0.12 + 0.09 * methods), sharey=True)
    for panel, (what, table) in zip(axes[0], tables.items(), strict=True):
        edits = list(table.head[1:])
        for m, row in enumerate(table.rows):
            shift = (m + 0.5) / len(table.rows) * 0.7 - 0.35
            style = drawing.style_of(str(row[0]), study.methods, study.colors)
            cells = [(y, cell) for y, cell in enumerate(row[1:]) if isinstance(cell, Number) and cell.value is not None]
            for k, (y, cell) in enumerate(cells):
                around = drawing.arms(cell.value or 0.0, cell.low, cell.high)
                label = str(row[0]) if k == 0 else None
                panel.errorbar(
                    cell.value, y + shift, xerr=around, fmt=style["marker"], color=style["color"], linewidth=1, label=label
                )
        panel.axvline(0, color=drawing.FAINT, linewidth=0.8, zorder=0)
        panel.set_yticks(range(len(edits)), [edit.replace("_", " ") for edit in edits])
        panel.set_ylim(len(edits) - 0.5, -0.5)
        panel.set_xlabel(WHAT[what].lower())
        panel.grid(axis="x")
    drawing.legend_below(figure, *axes[0][0].get_legend_handles_labels())
    return figure
