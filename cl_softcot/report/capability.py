"""Do capable models lose more? The same methods from several base models: what was lost against what there was to lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_softcot.report import drawing
from cl_softcot.report.content import Block, Cell, Figure, Number, Section, Table, Text
from cl_softcot.report.contrasts import HEAD, Contrast, contrasts, notes_of
from cl_softcot.report.measures import BWT, LEARNED, LOST, LOST_SHARE, Measure, mean, mean_at, note_on_intervals
from cl_softcot.report.studies import Result, Study, same_but_for_the_base

BASE = Measure("retention/as_used/base", "own abilities before learning", LOST.path, "fraction")
NOTE = (
    "The studies differ in the base model only. What a base can lose is what it could do before: its accuracy on its own "
    "abilities, which stands beside what was lost of it, as a difference and as a share: a stronger base may lose more because "
    "it has more. Accuracies are not corrected for guessing."
)


def section(studies: Sequence[Study]) -> Section | None:
    """Of the first study and those that were measured like it from another base; None if there is none."""
    alike = [studies[0], *(study for study in studies[1:] if same_but_for_the_base(studies[0], study))]
    methods = [method for method in alike[0].methods if all(method in study.by_method for study in alike)]
    rows = [_row(study, method) for method in methods for study in alike]
    if len(alike) < 2 or not any(isinstance(row[3], Number) and row[3].value is not None for row in rows):
        return None
    alike.sort(key=lambda study: _had(study, methods[0]).value or 0.0)  # the weakest base first
    rows = [_row(study, method) for method in methods for study in alike]
    measures = (BASE, LOST, LOST_SHARE, LEARNED, BWT)
    head = ["method", "study", "base model", *(measure.head for measure in measures)]
    notes = [*dict.fromkeys(f"{study.name}: {note_on_intervals(study)}" for study in alike)]
    data = Table("across-bases", "What was lost, and what there was to lose (as used)", head, rows, 3, notes)
    caption = "Own abilities lost against what the base had of them, one line a method, one point a base; lines: 95 % intervals."
    found = _contrasts(alike, methods)
    blocks: list[Block] = [
        Text(NOTE),
        *_in_words(found),
        Figure("across-bases", caption, lambda: _draw(alike[0], data), data),
        data,
    ]
    if found:
        lines = [_line(contrast) for contrast in found]
        title = f"Lost from the strongest base ({alike[-1].name}) minus lost from each other"
        blocks.append(Table("across-bases-differences", title, HEAD, lines, 2, notes_of(found)))
    return Section("Do capable models lose more?", blocks)


def _had(study: Study, method: str) -> Number:
    return mean_at(study, study.by_method[method], LOST.path)


def _row(study: Study, method: str) -> list[Cell]:
    runs, base = study.by_method[method], study.config.get("backbone") or {}
    numbers = [mean(study, runs, measure) for measure in (BASE, LOST, LOST_SHARE, LEARNED, BWT)]
    return [method, study.name, str(base.get("path", "")), *numbers]


def _contrasts(studies: Sequence[Study], methods: Sequence[str]) -> list[Contrast]:
    """The strongest base, which is the last, against each other; corrected over all of them."""
    sides: dict[str, tuple[Study, list[Result]]] = {f"{m}\0{s.name}": (s, s.by_method[m]) for m in methods for s in studies}
    pairs = [(f"{m}\0{studies[-1].name}", f"{m}\0{s.name}") for m in methods for s in studies[:-1]]
    return contrasts(sides, pairs, LOST)


def _line(contrast: Contrast) -> list[Cell]:
    (method, strong), weak = contrast.a.split("\0"), contrast.b.split("\0")[1]
    contrast.difference.more.update(a=strong, b=weak, method=method)
    verdict = {f"{contrast.a} better": f"{strong} lost less", f"{contrast.b} better": f"{strong} lost more"}
    said = verdict.get(contrast.verdict, contrast.verdict)
    return [
        f"{method}: {LOST.head}",
        f"{strong} − {weak}",
        contrast.difference,
        contrast.p,
        said,
        contrast.smallest,
        contrast.basis,
    ]


def _in_words(found: Sequence[Contrast]) -> list[Text]:
    if not found:
        return []
    said: dict[str, list[str]] = {}
    for contrast in found:
        method, pair = str(_line(contrast)[0]).split(":")[0], _line(contrast)[1]
        way = (
            "lost more from the stronger base"
            if contrast.verdict == f"{contrast.b} better"
            else "lost less from the stronger base"
        )
        words = way if contrast.shown else "no difference shown" if contrast.compared else contrast.verdict
        said.setdefault(words, []).append(f"{method} ({pair})")
    told = "; ".join(f"{words}: {', '.join(names)}" for words, names in said.items())
    return [Text(f"Of the base's own abilities: {told}.")]


def _draw(study: Study, data: Table) -> Any:
    figure, axes = drawing.panels(1, 2, height=2.6)
    methods = list(dict.fromkeys(str(row[0]) for row in data.rows))
    shift = 0.006  # methods of one base stand beside each other
    for panel, column in zip(axes[0], (4, 5), strict=True):
        for place, method in enumerate(methods):
            style = drawing.style_of(method, study.methods, study.colors)
            mine = [(row[3], row[column]) for row in data.rows if row[0] == method]
            known = [(x, y) for x, y in mine if isinstance(x, Number) and isinstance(y, Number)]
            known = [(x, y) for x, y in known if x.value is not None and y.value is not None]
            xs = [(x.value or 0.0) + shift * (place - (len(methods) - 1) / 2) for x, _ in known]
            for x, (_, y) in zip(xs, known, strict=True):
                around = drawing.arms(y.value or 0.0, y.low, y.high)
                panel.errorbar(x, y.value, yerr=around, fmt="none", ecolor=style["color"], elinewidth=0.8)
            panel.plot(xs, [y.value for _, y in known], label=method, **style)
        panel.set_xlabel("own abilities before learning (accuracy)")
        panel.set_ylabel(data.head[column].removesuffix(" ↓"))
        panel.axhline(0, color=drawing.FAINT, linewidth=0.8, zorder=0)
        panel.grid()
    top = [row[3].value for row in data.rows if isinstance(row[3], Number) and row[3].value is not None]
    axes[0][0].axline((min(top), min(top)), slope=1, color=drawing.FAINT, linestyle="--", linewidth=0.8, zorder=0)
    axes[0][0].set_title("dashed: all of it lost")
    drawing.legend_below(figure, *axes[0][0].get_legend_handles_labels())
    return figure
