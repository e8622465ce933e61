"""What a report says where too many answers are unanswered: beside a number, and in place of a verdict that rests on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cl_softcot.results.record import RunRecord
from cl_softcot.results.unanswered import (  # fmt: skip
    Cell,
    Unanswered,
    base,
    final,
    final_of_earlier,
    of_the_base,
    own_turns,
    own_turns_of_earlier,
    retention_base,
    retention_final,
    unanswered,
)

NOT_COMPARED = "not compared"
Cells = Callable[[RunRecord], Iterable[Cell]]
_LEARNED, _KEPT = (own_turns_of_earlier, final_of_earlier), (retention_base, retention_final)
# The answers that a difference in a measure rests on, each set by itself.
RESTS_ON: dict[str, tuple[Cells, ...]] = {
    "acc": (final,),
    "learning_accuracy": (own_turns,),
    "bwt/gem": _LEARNED,
    "forgetting/chaudhry_from_learned": _LEARNED,
    "retention/as_used/all": (retention_final,),
    "retention/as_used/lost": _KEPT,
}
_OF_THE_BASE = (base, retention_base)


def why_not(runs: Sequence[RunRecord], sets: Iterable[Cells], whose: str) -> str:
    """Why no difference may rest on these sets of answers, as ``8 of 8 of softcot's answers are unanswered``; empty where it may.

    Args:
        whose: the method's name, with what else tells its answers from others.
    """
    for cells in sets:
        mine = cells not in _OF_THE_BASE
        found = unanswered(runs, cells) if mine else of_the_base(runs, cells)
        if found and found.too_many:
            return found.of(f"{whose}'s answers" if mine else "the base's answers")
    return ""


def beside(runs: Sequence[RunRecord], path: tuple[str | int, ...]) -> str:
    """What is said beside an accuracy at a place of ``result.json``: ``8 of 8 unanswered``; empty where nothing is."""
    cells = _cells_at(path)
    if cells is None:
        return ""
    from_base = all(row == 0 for run in runs for _, row, _ in cells(run))
    found = of_the_base(runs, cells) if from_base else unanswered(runs, cells)
    return str(found) if found and found.too_many else ""


def _cells_at(path: tuple[str | int, ...]) -> Cells | None:
    if path[0] == "summary":
        return {"acc": final, "learning_accuracy": own_turns}.get(str(path[1]))
    if path[:2] == ("accuracy", "matrix") and len(path) == 4:
        return lambda run: [("task", int(path[2]) % len(run.accuracy.matrix), run.tasks[int(path[3])])]
    if path[:2] == ("retention", "as_used") and len(path) == 4:
        return lambda run: _of_group(run, int(path[2]), str(path[3]))
    return None


def _of_group(run: RunRecord, row: int, group: str) -> list[Cell]:
    measured, trained = run.retention_row("as_used", row), run.retention.same_family or []
    if measured is None or group not in ("all", "same_family", "unrelated"):
        return []
    place = row % len(run.retention.as_used)
    return [
        ("retention", place, family)
        for family in measured.families
        if group == "all" or (family in trained) == (group == "same_family")
    ]


def told(by_method: dict[str, list[RunRecord]]) -> str:
    """A sentence that names the rows of which too many answers are unanswered; empty where there is none."""
    runs = [run for own in by_method.values() for run in own]
    found: list[tuple[str, Unanswered | None]] = [
        ("the base on the stream's tasks", of_the_base(runs)),
        ("the base on its own abilities", of_the_base(runs, retention_base)),
    ]
    for method, own in by_method.items():
        found.append((f"{method} at the end", unanswered(own, final)))
        found.append((f"{method} on the base's abilities at the end", unanswered(own, retention_final)))
    parts = [f"{who} ({one})" for who, one in found if one and one.too_many]
    if not parts:
        return ""
    return (
        f"More than a third of the answers hold none, which is not wrong: {'; '.join(parts)}. No difference that "
        "rests on them is claimed."
    )
