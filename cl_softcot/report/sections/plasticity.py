"""Can it still learn? A held-out task from here and from the method's beginning, in equal steps, beside the drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.contrasts import within
from cl_softcot.report.measures import Path, at, drift, mean_at
from cl_softcot.report.sections._diagnostics import leaf, measured, rows_of, verdicts
from cl_softcot.report.studies import Result, Study

DIAGNOSTIC = "plasticity"
NOTE = (
    "A task that the stream does not have is learned on a copy, in {steps} optimiser steps, once from the method as it is and "
    "once from what it began with (Dohare et al. 2024, Nature 632). Gain: accuracy on the probe task after minus before learning "
    "it. Ratio: gain now / gain from the beginning, below 1 where plasticity was lost; a mean over the runs whose gain from the "
    "beginning is shown. The difference of the accuracies after learning does not count against a method what it could do before."
)


def section(study: Study) -> Section | None:
    by_method = measured(study, DIAGNOSTIC, "gain_ratio")
    if not by_method:
        return None
    rows = rows_of(by_method, DIAGNOSTIC)
    divergence = drift(study, "forward_kl")
    head = [
        "method", "after experience", "gain ratio ↑", "gain now", "gain from the beginning",
        "accuracy after learning, now − from the beginning ↑", "p (Holm)", divergence.head,
    ]  # fmt: skip
    lines = [line for row in rows for line in _lines(study, by_method, row, divergence.path)]
    first = next(iter(by_method.values()))[0]
    task, steps = (at(first, ("diagnostics", DIAGNOSTIC, "rows", rows[-1], key)) for key in ("task", "steps"))
    notes = ["p: two-sided, of no difference in the accuracy after learning, over runs, corrected over the methods (Holm)."]
    data = Table(f"{study.name}-plasticity", f"Plasticity, beside drift (probe task: {task})", head, lines, 2, notes)
    last = _against_the_beginning(study, by_method, rows[-1])
    words = verdicts(
        {name: one.way for name, one in last.items()}, f"Learning {task} after all experiences",
        "less far than from the beginning", "further than from the beginning",
    )  # fmt: skip
    blocks: list[Block] = [Text(NOTE.format(steps=steps)), *([Text(words)] if words else [])]
    if any(isinstance(line[2], Number) and line[2].value is not None for line in lines):
        caption = (
            f"Gain ratio on {task} against drift, one point a method and experience; lines: 95 % intervals. Dashed: as much as "
            "from the beginning."
        )
        blocks.append(Figure(data.name, caption, lambda: _draw(study, data), data))
    return Section("Can it still learn? Plasticity", [*blocks, data])


def _place(row: str, *inside: str) -> Path:
    return ("diagnostics", DIAGNOSTIC, "rows", row, *inside)


def _against_the_beginning(study: Study, by_method: dict[str, list[Result]], row: str) -> dict[str, Any]:
    now, fresh = (_place(row, side, "after", "value") for side in ("now", "from_the_beginning"))
    return within(study, by_method, now, fresh)


def _lines(study: Study, by_method: dict[str, list[Result]], row: str, drift_at: Path) -> list[list[Cell]]:
    """A line a method, of what was measured after one experience."""
    found = _against_the_beginning(study, by_method, row)
    lines: list[list[Cell]] = []
    for method, runs in by_method.items():
        gains: Sequence[Cell] = [
            mean_at(study, runs, _place(row, side, "after", "value"), "change", minus=_place(row, side, "before", "value"))
            for side in ("now", "from_the_beginning")
        ]
        ratio = leaf(study, runs, _place(row, "gain_ratio"), "ratio")
        one = found.get(method)
        alone = leaf(study, runs, _place(row, "after_difference"), "change")  # of one run it has an interval over examples
        difference = alone if one is None or one.difference.n < 2 else one.difference
        kl = mean_at(study, runs, (*drift_at[:2], int(row), *drift_at[3:]), "nats")
        lines.append([method, row, ratio, *gains, difference, "–" if one is None else one.p, kl])
    return lines


def _draw(study: Study, data: Table) -> Any:
    figure, axes = drawing.panels(1, 1, width=drawing.COLUMN + 1.8, height=2.6)
    panel = axes[0][0]
    for method in dict.fromkeys(str(row[0]) for row in data.rows):
        style = drawing.style_of(method, study.methods, study.colors)
        points = [(row[-1], row[2], str(row[1])) for row in data.rows if row[0] == method]
        numbers = [(x, y, n) for x, y, n in points if isinstance(x, Number) and isinstance(y, Number)]
        known = [(x, y, x.value, y.value, n) for x, y, n in numbers if x.value is not None and y.value is not None]
        for k, (x, y, at_x, at_y, experience) in enumerate(known):
            sides = {"xerr": drawing.arms(at_x, x.low, x.high), "yerr": drawing.arms(at_y, y.low, y.high)}
            label = method if k == 0 else None
            panel.errorbar(at_x, at_y, **sides, fmt=style["marker"], color=style["color"], elinewidth=0.8, label=label)
            if len(known) > 1:
                panel.annotate(experience, (at_x, at_y), textcoords="offset points", xytext=(4, 3), fontsize=6.5)
    panel.axhline(1, color=drawing.FAINT, linestyle="--", linewidth=0.8, zorder=0)
    panel.axhline(0, color=drawing.FAINT, linewidth=0.8, zorder=0)
    panel.set_xlabel(f"{data.head[-1].removesuffix(' ↓')} (nats a token)")
    panel.set_ylabel("gain now / gain from the beginning")
    panel.grid()
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
