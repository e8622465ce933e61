"""What the sections of diagnostics share: where their numbers stand, and tables of them over methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cl_softcot.report.content import Cell, Number, Style, Table, is_known
from cl_softcot.report.measures import Path, at, mean_at
from cl_softcot.report.studies import Result, Study
from cl_softcot.report.unanswered import NOT_COMPARED


def measured(study: Study, name: str, *inside: str) -> dict[str, list[Result]]:
    """The runs of each method that hold numbers of a diagnostic (those ``inside`` its last row), of those compared."""
    found = {}
    for method, runs in study.by_method.items():
        mine = [run for run in runs if at(run, ("diagnostics", name, "rows"))]
        mine = [run for run in mine if not inside or at(run, (*last(run, name), *inside)) is not None]
        if mine:
            found[method] = mine
    return found


def rows_in(run: Result, name: str) -> Mapping[str, Any]:
    """What a diagnostic found, by the experience."""
    return (run.diagnostics or {})[name]["rows"]


def last(run: Result, name: str) -> Path:
    """Where the numbers of the last row that was measured stand."""
    return ("diagnostics", name, "rows", str(max(map(int, rows_in(run, name)))))


def rows_of(by_method: Mapping[str, Sequence[Result]], name: str) -> list[str]:
    """The experiences after which a diagnostic was measured, in any run."""
    found = {row for runs in by_method.values() for run in runs for row in rows_in(run, name)}
    return sorted(found, key=int)


def verdicts(ways: Mapping[str, int | None], start: str, below: str, above: str, untold: Mapping[str, str] | None = None) -> str:
    """A sentence of the methods whose difference is below 0 (-1), above it (1), not shown (0), or not tested (None).

    Args:
        untold: methods that are not compared, and why.
    """
    reasons = {method: reason for method, reason in (untold or {}).items() if reason and method in ways}
    ways = {method: way for method, way in ways.items() if method not in reasons}
    said = {way: [method for method, found in ways.items() if found == way] for way in (-1, 1, 0, None)}
    parts = [f"{words}: {', '.join(said[way])}" for way, words in ((-1, below), (1, above)) if said[way]]
    if said[0]:
        parts.append(f"no difference shown: {', '.join(said[0]) if parts else 'all methods' if len(ways) > 1 else said[0][0]}")
    parts += [f"not tested, of one run: {', '.join(said[None])}"] if said[None] and parts else []
    parts += [f"{method} {NOT_COMPARED}: {reason}" for method, reason in reasons.items()]
    return f"{start} — {'; '.join(parts)}." if parts else ""


def whole(run: Result, name: str) -> Path:
    """Where the numbers over all tasks stand: ``pooled``, or those of the only task that was measured."""
    path = last(run, name)
    numbers = at(run, path)
    if "pooled" in numbers:
        return (*path, "pooled")
    tasks = [task for task, found in numbers.get("tasks", {}).items() if "skipped" not in found]
    return (*path, "tasks", tasks[0]) if len(tasks) == 1 else path


def leaf(study: Study, runs: Sequence[Result], path: Path, style: Style = "fraction") -> Number:
    """A ``{value, low, high}`` of a diagnostic: mean over runs; of a single run with its own interval over examples.

    Plain numbers are taken as they are.
    """
    found = at(runs[0], path)
    if not isinstance(found, Mapping):
        return mean_at(study, runs, path, style)
    one = mean_at(study, runs, (*path, "value"), style)
    if one.n == 1 and one.value is not None and None not in (found.get("low"), found.get("high")):
        return replace(one, low=found["low"], high=found["high"], covers="examples")
    return one


Columns = dict[str, tuple[Path, Style]]
"""Head of a column -> where its number stands inside the pooled numbers, and its style."""


def grid(study: Study, name: str, title: str, columns: Columns, *, notes: Sequence[str] = (), label: str = "") -> Table | None:
    """Methods down, numbers of a diagnostic across.

    None where no method has any of them.
    """
    rows: list[list[Cell]] = []
    for method, runs in measured(study, name).items():
        rows.append([method, *(leaf(study, runs, (*whole(runs[0], name), *path), style) for path, style in columns.values())])
    kept = [k for k in range(1, len(columns) + 1) if any(is_known(row[k]) for row in rows)]
    if not kept:
        return None
    head = ["method", *(head for k, head in enumerate(columns, start=1) if k in kept)]
    rows = [[row[0], *(row[k] for k in kept)] for row in rows]
    colors = [study.colors.get(str(row[0])) for row in rows]
    return Table(f"{study.name}-{label or name}", title, head, rows, notes=notes, colors=colors)


def keys_at(study: Study, name: str, *inside: str | int) -> list[str]:
    """Names that stand at a place inside the pooled numbers of any method, in their first order."""
    found: dict[str, None] = {}
    for runs in measured(study, name).values():
        here = at(runs[0], (*whole(runs[0], name), *inside))
        here = here if isinstance(here, Mapping) else {}
        found |= dict.fromkeys(k for k, v in here.items() if not (isinstance(v, Mapping) and "skipped" in v))
    return list(found)
