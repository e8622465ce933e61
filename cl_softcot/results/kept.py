"""Kept results: what is left of a study when its run folders are gone, a few small files, and how runs are read from either.

    config.yaml     the resolved experiment
    experiment.json versions, revision, fingerprint
    runs.jsonl.gz   the first line is of the study, each other one is a finished run, sorted by name:
                      {"kept": 1, "base": shared/base.json, "base_sha256": ..., "questions": ..., "unfinished": [run, ...]}
                      {"run": method.order.seed<n>, "result": result.json, "sha256": of that file, "outcomes": ...,
                       "other": {"reading": ..., "outcomes": ...}}
    report.json     the numbers of the report, each with its origin

``questions`` names the test questions once: set -> task -> [id, cluster or null] of each. ``outcomes`` has an entry for each row
of R: set -> task -> one letter a question, r(ight), w(rong) or u(nanswered), in the headline reading; ``other`` has the same in
the other one, where the answers were read twice. Predictions, which hold every text, are not kept; whatever is computed from
right and wrong answers can be computed again. ``keeping.py`` writes all this.

A run is named by its folder, ``STUDY/runs/<run>``, whether that folder is there or not. What is there comes first: a run folder
on disk is the truth. One that was taken from kept results has ``outcomes.json`` (and ``other_outcomes.json``) in place of
predictions, its study ``questions.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cl_softcot.errors import UserError
from cl_softcot.files import parse_json, read_json, read_jsonl, sha256_of, unpacked
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.folder import PACKED_SWEEP, ExperimentFolder, RunFolder
from cl_softcot.results.record import RunRecord, read_record

LETTERS = {"right": "r", "wrong": "w", "unanswered": "u"}
_WORDS = {letter: outcome for outcome, letter in LETTERS.items()}

Questions = dict[str, dict[str, list[list[Any]]]]
Outcomes = list[dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Kept:
    """What ``runs.jsonl.gz`` of a study holds; ``runs`` by their names, each the line that it has there."""

    questions: Questions | None
    base: dict[str, Any] | None
    base_sha256: str | None
    unfinished: list[str]
    runs: dict[str, dict[str, Any]]


def read(study: str | Path) -> Kept | None:
    """The packed runs of a study; None where it has none.

    Raises:
        UserError: if the file is damaged.
    """
    path = ExperimentFolder(Path(study)).packed
    try:
        stamp = path.stat()
    except OSError:
        return None
    return _read(path, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=4)  # a report asks for every run and row of a few studies
def _read(path: Path, _changed: int, _size: int) -> Kept:
    head, *runs = read_lines(path)
    if not isinstance(head, dict) or head.get("kept") != 1:
        raise UserError("not the kept runs of a study, or of a later version of this package", where=str(path))
    if not all(isinstance(line, dict) and isinstance(line.get("run"), str) and "result" in line for line in runs):
        raise UserError("a damaged file: a line is none of a kept run", where=str(path))
    known = {key: head.get(key) for key in ("questions", "base", "base_sha256")}
    return Kept(**known, unfinished=head.get("unfinished", []), runs={line["run"]: line for line in runs})


def read_lines(path: Path) -> list[Any]:
    """The values of a packed file, one a line.

    Raises:
        UserError: if it is damaged, or empty.
    """
    try:
        text = unpacked(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"a damaged file: {error}", where=str(path)) from None
    lines = [parse_json(line, f"{path}:{number}") for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError("an empty file", where=str(path))
    return lines


# ---------------------------------------------------------------------------------------------- a run, from either place


def packed_runs(study: str | Path) -> list[Path]:
    """The folders that the packed runs of a study had; none of them needs to be there."""
    kept = read(study)
    return [ExperimentFolder(Path(study)).run(name).path for name in kept.runs] if kept else []


def _line(run: Path) -> dict[str, Any] | None:
    study = RunFolder(run).experiment
    kept = read(study.path) if study else None
    return kept.runs.get(run.name) if kept else None


def result(run: str | Path) -> Any:
    """What ``result.json`` of a run holds; None if the run is not finished.

    Raises:
        UserError: if the file is not as the run wrote it.
    """
    path = RunFolder(Path(run)).result
    if path.exists():
        return Checksums(run).read_json(path)
    line = _line(Path(run))
    return line and line["result"]


def record(run: str | Path) -> RunRecord | None:
    """The record of a finished run, which knows its folder; None if the run is not finished.

    Raises:
        UserError: if its ``result.json`` is none, or not as the run wrote it.
    """
    found = result(run)
    return None if found is None else read_record(found, where=RunFolder(Path(run)).result, folder=run)


def result_sha256(run: str | Path) -> str:
    """SHA-256 of a finished run's ``result.json``."""
    path = RunFolder(Path(run)).result
    line = None if path.exists() else _line(Path(run))
    return line["sha256"] if line else sha256_of(path)


def base_record(study: Path) -> dict[str, Any]:
    """The fingerprints of the test data and of the base's answers (``shared/base.json``); empty where they are not known."""
    path = ExperimentFolder(study).shared.base
    if path.exists():
        return dict(read_json(path))
    kept = read(study)
    return kept.base or {} if kept else {}


def base_sha256(study: Path) -> str | None:
    """SHA-256 of ``shared/base.json``."""
    path = ExperimentFolder(study).shared.base
    if path.exists():
        return sha256_of(path)
    kept = read(study)
    return kept.base_sha256 if kept else None


# -------------------------------------------------------------------------------------------------- right and wrong answers


def outcomes(run: Path) -> tuple[Questions, Outcomes] | None:
    """The questions of a run and its letters, row by row; None where nothing was kept of its answers.

    Raises:
        UserError: if the rows of its predictions are not of the same questions in the same order, or not as the run wrote them.
    """
    folder = RunFolder(run)
    if folder.answers(0).exists():
        return _of_predictions(folder)
    study = ExperimentFolder(run.parent.parent)
    if folder.outcomes.exists() and study.questions.exists():
        return read_json(study.questions), read_json(folder.outcomes)
    line = _line(run)
    if not line or not line["outcomes"]:
        return None
    kept = read(study.path)
    assert kept and kept.questions  # written together
    return kept.questions, line["outcomes"]


def other_outcomes(run: Path) -> dict[str, Any] | None:
    """The letters of a run in the reading that is not the headline, {"reading": ..., "outcomes": ...}; None where its answers
    were read once.
    """
    folder = RunFolder(run)
    if folder.answers(0).exists():
        return _otherwise_of_predictions(folder)
    if folder.other_outcomes.exists():
        return dict(read_json(folder.other_outcomes))
    line = None if folder.outcomes.exists() else _line(run)
    return line and line.get("other")


def _otherwise_of_predictions(run: RunFolder) -> dict[str, Any] | None:
    rows: Outcomes = []
    reading = None
    while (path := run.answers(len(rows))).exists():
        letters: dict[str, dict[str, str]] = {}
        for line in read_jsonl(path):
            known = line.get("readings")
            if not known:
                return None
            reading = reading or _other_reading(run, known)
            mine = letters.setdefault(line["set"], {})
            mine[line["task"]] = mine.get(line["task"], "") + LETTERS[known[reading]["outcome"]]
        rows.append(letters)
    return {"reading": reading, "outcomes": rows}


def _other_reading(run: RunFolder, readings: Mapping[str, Any]) -> str:
    """Which of the two is not the headline, as the run's record says."""
    headline = (read_json(run.result) if run.result.exists() else {}).get("reading") or "strict"
    return next(reading for reading in readings if reading != headline)


def _of_predictions(run: RunFolder) -> tuple[Questions, Outcomes]:
    rows: Outcomes = []
    questions: Questions = {}
    while (path := run.answers(len(rows))).exists():
        asked: Questions = {}
        letters: dict[str, dict[str, str]] = {}
        for line in Checksums(run.path).read_jsonl(path):
            asked.setdefault(line["set"], {}).setdefault(line["task"], []).append([line["id"], line["meta"].get("cluster")])
            mine = letters.setdefault(line["set"], {})
            mine[line["task"]] = mine.get(line["task"], "") + LETTERS[line["outcome"]]
        if rows and asked != questions:
            raise UserError("these rows are not of the same questions in the same order", where=str(run.predictions))
        questions = asked
        rows.append(letters)
    return questions, rows


def answers(run: str | Path, row: int) -> list[dict[str, Any]] | None:
    """What was right and wrong in a row: the lines of the run's predictions, or where only outcomes were kept, the same without
    texts; None where neither is there.
    """
    run = Path(run)
    path = RunFolder(run).answers(row)
    if path.exists():
        return Checksums(run).read_jsonl(path)
    found = outcomes(run)
    if found is None or row >= len(found[1]):
        return None
    questions: Mapping[str, Any] = found[0]
    return [
        {"set": kind, "task": task, "id": name, "outcome": _WORDS[letter], "meta": {"cluster": cluster}}
        for kind, tasks in found[1][row].items()
        for task, letters in tasks.items()
        for (name, cluster), letter in zip(questions[kind][task], letters, strict=True)
    ]


def written(run: str | Path, row: int) -> int | None:
    """When what is known of a row's answers was written, in nanoseconds; None where nothing is."""
    folder, study = RunFolder(Path(run)), ExperimentFolder(Path(run).parent.parent)
    places = (folder.answers(row), folder.outcomes, study.packed)
    place = next((path for path in places if path.exists()), None)
    return place.stat().st_mtime_ns if place else None


# ------------------------------------------------------------------------------------------------------------------ sweeps


def sweep_files(sweep: str | Path) -> dict[str, Any]:
    """What a sweep's packed JSON files hold, by their paths in its folder; empty where it has none."""
    path = Path(sweep) / PACKED_SWEEP
    return {line["file"]: line["json"] for line in read_lines(path) if "json" in line} if path.exists() else {}
