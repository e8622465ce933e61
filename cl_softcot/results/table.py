"""Records as a tidy table: a row a number. Only ``Results.to_dataframe`` needs pandas, which is imported when it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cl_softcot.results.record import VIEWS, RunRecord

if TYPE_CHECKING:
    import pandas

COLUMNS = ("method", "order", "seed", "experience", "task", "measure", "value", "low", "high", "n")
GROUPS = ("all", "same_family", "unrelated")

# (experience, task, measure, value, interval, n)
Line = tuple[int, str | None, str, Any, Any, int | None]


def to_dataframe(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """See ``Results.to_dataframe``."""
    import pandas

    rows = [(r.method, r.order, r.seed, *_in_columns(line)) for r in records for line in lines_of(r) if _is_number(line[3])]
    kinds = {"seed": "int64", "experience": "int64", "value": "float64", "low": "float64", "high": "float64", "n": "Int64"}
    texts = {name: "str" for name in ("method", "order", "task", "measure")}
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(kinds | texts)


def lines_of(record: RunRecord) -> Iterator[Line]:
    """Every number of a record that belongs to an experience; values may be missing."""
    yield from _accuracy(record)
    yield from _flips(record)
    for view in VIEWS:
        yield from _retention(record, view)
        yield from _drift(record, view)
    for i, share in enumerate(record.routing_accuracy or []):
        yield i, None, "routing_accuracy", share, None, None
    last = record.last_row
    for name, value in record.summary.items():
        if not name.endswith("_interval"):
            yield last, None, f"summary/{name}", value, record.summary.get(f"{name}_interval"), None
    for name, value in record.cost.as_dict().items():
        yield last, None, f"cost/{name}", value, None, None


def _accuracy(record: RunRecord) -> Iterator[Line]:
    accuracy = record.accuracy
    for j, task in enumerate(record.tasks):
        n = accuracy.n[j] if accuracy.n else None
        for i, row in enumerate(accuracy.matrix):
            yield i, task, "accuracy", row[j], accuracy.intervals[i][j] if accuracy.intervals else None, n
            if accuracy.unanswered:
                yield i, task, "unanswered", accuracy.unanswered[i][j], None, n
            for group, (value, members) in (accuracy.by[i].get(task, {}) if accuracy.by else {}).items():
                yield i, task, f"accuracy/{group}", value, None, int(members)
        if accuracy.untrained:
            yield 0, task, "accuracy/untrained", accuracy.untrained[j], None, n


def _flips(record: RunRecord) -> Iterator[Line]:
    for task, flips in (record.flips or {}).items():
        for since, rows in (("since_own", flips.since_own), ("since_base", flips.since_base)):
            for i, parts in (rows or {}).items():
                for part, value in parts.items():
                    yield int(i), task, f"flips/{since}/{part}", value, None, None


def _retention(record: RunRecord, view: str) -> Iterator[Line]:
    for i in range(len(getattr(record.retention, view))):
        row = record.retention_row(view, i)
        if row is None:
            continue
        for family, value in row.families.items():
            yield i, family, f"retention/{view}", value, (row.intervals or {}).get(family), row.n.get(family)
        for group in GROUPS:
            yield i, None, f"retention/{view}/{group}", getattr(row, group), getattr(row, f"{group}_interval"), None


def _drift(record: RunRecord, view: str) -> Iterator[Line]:
    for i in range(len(getattr(record.drift, view))):
        row = record.drift_row(view, i)
        for name, value in row.items():
            measure, _, prompts = name.rpartition("/")  # `forward_kl/<set>`
            if not measure.startswith("n_tokens/"):
                n = row.get(f"n_tokens/{name}")
                yield i, prompts if measure else None, f"drift/{view}/{measure or prompts}", value, None, n


def _in_columns(line: Line) -> tuple[Any, ...]:
    experience, task, measure, value, interval, n = line
    low, high = interval or (None, None)
    return experience, task, measure, value, low, high, n


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
