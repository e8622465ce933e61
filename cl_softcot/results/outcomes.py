"""Right and wrong answers of a run's last row, question by question."""

from __future__ import annotations

from pathlib import Path

from cl_softcot.errors import UserError
from cl_softcot.results import kept
from cl_softcot.results.folder import RunFolder
from cl_softcot.statistics.paired import Unit


def scores_of_run(folder: str | Path, row: int | None = None) -> dict[Unit, float]:
    """Outcomes (1 right, 0 not) of every test question of a finished run's stream, after an experience (None: the last).

    Raises:
        UserError: if the folder has no ``result.json``, or the row's predictions are missing.
    """
    folder = Path(folder)
    record = kept.record(folder)
    if record is None:
        raise UserError("this run is not finished: it has no result.json", where=str(folder), fix="start the experiment again")
    row = record.last_row if row is None else row
    run, answers = (record.seed, record.order), kept.answers(folder, row)
    if answers is None:
        raise UserError("nothing was kept of this row's answers", where=str(RunFolder(folder).answers(row)))
    return {
        Unit(run, p["task"], p["id"], p["meta"].get("cluster")): float(p["outcome"] == "right")
        for p in answers
        if p["set"] == "task"
    }
