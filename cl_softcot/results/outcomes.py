"""Right and wrong answers of a run's last row, question by question."""

from __future__ import annotations

from pathlib import Path

from cl_softcot.errors import UserError
from cl_softcot.results import kept
from cl_softcot.statistics.paired import Unit


def scores_of_run(folder: str | Path, row: int | None = None) -> dict[Unit, float]:
    """Outcomes (1 right, 0 not) of every test question of a finished run's stream, after an experience (None: the last).

    Raises:
        UserError: if the folder has no ``result.json``, or the row's predictions are missing.
    """
    folder = Path(folder)
    result = kept.result(folder)
    if result is None:
        raise UserError("this run is not finished: it has no result.json", where=str(folder), fix="start the experiment again")
    row = len(result["accuracy"]["matrix"]) - 1 if row is None else row
    run, answers = (result["seed"], result["order"]), kept.answers(folder, row)
    if answers is None:
        raise UserError("nothing was kept of this row's answers", where=str(folder / "predictions" / f"row_{row}.jsonl"))
    return {
        Unit(run, p["task"], p["id"], p["meta"].get("cluster")): float(p["outcome"] == "right")
        for p in answers
        if p["set"] == "task"
    }
