"""Every method against the chosen control, and against its own strategy in words."""

from __future__ import annotations

from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Figure, Section, Table, Text
from cl_softcot.report.contrasts import HEAD, UNTESTED, Contrast, contrasts, measures, notes_of, row_of
from cl_softcot.report.studies import Study, written_control


def section(study: Study) -> Section | None:
    if len(study.methods) < 2:
        return None
    blocks: list[Block] = []
    against = _found(study, [(method, study.control) for method in study.methods if method != study.control])
    if against:
        title = f"Differences from {study.control}, at the end"
        table = Table(f"{study.name}-differences", title, HEAD, [row_of(c, c.a) for c in against], 2, notes_of(against))
        caption = f"{title}; lines: 95 % intervals, not corrected for each other; filled: shown after correction (Holm)."
        blocks = [
            *map(Text, _in_words(against, study.control)),
            Figure(f"{study.name}-differences", caption, lambda: _draw(study, against), table),
            table,
        ]
    controls = [(method, written_control(study, method)) for method in study.methods]
    beside = _found(study, [(method, control) for method, control in controls if control and control != study.control])
    if beside:
        title = "Differences from the same strategy in words"
        rows = [row_of(c, f"{c.a} − {c.b}") for c in beside]
        blocks.append(Table(f"{study.name}-beside-words", title, HEAD, rows, 2, notes_of(beside)))
    return Section("Differences", blocks) if blocks else None


def _found(study: Study, pairs: list[tuple[str, str]]) -> list[Contrast]:
    sides = {method: (study, runs) for method, runs in study.by_method.items()}
    return [contrast for measure in measures(study) for contrast in contrasts(sides, pairs, measure)]


def _in_words(found: list[Contrast], control: str) -> list[str]:
    """A line a measure: who is better or worse than the control; numbers stand in the table."""
    lines = []
    for measure in dict.fromkeys(c.measure for c in found):
        mine = [c for c in found if c.measure is measure]
        said = {
            f"better than {control}": [c.a for c in mine if c.verdict == f"{c.a} better"],
            f"worse than {control}": [c.a for c in mine if c.verdict == f"{c.b} better"],
        }
        parts = [f"{words}: {', '.join(names)}" for words, names in said.items() if names]
        untold = [c for c in mine if not c.compared]
        for reason in dict.fromkeys(c.verdict for c in untold):
            names = [c.a for c in untold if c.verdict == reason]
            parts.append(f"{'all' if len(names) == len(mine) else ', '.join(names)} {reason}")
        for words, rest in (("no difference shown", [c for c in mine if c.compared and not c.shown and c.verdict != UNTESTED]),
                            (UNTESTED, [c for c in mine if c.verdict == UNTESTED])):  # fmt: skip
            parts += [f"{words}: {'all' if len(rest) == len(mine) else 'the others'}"] if rest else []
        lines.append(f"{measure.title} — {'; '.join(parts)}.")
    return lines


def _draw(study: Study, found: list[Contrast]) -> Any:
    chosen = list(dict.fromkeys(c.measure for c in found))
    methods = [method for method in study.methods if method != study.control]
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    figure, axes = drawing.panels(lines, columns, height=0.65 + 0.17 * len(methods), sharey=True)
    for k, panel in enumerate(axes.flat):
        if k >= len(chosen):
            panel.set_visible(False)
            continue
        mine = {c.a: c for c in found if c.measure is chosen[k]}
        for y, method in enumerate(methods):
            if method in mine:
                d, color = mine[method].difference, study.colors[method]
                fill = color if mine[method].shown else "none"
                around = drawing.arms(d.value or 0.0, d.low, d.high)
                panel.errorbar(d.value, y, xerr=around, fmt="o", color=color, markerfacecolor=fill, capsize=2, linewidth=1)
        panel.axvline(0, color=drawing.FAINT, linewidth=0.8, zorder=0)
        panel.set_title(chosen[k].head)
        panel.set_yticks(range(len(methods)), methods)
        panel.set_ylim(len(methods) - 0.5, -0.5)
        panel.set_xlabel("nats a token" if chosen[k].style == "nats" else "difference in accuracy")
        panel.grid(axis="x")
    return figure
