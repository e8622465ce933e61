"""Do facts go first, or skills? Changes of accuracy by what a task asks for."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Cell, Figure, Number, Section, Table, Text, is_known
from cl_softcot.report.contrasts import Within, within
from cl_softcot.report.measures import Path, at
from cl_softcot.report.sections._diagnostics import leaf, measured, rows_of, verdicts
from cl_softcot.report.studies import Result, Study
from cl_softcot.report.unanswered import why_not
from cl_softcot.results.unanswered import final_of_earlier, own_turns_of_earlier, retention_base, retention_final

DIAGNOSTIC = "facts_and_skills"
SETS = {
    "learned": "what the stream taught, since each task's own turn",
    "own_abilities": "the base's own abilities, since before learning",
    "unrelated": "of these, without the families of the stream",
}
RESTS_ON = dict.fromkeys(SETS, (retention_base, retention_final)) | {"learned": (own_turns_of_earlier, final_of_earlier)}
KINDS = {"facts": "facts", "skill": "skills", "unsaid": "tasks that do not say"}


def section(study: Study) -> Section | None:
    by_method = measured(study, DIAGNOSTIC, "learned")
    if not by_method:
        return None
    row = rows_of(by_method, DIAGNOSTIC)[-1]
    words, rows = [], []
    for part, what in SETS.items():
        found = within(study, by_method, _place(row, part, "facts", "value"), _place(row, part, "skill", "value"))
        rows += [_row(study, method, runs, row, part, found) for method, runs in by_method.items()]
        words.append(
            verdicts(
                {method: one.way for method, one in found.items()},
                f"Of {what}",
                "facts lost more than skills",
                "skills lost more than facts",
                {method: why_not(runs, RESTS_ON[part], method) for method, runs in by_method.items()},
            )  # fmt: skip
        )
    rows = [line for line in rows if any(is_known(cell) for cell in line[2:])]
    if not rows:
        return None
    kinds = [k for k in range(len(KINDS)) if any(is_known(row[2 + k]) for row in rows)]
    kept = [0, 1, *(2 + k for k in kinds), 2 + len(KINDS), 3 + len(KINDS)]
    head = ["method", "of", *KINDS.values(), "facts − skills", "p (Holm)"]
    notes = [
        "Change of accuracy at the end, means over the tasks of a kind; below 0 was forgotten. Tasks say themselves which they "
        f"are: {_tasks(by_method, row)}. p: two-sided, of no difference, over runs, corrected over the methods (Holm)."
    ]
    data = Table(
        f"{study.name}-facts-and-skills", "Change of accuracy, by what a task asks for", [head[k] for k in kept],
        [[line[k] for k in kept] for line in rows], 2, notes,
    )  # fmt: skip
    caption = "Change of accuracy at the end for facts (filled) and skills (outlined); lines: 95 % intervals."
    note = (
        "Facts are knowledge that stands in no question; skills are ways of working. The two were not measured on equally hard "
        "tasks and have room to fall by different amounts: a difference between them is one of these tasks."
    )
    blocks: list[Block] = [Text(note), *(Text(line) for line in words if line)]
    return Section("Facts or skills?", [*blocks, Figure(data.name, caption, lambda: _draw(study, data, len(kinds)), data), data])


def _place(row: str, *inside: str) -> Path:
    return ("diagnostics", DIAGNOSTIC, "rows", row, *inside)


def _row(study: Study, method: str, runs: list[Result], row: str, part: str, found: dict[str, Within]) -> list[Cell]:
    cells: list[Cell] = []
    for kind in KINDS:
        mine = [run for run in runs if at(run, _place(row, part, kind))]  # a kind may be the last task's own in some orders
        cells.append(leaf(study, mine, _place(row, part, kind), "change") if mine else "–")
    one = found.get(method)
    return [method, SETS[part], *cells, one.difference if one else "–", one.p if one else "–"]


def _tasks(by_method: dict[str, list[Result]], row: str) -> str:
    """Which tasks and families are of which kind."""
    members: dict[str, dict[str, None]] = {}
    for run in (run for runs in by_method.values() for run in runs):
        for part in ("learned", "own_abilities"):
            for kind, numbers in (at(run, _place(row, part)) or {}).items():
                members.setdefault(kind, {}).update(dict.fromkeys(numbers["tasks"]))
    return "; ".join(f"{KINDS[kind]}: {', '.join(names)}" for kind, names in sorted(members.items()))


def _draw(study: Study, data: Table, kinds: int) -> Any:
    parts = list(dict.fromkeys(str(row[1]) for row in data.rows))
    methods = list(dict.fromkeys(str(row[0]) for row in data.rows))
    figure, axes = drawing.panels(1, len(parts), height=0.9 + 0.24 * len(methods), sharey=True)
    for panel, part in zip(axes[0], parts, strict=True):
        for line in (line for line in data.rows if line[1] == part):
            color = study.colors[str(line[0])]
            for c, cell in enumerate(line[2 : 2 + min(2, kinds)]):
                if isinstance(cell, Number) and cell.value is not None:
                    y = methods.index(str(line[0])) + (0.16 if c else -0.16)
                    panel.errorbar(
                        cell.value, y, xerr=drawing.arms(cell.value, cell.low, cell.high), fmt="os"[c], color=color,
                        markerfacecolor="none" if c else color, elinewidth=0.8, capsize=2,
                    )  # fmt: skip
        panel.axvline(0, color=drawing.FAINT, linewidth=0.8, zorder=0)
        panel.set_title(part.replace(", ", ",\n", 1))
        panel.set_yticks(range(len(methods)), methods)
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.set_xlabel("change of accuracy")
        panel.grid(axis="x")
    return figure
