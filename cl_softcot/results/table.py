"""Records as a tidy table: a row a number. Only ``Results.to_dataframe`` needs pandas, which is imported when it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_softcot.results.record import VIEWS, Accuracy, RetentionRow, RunRecord

if TYPE_CHECKING:
    import pandas

COLUMNS = ("method", "order", "seed", "experience", "task", "measure", "value", "low", "high", "n", "reading")
GROUPS = ("all", "same_family", "unrelated")

# (experience, task, measure, value, interval, n)
Line = tuple[int, str | None, str, Any, Any, int | None]


def to_dataframe(records: Iterable[RunRecord]) -> pandas.DataFrame:
    """See ``Results.to_dataframe``."""
    import pandas

    rows = [
        (r.method, r.order, r.seed, *_in_columns(line), reading)
        for r in records
        for reading, line in lines_of(r)
        if _is_number(line[3])
    ]
    kinds = {"seed": "int64", "experience": "int64", "value": "float64", "low": "float64", "high": "float64", "n": "Int64"}
    texts = {name: "str" for name in ("method", "order", "task", "measure", "reading")}
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(kinds | texts)


def lines_of(record: RunRecord) -> Iterator[tuple[str | None, Line]]:
    """Every number of a record that belongs to an experience, with the reading of the answers that it stands on (None: on none);
    values may be missing."""
    head, other = record.headline, record.other_reading
    yield from _read(head, _accuracy(record.accuracy, record.tasks))
    yield from _read(head, _flips(record))
    for view in VIEWS:
        yield from _read(head, _retention(getattr(record.retention, view), view))
        yield from _read(None, _drift(record, view))
    for i, share in enumerate(record.routing_accuracy or []):
        yield None, (i, None, "routing_accuracy", share, None, None)
    yield from _read(head, _summary(record.summary, record.last_row))
    for name, value in record.cost.as_dict().items():
        yield None, (record.last_row, None, f"cost/{name}", value, None, None)
    if other:
        yield from _read(other.reading, _accuracy(other.accuracy, record.tasks))
        for view in VIEWS:
            yield from _read(other.reading, _retention(getattr(other.retention, view), view))
        yield from _read(other.reading, _summary(other.summary, record.last_row))


def _read(reading: str | None, lines: Iterable[Line]) -> Iterator[tuple[str | None, Line]]:
    return ((reading, line) for line in lines)


def _summary(summary: Mapping[str, Any], last: int) -> Iterator[Line]:
    for name, value in summary.items():
        if not name.endswith("_interval"):
            yield last, None, f"summary/{name}", value, summary.get(f"{name}_interval"), None


def _accuracy(accuracy: Accuracy, tasks: Sequence[str]) -> Iterator[Line]:
    for j, task in enumerate(tasks):
        n = accuracy.n[j] if accuracy.n else None
        for i, row in enumerate(accuracy.matrix):
            n = accuracy.asked[i][j] if accuracy.asked else n
            yield i, task, "accuracy", row[j], accuracy.intervals[i][j] if accuracy.intervals else None, n
            if accuracy.unanswered:
                yield i, task, "unanswered", accuracy.unanswered[i][j], None, n
            for group, (value, members) in (accuracy.by[i].get(task, {}) if accuracy.by else {}).items():
                yield i, task, f"accuracy/{group}", value, None, int(members)
        if accuracy.untrained:
            yield 0, task, "accuracy/untrained", accuracy.untrained[j], None, n
        if accuracy.untrained_unanswered:
            yield 0, task, "unanswered/untrained", accuracy.untrained_unanswered[j], None, n


def _flips(record: RunRecord) -> Iterator[Line]:
    for task, flips in (record.flips or {}).items():
        for since, rows in (("since_own", flips.since_own), ("since_base", flips.since_base)):
            for i, parts in (rows or {}).items():
                for part, value in parts.items():
                    yield int(i), task, f"flips/{since}/{part}", value, None, None


def _retention(rows: Sequence[RetentionRow | None], view: str) -> Iterator[Line]:
    for i, row in enumerate(rows):
        if row is None:
            continue
        for family, value in row.families.items():
            yield i, family, f"retention/{view}", value, (row.intervals or {}).get(family), row.n.get(family)
        for group in GROUPS:
            yield i, None, f"retention/{view}/{group}", getattr(row, group), getattr(row, f"{group}_interval"), None
        for family, count in (row.unanswered or {}).items():
            yield i, family, f"retention/{view}/unanswered", count, None, row.n.get(family)


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
