"""Keeps the results of an experiment or a sweep in the repository: ``python tools/keep_results.py runs/sequence_a_seeds``.

Copies what a reader needs to check a number (resolved config, provenance, every ``result.json``, which questions were answered
right, table, figure and report), not the texts of the predictions and no checkpoints. Kept results are never edited; a new run
replaces the folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from cl_softcot.results.kept import OUTCOMES, QUESTIONS, packed

KEPT = Path(__file__).parents[1] / "experiments" / "results"
SWEEP_FILES = (
    "sweep.yaml",
    "sweep.json",
    "report.html",
    "**/winner.json",
    "**/trials/*/trial.json",
    "**/test/*/runs/*/result.json",
)


LAW_FILES = ("config.yaml", "experiment.json", "points.csv", "law.json", "table.txt", "law.png", "law.svg")


def keep(folder: Path) -> Path:
    runs = sorted((folder / "runs").glob("*/result.json"))
    unfinished = sorted(p.name for p in (folder / "runs").iterdir() if not (p / "result.json").exists())
    if not runs:
        raise SystemExit(f"{folder} holds no results")
    target = KEPT / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("config.yaml", "experiment.json", "table.txt", "comparison.png"):
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)
    if (folder / "shared" / "base.json").exists():  # fingerprints of the test data, which reports compare
        (target / "shared").mkdir()
        shutil.copy(folder / "shared" / "base.json", target / "shared" / "base.json")
    if (folder / "report").exists():
        shutil.copytree(folder / "report", target / "report", ignore=shutil.ignore_patterns("mlflow_run"))
    if unfinished:  # nothing is hidden: a reader sees which runs are missing
        (target / "unfinished.txt").write_text("".join(f"{name}\n" for name in unfinished))
    for result in runs:
        place = target / "runs" / result.parent.name
        place.mkdir(parents=True)
        shutil.copy(result, place / "result.json")
    keep_outcomes([result.parent for result in runs], target)
    return target


def keep_outcomes(runs: list[Path], target: Path) -> None:
    """Right and wrong of every question, a letter each; the questions' names once, since all runs answer the same."""
    names = None
    for run in runs:
        found = packed(run)
        if found is None:
            continue
        questions, rows = found
        if names not in (None, questions):
            raise SystemExit(f"{run} was not asked the same questions as the runs before it")
        names = questions
        (target / "runs" / run.name / OUTCOMES).write_text(json.dumps(rows) + "\n")
    if names:
        (target / QUESTIONS).write_text(json.dumps(names) + "\n")


def keep_sweep(folder: Path) -> Path:
    """The page, the settings, every trial's command and values, and the results of the winners' tests."""
    if not sorted(folder.rglob("winner.json")):
        raise SystemExit(f"{folder} is not finished: it has no winner")
    target = KEPT / "sweeps" / folder.name
    shutil.rmtree(target, ignore_errors=True)
    for pattern in SWEEP_FILES:
        for path in sorted(folder.glob(pattern)):
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return target


def keep_law(folder: Path) -> Path:
    """The settings, every number that was measured (points.csv holds what the trials do), the analysis and its figure."""
    missing = [name for name in LAW_FILES if not (folder / name).exists()]
    if missing:
        raise SystemExit(f"{folder} is not finished: it has no {missing[0]}")
    target = KEPT / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in LAW_FILES:
        shutil.copy(folder / name, target / name)
    return target


def keep_any(folder: Path) -> Path:
    """Whatever kind of result the folder holds."""
    if (folder / "sweep.yaml").exists():
        return keep_sweep(folder)
    return keep_law(folder) if (folder / "law.json").exists() else keep(folder)


if __name__ == "__main__":
    for argument in map(Path, sys.argv[1:]):
        print(keep_any(argument))
