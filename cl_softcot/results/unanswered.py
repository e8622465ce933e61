"""How many of the answers that a number is made of hold none, and whether a difference may rest on it.

A number of a run is made of *cells*: the answers to a set of questions after an experience, as (``task`` or ``retention``, row,
name).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cl_softcot.metrics.unanswered import too_many
from cl_softcot.results import kept
from cl_softcot.results.record import RunRecord

Cell = tuple[str, int, str]


@dataclass(frozen=True)
class Unanswered:
    """Answers, and how many of them hold none."""

    count: int
    questions: int

    @property
    def too_many(self) -> bool:
        """No difference rests on them."""
        return too_many(self.count, self.questions)

    def __add__(self, other: Unanswered) -> Unanswered:
        return Unanswered(self.count + other.count, self.questions + other.questions)

    def __str__(self) -> str:
        return f"{self.count} of {self.questions} unanswered"

    def of(self, whose: str) -> str:
        """In words: ``whose`` is ``the base's answers`` or the like."""
        return f"{self.count} of {self.questions} of {whose} are unanswered"


# ------------------------------------------------------------------------------------- the cells that numbers are made of


def final(run: RunRecord) -> list[Cell]:
    """The stream's tasks at the end."""
    return [("task", run.last_row, task) for task in run.tasks]


def own_turns(run: RunRecord) -> list[Cell]:
    """Each task right after its own turn."""
    return [("task", i, task) for i, task in enumerate(run.tasks, start=1)]


def own_turns_of_earlier(run: RunRecord) -> list[Cell]:
    """Each task but the last right after its own turn: what forgetting is counted from."""
    return own_turns(run)[:-1]


def final_of_earlier(run: RunRecord) -> list[Cell]:
    """The same tasks at the end."""
    return final(run)[:-1]


def base(run: RunRecord) -> list[Cell]:
    """The stream's tasks, as the base answers them."""
    return [("task", 0, task) for task in run.tasks]


def retention_base(run: RunRecord) -> list[Cell]:
    """The base's own abilities before anything is learned."""
    return _retained(run, 0)


def retention_final(run: RunRecord) -> list[Cell]:
    """The base's own abilities at the end, as used."""
    return _retained(run, run.last_row)


def _retained(run: RunRecord, row: int) -> list[Cell]:
    measured = run.retention_row("as_used", row)
    return [("retention", row, family) for family in measured.families] if measured else []


# ----------------------------------------------------------------------------------------------------------------- counted


def unanswered(runs: RunRecord | Iterable[RunRecord], cells: Callable[[RunRecord], Iterable[Cell]]) -> Unanswered | None:
    """The answers of these cells of all the runs together; None where nobody knows."""
    runs = [runs] if isinstance(runs, RunRecord) else list(runs)
    return total(of_cell(run, cell) for run in runs for cell in cells(run))


def of_the_base(runs: Sequence[RunRecord], cells: Callable[[RunRecord], Iterable[Cell]] = base) -> Unanswered | None:
    """Of the base, which is the same in every run: each of its answers counts once."""
    return next((found for run in runs if (found := unanswered(run, cells))), None)


def total(found: Iterable[Unanswered | None]) -> Unanswered | None:
    """All of them together; None where one is not known, or there are none."""
    known = list(found)
    if not known or None in known:
        return None
    return sum((one for one in known if one), Unanswered(0, 0))


def of_cell(run: RunRecord, cell: Cell) -> Unanswered | None:
    """Of one cell: from the record, or where that does not hold it from the answers; None where neither is there."""
    kind, row, name = cell
    return (_of_task(run, row, name) if kind == "task" else _of_family(run, row, name)) or _of_answers(run, cell)


def _of_task(run: RunRecord, row: int, name: str) -> Unanswered | None:
    accuracy, j = run.accuracy, run.tasks.index(name)
    counts = accuracy.unanswered[row][j] if accuracy.unanswered else None
    questions = accuracy.asked[row] if accuracy.asked else accuracy.n
    return None if counts is None or questions is None else Unanswered(counts, questions[j])


def _of_family(run: RunRecord, row: int, name: str) -> Unanswered | None:
    kept_row = run.retention_row("as_used", row)
    if kept_row is None or not kept_row.unanswered or name not in kept_row.unanswered or name not in kept_row.n:
        return None
    return Unanswered(kept_row.unanswered[name], kept_row.n[name])


def _of_answers(run: RunRecord, cell: Cell) -> Unanswered | None:
    kind, row, name = cell
    written = kept.written(run.folder, row) if run.folder else None
    return _counted(run.folder, row, written).get((kind, name)) if run.folder and written is not None else None


@lru_cache(maxsize=1024)  # several numbers ask for the same rows
def _counted(run: Path, row: int, _written: int) -> dict[tuple[str, str], Unanswered]:
    found: dict[tuple[str, str], Unanswered] = {}
    for line in kept.answers(run, row) or []:
        key = (line["set"], line["task"])
        found[key] = found.get(key, Unanswered(0, 0)) + Unanswered(int(line["outcome"] == "unanswered"), 1)
    return found
