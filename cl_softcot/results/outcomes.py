"""Right and wrong answers of a run, question by question."""

from __future__ import annotations

from cl_softcot.errors import UserError
from cl_softcot.results import kept
from cl_softcot.results.record import RunRecord
from cl_softcot.statistics.paired import Unit


def scores_of_run(run: RunRecord, row: int = -1, kind: str = "task") -> dict[Unit, float] | None:
    """Outcomes (1 right, 0 not) of every question of a set, after an experience; None where nothing was kept of its answers.

    Args:
        row: of R; -1: the last.
        kind: ``task`` (the stream) or ``retention`` (the base's own abilities).

    Raises:
        UserError: if the record does not know its folder.
    """
    if run.folder is None:
        raise UserError(f"nobody knows where the answers of {run.method} are", fix="read the run with load_results(FOLDER)")
    answers = kept.answers(run.folder, row % len(run.accuracy.matrix))
    if answers is None:
        return None
    unit = lambda p: Unit((run.seed, run.order), p["task"], p["id"], (p.get("meta") or {}).get("cluster"))  # noqa: E731
    return {unit(p): float(p["outcome"] == "right") for p in answers if p["set"] == kind}
