"""Differences between methods or studies: from single answers where the predictions are there, from whole runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cl_softcot.report.content import Number
from cl_softcot.report.measures import ACC, BWT, FORGETTING, LEARNED, LOST, RETENTION, Measure, Path, at, drift, value_of
from cl_softcot.report.studies import Result, Study
from cl_softcot.report.unanswered import NOT_COMPARED, RESTS_ON, why_not
from cl_softcot.results.outcomes import scores_of_run
from cl_softcot.statistics.many import Comparison, compare
from cl_softcot.statistics.paired import Unit

Scores = dict[Unit, float]
SETS = {
    ACC.name: "task",
    RETENTION.name: "retention",
    LOST.name: "retention",
}  # what stands in the predictions, question by question


UNTESTED = "one run: not tested"


@dataclass(frozen=True)
class Contrast:
    """One method against another in one measure.

    Attributes:
        difference: a - b; p: corrected; verdict: in words; shown: whether it is a difference.
        compared: whether the answers on both sides are enough for a verdict.
        basis: what was compared, ``questions`` or ``runs``.
    """

    measure: Measure
    a: str
    b: str
    difference: Number
    p: Number
    verdict: str
    smallest: Number
    basis: str
    note: str

    @property
    def shown(self) -> bool:
        return self.compared and self.verdict.endswith("better")

    @property
    def compared(self) -> bool:
        return not self.verdict.startswith(NOT_COMPARED)


def measures(study: Study) -> list[Measure]:
    return [ACC, LEARNED, BWT, FORGETTING, RETENTION, drift(study, "forward_kl"), drift(study, "reverse_kl")]


def contrasts(
    sides: Mapping[str, tuple[Study, Sequence[Result]]], pairs: Sequence[tuple[str, str]], measure: Measure
) -> list[Contrast]:
    """Differences of the pairs whose runs both have the measure, p-values corrected over all of them (Holm).

    Args:
        sides: under each name the study that its runs belong to, and the runs.
    """
    needed = dict.fromkeys(name for pair in pairs for name in pair)
    scores, basis = _scores({name: sides[name] for name in needed}, measure)
    pairs = [(a, b) for a, b in pairs if scores.get(a) and scores.get(b) and _common(scores[a], scores[b])]
    if not pairs:
        return []
    lines = compare(scores, pairs, higher_is_better=measure.better == "↑")
    return [_contrast(line, measure, basis, sides) for line in lines]


def _common(a: Scores, b: Scores) -> bool:
    return bool({unit.run for unit in a} & {unit.run for unit in b})


def _scores(sides: Mapping[str, tuple[Study, Sequence[Result]]], measure: Measure) -> tuple[dict[str, Scores], str]:
    """Scores of every side: of single questions if all sides have them, or of whole runs for all."""
    if measure.name in SETS:
        by_question = {name: _of_questions(runs, measure) for name, (_, runs) in sides.items()}
        if all(by_question.values()):
            return {name: dict(scores or {}) for name, scores in by_question.items()}, "questions"
    return {name: _of_runs(runs, measure) for name, (_, runs) in sides.items()}, "runs"


def _of_questions(runs: Sequence[Result], measure: Measure) -> Scores | None:
    """Right (1) or not (0) at the end; of what was lost, that of the base minus that at the end."""
    scores: Scores = {}
    for run in runs:
        now = scores_of_run(run, -1, SETS[measure.name])
        base = scores_of_run(run, 0, SETS[measure.name]) if measure.minus else None
        if now is None or (measure.minus and base is None):
            return None
        scores |= now if base is None else {unit: right - now[unit] for unit, right in base.items()}
    return scores


def _of_runs(runs: Sequence[Result], measure: Measure) -> Scores:
    values = {Unit((run.seed, run.order), "all"): value_of(run, measure) for run in runs}
    return {unit: float(value) for unit, value in values.items() if value is not None}


def _contrast(line: Comparison, measure: Measure, basis: str, sides: Mapping[str, tuple[Study, Sequence[Result]]]) -> Contrast:
    d = line.difference
    names = tuple(sides[side][0].relative(run) for side in (line.a, line.b) for run in sides[side][1])
    more: dict[str, Any] = {"a": line.a, "b": line.b, "basis": basis, "p": d.p, "se": d.se, "questions": d.n_questions}
    more |= {"minus": list(measure.minus)} if measure.minus else {}
    make: Callable[..., Number] = lambda value, how, style, **k: Number(  # noqa: E731
        value, n=d.n_runs, how=how, path=measure.path, runs=names, style=style, more=more, **k
    )
    difference = make(d.value, "paired difference", "change", low=d.low, high=d.high, covers=d.covers, note=d.note)
    # Runs that are all alike tell nothing about how far the next one would be off.
    reach = "nats" if measure.style == "nats" else "reach"
    smallest = make(line.smallest_shown if d.se else None, "smallest difference that would have been shown", reach)
    p = make(line.p_adjusted, "p, Holm", "p")
    reasons = (_why_not(side, measure, sides) for side in (line.a, line.b))
    reason = next(filter(None, reasons), "")
    verdict = f"{NOT_COMPARED}: {reason}" if reason else UNTESTED if d.p is None else line.verdict
    return Contrast(measure, line.a, line.b, difference, p, verdict, smallest, basis, d.note)


def _why_not(side: str, measure: Measure, sides: Mapping[str, tuple[Study, Sequence[Result]]]) -> str:
    """Why a side's answers bear no difference in the measure; empty where they do."""
    study, runs = sides[side]
    method, *elsewhere = side.split("\0")
    whose = f"{method} in {study.name}" if elsewhere else method
    return why_not(runs, RESTS_ON.get(measure.name, ()), whose)


@dataclass(frozen=True)
class Within:
    """Two numbers of the same runs, held against each other.

    Attributes:
        difference: mean over runs of the one minus the other, with its interval by itself.
        p: corrected over all methods of the call (Holm); empty with one run.
        way: 1 above, -1 below, 0 no difference shown; None with one run, of which none can be tested.
    """

    difference: Number
    p: Number
    way: int | None


def within(study: Study, by_method: Mapping[str, Sequence[Result]], path: Path, minus: Path) -> dict[str, Within]:
    """For each method what stands at ``path`` minus what stands at ``minus``, paired by run, p-values corrected over them."""
    scores: dict[str, Scores] = {}
    used: dict[str, list[Result]] = {}
    for method, runs in by_method.items():
        used[method] = [run for run in runs if at(run, path) is not None and at(run, minus) is not None]
        if used[method]:
            for side, place in ((method, path), (f"{method}\0", minus)):
                scores[side] = {Unit((run.seed, run.order), "all"): float(at(run, place)) for run in used[method]}
    found = {}
    for line in compare(scores, [(method, f"{method}\0") for method in used if used[method]]) if scores else ():
        d = line.difference
        known: dict[str, Any] = {"n": d.n_runs, "path": path, "runs": tuple(study.relative(run) for run in used[line.a])}
        known |= {"more": {"basis": "runs", "minus": list(minus), "p": d.p, "se": d.se}, "asked": len(by_method[line.a])}
        ends: dict[str, Any] = {"low": d.low, "high": d.high, "covers": d.covers, "note": d.note}
        difference = Number(d.value, how="difference in a run", style="change", **ends, **known)
        way = None if d.p is None else 0 if not line.verdict.endswith("better") else 1 if d.value > 0 else -1
        found[line.a] = Within(difference, Number(line.p_adjusted, how="p, Holm", style="p", **known), way)
    return found


def row_of(contrast: Contrast, first: str) -> list[Any]:
    """A line of a table of contrasts."""
    return [contrast.measure.head, first, contrast.difference, contrast.p, contrast.verdict, contrast.smallest, contrast.basis]


HEAD = ("measure", "method", "difference", "p (Holm)", "verdict", "smallest that would show", "from")
NOTES = (
    "Differences are paired by seed and task order, and by test question where the answers are on the disk; standard errors "
    "are clustered by question and by run (Miller 2024, arXiv 2411.00640). p: two-sided, corrected by Holm over the lines of "
    "the same measure; intervals are 95 % each by itself, so that one may leave zero out where no difference is shown.",
    "Smallest that would show: a difference below it could not have been shown with so many runs and questions, and may exist.",
)


def notes_of(found: Sequence[Contrast]) -> list[str]:
    """What holds of all lines, and what of some: of a measure, or of these of its methods."""
    of: dict[str, dict[str, list[str]]] = {}
    for contrast in found:
        for note in filter(None, contrast.note.split("; ")):
            of.setdefault(note, {}).setdefault(contrast.measure.title, []).append(contrast.a.split("\0")[0])
    lines = {title: sum(c.measure.title == title for c in found) for titles in of.values() for title in titles}
    told = []
    for note, titles in of.items():
        where = [t if len(names) == lines[t] else f"{t} ({', '.join(names)})" for t, names in titles.items()]
        told.append(f"{', '.join(where)}: {note}.")
    return [*NOTES, *told]
