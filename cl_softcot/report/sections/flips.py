"""Flips: questions that were answered right and now are not, and the other way round, less what guessing explains."""

from __future__ import annotations

from cl_softcot.report.content import Cell, Missing, Section, Table, Text, is_known
from cl_softcot.report.measures import mean_at, note_on_intervals
from cl_softcot.report.studies import Study

COLUMNS = {
    "flips/forgotten_true": "right → wrong since own turn ↓",
    "flips/gained_true": "wrong → right since own turn ↑",
    "flips/forgotten_true_since_base": "right → wrong since the base ↓",
    "flips/gained_true_since_base": "wrong → right since the base ↑",
}


def section(study: Study) -> Section | None:
    rows: list[list[Cell]] = [
        [method, *(mean_at(study, runs, ("summary", name), skip=True) for name in COLUMNS)]
        for method, runs in study.by_method.items()
    ]
    if not any(is_known(cell) for row in rows for cell in row[1:]):
        return None
    note = (
        "Fractions of the test questions, counted question by question and less what a guesser among the task's options would "
        "show (Harmon et al. 2025, arXiv 2510.17776). Where both are large, an accuracy that stands still hides an exchange."
    )
    colors = [study.colors.get(method) for method in study.methods]
    table = Table(
        f"{study.name}-flips",
        "Flips at the end",
        ["method", *COLUMNS.values()],
        rows,
        notes=[note_on_intervals(study)],
        colors=colors,
    )
    return Section("Which questions flipped", [Text(note), table])


def missing(study: Study) -> list[Missing]:
    if section(study):
        return []
    return [Missing("flips (right → wrong, wrong → right)", "these runs were made before flips were counted")]
