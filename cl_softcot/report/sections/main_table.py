"""The main table: what each method learned, forgot and kept, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cl_softcot.report.content import Block, Cell, Missing, Number, Section, Table, Text
from cl_softcot.report.measures import (  # fmt: skip
    ACC,
    BWT,
    COSTS,
    FORGETTING,
    LEARNED,
    RETENTION,
    RETENTION_ALONE,
    ROUTING,
    UNANSWERED,
    drift,
    interquartile,
    mean,
    mean_at,
    note_on_intervals,
    otherwise,
    own_measures,
)
from cl_softcot.report.studies import Study
from cl_softcot.report.unanswered import told
from cl_softcot.results.two_readings import Readings, readings_of


def section(study: Study) -> Section:
    conventions = _conventions(study)
    untold = told(study.by_method)
    blocks: list[Block] = [*([Text(untold)] if untold else []), _outcomes(study), *conventions, _kept(study)]
    return Section("What was learned, forgotten and kept", blocks)


def _colors(study: Study) -> list[str | None]:
    return [study.colors.get(method) for method in study.methods]


def _outcomes(study: Study) -> Table:
    readings = readings_of(study.runs)
    head, rows = _columns(study, readings.other if readings and readings.differ else None)
    notes = [note_on_intervals(study), _LEGEND, *_notes_on(study, readings), *_own_meanings(study)]
    return Table(f"{study.name}-main", "Main table, as used", head, rows, notes=notes, colors=_colors(study))


def side_by_side(studies: Sequence[Study]) -> Table:
    """The main tables of several studies that were measured alike, in one."""
    rows: list[list[Cell]] = []
    readings = readings_of(run for study in studies for run in study.runs)
    for study in studies:
        head, own = _columns(study, readings.other if readings and readings.differ else None)
        rows += [[study.name, *row] for row in own]
    notes = [*dict.fromkeys(f"{study.name}: {note_on_intervals(study)}" for study in studies), _LEGEND]
    return Table("side-by-side", "All studies that were measured alike, as used", ["study", *head], rows, 2, notes)


def _own_meanings(study: Study) -> list[str]:
    """What the experiment's own metrics mean."""
    found = {name: m for run in study.runs for name, m in (run.metrics or {}).items()}
    return [f"{name}: {m.formula} ({m.unit}, {m.direction}; {m.source})." for name, m in found.items()]


def _notes_on(study: Study, readings: Readings | None) -> list[str]:
    """Which reading of the answers the numbers stand on, where they were read twice."""
    if readings is None:
        return []
    said = readings.in_words()
    if not readings.differ:
        shares = [mean(study, runs, UNANSWERED).value for runs in study.by_method.values()]
        most = max((share for share in shares if share is not None), default=0.0)
        said += f" (at the end at most {most:.3f} of a method's answers are unanswered)"
    return [f"{said[0].upper()}{said[1:]}."]


def _columns(study: Study, other: str | None) -> tuple[list[str], list[list[Cell]]]:
    """Head and rows of the main table; with the numbers in the ``other`` reading of the answers beside those of the headline."""
    beside = lambda *measures: [otherwise(m, other) for m in measures] if other else []  # noqa: E731
    shares = [replace(UNANSWERED, title=f"unanswered, {study.runs[0].headline}"), *beside(UNANSWERED)] if other else []
    first = [ACC, *beside(ACC)]
    judged = [one for measure in (LEARNED, BWT, FORGETTING, RETENTION) for one in (measure, *beside(measure))]
    others = [*judged, *shares, drift(study, "forward_kl"), *own_measures(study)]
    rows: list[list[Cell]] = []
    for method, runs in study.by_method.items():
        numbers: list[list[Cell]] = [[mean(study, runs, measure) for measure in some] for some in (first, others)]
        rows.append([method, str(len(runs)), *numbers[0], interquartile(study, runs), *numbers[1]])
    heads = [[measure.head for measure in some] for some in (first, others)]
    return ["method", "n", *heads[0], "IQM ↑", *heads[1]], rows


_LEGEND = (
    "ACC: mean accuracy on all tasks after the last (Lopez-Paz & Ranzato 2017); IQM: mean of the middle half of these over runs "
    "and tasks (Agarwal et al. 2021); learning accuracy: each task right after its own turn; BWT: Lopez-Paz & Ranzato, below 0 "
    "is forgetting; forgetting since learned: best accuracy from a task's own turn on minus the last; retention: accuracy on the "
    "base's own abilities; as used: with everything that the method brings; KL in nats a token."
)
_CONVENTIONS = {
    "forgetting/chaudhry_from_learned": "since learned ↓",
    "forgetting/chaudhry": "Chaudhry et al. 2018 ↓",
    "forgetting/avalanche": "Avalanche ↓",
    "forgetting/mammoth": "mammoth ↓",
    "bwt/gem": "BWT (GEM) ↑",
    "bwt/trace": "BWT (TRACE) ↑",
    "bwt/continuum": "BWT (Continuum) ↑",
}
_WHICH = (
    "Which forgetting? The headline is the best accuracy since a task's own turn minus the last, and not Chaudhry et al.'s "
    "original, whose best row may lie before the task's own turn. There a method of one copy a task answers as the base does: a "
    "base that is better at a task than the copy it gets would count as forgotten, though a copy never changes once it is made; "
    "and of any method it would count what was never learned. A maximum of noisy accuracies is too high by their noise; BWT "
    "(last minus own turn) has no maximum and is unbiased. Verdicts are given for both. Methods are ranked by neither alone: "
    "who learns nothing has nothing to forget (learning accuracy)."
)


def _conventions(study: Study) -> list[Block]:
    """Forgetting under every convention, with the reason for the headline; nothing where there is one task only."""
    rows: list[list[Cell]] = [
        [method, *(mean_at(study, runs, ("summary", name), "change") for name in _CONVENTIONS)]
        for method, runs in study.by_method.items()
    ]
    if not any(isinstance(cell, Number) and cell.value is not None for row in rows for cell in row):
        return []
    notes = [
        "Chaudhry: best row of all, the last left out; since learned: the same from the task's own turn on; Avalanche: own turn "
        "minus last, BWT with the other sign; mammoth: the last row may be the best, so it is never below 0; TRACE: the sum over "
        "all tasks but the last, divided by all; Continuum: mean over all later rows."
    ]
    title = "Forgetting and backward transfer under every convention"
    head = ["method", *_CONVENTIONS.values()]
    return [Text(_WHICH), Table(f"{study.name}-conventions", title, head, rows, notes=notes, colors=_colors(study))]


def _kept(study: Study) -> Table:
    routed = (ROUTING,) if any(run.routing_accuracy for run in study.runs) else ()
    columns = (RETENTION_ALONE, drift(study, "reverse_kl"), drift(study, "forward_kl", "weights_alone"), *routed, *COSTS)
    rows: list[list[Cell]] = [
        [method, *(mean(study, runs, measure) for measure in columns)] for method, runs in study.by_method.items()
    ]
    notes = [
        "Weights alone: the bare weights in plain chain of thought, an integrity check (of frozen ones they are the base's). "
        "Tokens: written ones; passes: sequential forward passes, thoughts included. Costs are means without intervals where "
        "they are counts."
    ]
    if routed:
        notes.append(
            "Routed right, of methods with one copy a task: the stream's questions that go to their own task's copy, at the end. "
            "Isolation never forgets by construction; this is what it costs."
        )
    head = ["method", *(measure.head for measure in columns)]
    return Table(f"{study.name}-kept", "Weights alone, and costs", head, rows, notes=notes, colors=_colors(study))


def missing(study: Study) -> list[Missing]:
    found = []
    for measure in (RETENTION, drift(study, "forward_kl"), drift(study, "reverse_kl")):
        without = [method for method, runs in study.by_method.items() if mean(study, runs, measure).value is None]
        if without:
            everywhere = len(without) == len(study.methods)
            who = "no method" if everywhere else f"not {', '.join(without)}"
            found.append(Missing(measure.title, f"{who}: the runs hold no such number (evaluate.retention, evaluate.drift)"))
    return found
