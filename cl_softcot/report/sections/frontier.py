"""Do thoughts hold several paths at once? Probability on the nodes of a graph after each number of thoughts."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.measures import at
from cl_softcot.report.sections._diagnostics import leaf, measured, whole
from cl_softcot.report.studies import Result, Study

DIAGNOSTIC = "frontier"
MASSES = {
    "at_depth": "as deep as the gold node",
    "other_depth": "reachable, at another depth",
    "unreachable": "not reachable",
    "gold": "the gold node",
}
MODES = {"thoughts": "behind thoughts", "written": "behind written steps"}


def section(study: Study) -> Section | None:
    rows = [row for method, runs in measured(study, DIAGNOSTIC).items() for row in _rows(study, method, runs)]
    if not rows:
        return None
    head = ["method", "behind", "steps", *MASSES.values(), "chance, at the gold depth", "candidates kept", "effective rank"]
    data = Table(f"{study.name}-frontier", "Probability mass after each number of steps", head, rows, text=3)
    note = (
        "After k steps were replaced by thoughts (or written), the k-th step is opened and the probability of every node's "
        "name is read, scaled to a sum of 1. A search in breadth would put mass on all nodes at the gold one's depth; "
        "candidates kept: perplexity of that distribution. Effective rank: of the thoughts (or states) over the examples (Roy "
        "& Vetterli 2007); near 1 they have collapsed."
    )
    figure = Figure(
        f"{study.name}-frontier", f"{data.title}; lines up and down: 95 % intervals.", lambda: _draw(study, data), data
    )
    return Section("One path or several?", [Text(note), figure, data])


def _rows(study: Study, method: str, runs: list[Result]) -> list[list[Cell]]:
    path = whole(runs[0], DIAGNOSTIC)
    found: list[list[Cell]] = []
    for mode, words in MODES.items():
        steps = at(runs[0], (*path, mode))
        for k in steps if isinstance(steps, dict) else ():
            here = (*path, mode, k)
            masses = [leaf(study, runs, (*here, "mass", name)) for name in MASSES]
            of = "thought" if at(runs[0], (*here, "effective_rank", "thought")) else "state"
            kept = leaf(study, runs, (*here, "candidates_kept"), "ratio")
            chance, rank = (
                leaf(study, runs, (*here, "mass_of_chance")),
                leaf(study, runs, (*here, "effective_rank", of, "plain"), "ratio"),
            )
            found.append([method, words, str(k), *masses, chance, kept, rank])
    return found


def _draw(study: Study, data: Table) -> Any:
    shown = [
        (m, b)
        for m in dict.fromkeys(str(r[0]) for r in data.rows)
        for b in MODES.values()
        if any(r[:2] == [m, b] for r in data.rows)
    ]
    figure, axes = drawing.panels(-(-len(shown) // 3), min(3, len(shown)), height=1.7, sharey=True)
    palette = {"at_depth": "#0072B2", "other_depth": "#E69F00", "unreachable": "#7F7F7F", "gold": "#009E73"}
    for k, panel in enumerate(axes.flat):
        if k >= len(shown):
            panel.set_visible(False)
            continue
        rows = [row for row in data.rows if (row[0], row[1]) == shown[k]]
        xs = [int(str(row[2])) for row in rows]
        for c, (key, words) in enumerate(MASSES.items()):
            shift = 0.05 * (c - 1.5)  # lines of equal numbers stand beside each other
            cells = [(x + shift, row[3 + c]) for x, row in zip(xs, rows, strict=True)]
            known = [(x, cell, cell.value) for x, cell in cells if isinstance(cell, Number) and cell.value is not None]
            ends = [drawing.arms(value, cell.low, cell.high) or [[0.0], [0.0]] for _, cell, value in known]
            around = [[pair[0][0] for pair in ends], [pair[1][0] for pair in ends]]
            at_x, values = [x for x, _, _ in known], [value for _, _, value in known]
            panel.errorbar(at_x, values, yerr=around, marker="osD^"[c], color=palette[key], elinewidth=0.8, label=words)
        panel.set_title(f"{shown[k][0]}, {shown[k][1]}")
        panel.set_xticks(xs)
        panel.set_xlim(min(xs) - 0.5, max(xs) + 0.5)
        panel.set_ylim(-0.05, 1.05)
        panel.set_xlabel("steps replaced or written")
        panel.grid(axis="y")
    axes[0][0].set_ylabel("probability mass")
    drawing.legend_below(figure, *axes[0][0].get_legend_handles_labels())
    return figure
