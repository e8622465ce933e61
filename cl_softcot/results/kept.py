"""Outcomes of runs in a few kilobytes: what kept results have in place of the predictions, which hold every text.

``questions.json`` of a study names the test questions once, ``outcomes.json`` of a run holds one letter a question and row:
r(ight), w(rong), u(nanswered). Whatever is computed from right and wrong answers can be computed again from these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import read_json, read_jsonl

QUESTIONS, OUTCOMES = "questions.json", "outcomes.json"
_LETTERS = {"right": "r", "wrong": "w", "unanswered": "u"}
_WORDS = {letter: outcome for outcome, letter in _LETTERS.items()}

Questions = dict[str, dict[str, list[list[Any]]]]  # set -> task -> [id, cluster or None] of each question


def packed(run: Path) -> tuple[Questions, list[dict[str, dict[str, str]]]] | None:
    """The questions of a run, and for each row set -> task -> letters; None where the run holds no predictions.

    Raises:
        UserError: if its rows are not of the same questions in the same order.
    """
    rows: list[dict[str, dict[str, str]]] = []
    questions: Questions = {}
    while (path := run / "predictions" / f"row_{len(rows)}.jsonl").exists():
        asked: Questions = {}
        letters: dict[str, dict[str, str]] = {}
        for line in read_jsonl(path):
            asked.setdefault(line["set"], {}).setdefault(line["task"], []).append([line["id"], line["meta"].get("cluster")])
            mine = letters.setdefault(line["set"], {})
            mine[line["task"]] = mine.get(line["task"], "") + _LETTERS[line["outcome"]]
        if rows and asked != questions:
            raise UserError("these rows are not of the same questions in the same order", where=str(path.parent))
        questions = asked
        rows.append(letters)
    return (questions, rows) if rows else None


def answers(study: Path, run: Path, row: int) -> list[dict[str, Any]] | None:
    """What was right and wrong in a row, as lines of predictions without their texts; None where nothing was kept."""
    if not (study / QUESTIONS).exists() or not (run / OUTCOMES).exists():
        return None
    questions: Mapping[str, Any] = read_json(study / QUESTIONS)
    return [
        {"set": kind, "task": task, "id": name, "outcome": _WORDS[letter], "meta": {"cluster": cluster}}
        for kind, tasks in read_json(run / OUTCOMES)[row].items()
        for task, letters in tasks.items()
        for (name, cluster), letter in zip(questions[kind][task], letters, strict=True)
    ]
