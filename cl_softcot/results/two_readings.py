"""The two readings of the answers in records: which is the headline, and whether the other one says anything else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cl_softcot.results.record import VIEWS, Accuracy, Retention, RunRecord


@dataclass(frozen=True)
class Readings:
    """Attributes:
    headline, other: ``strict`` or ``flexible``.
    differ: whether a number of any run is another one in the other reading.
    """

    headline: str
    other: str
    differ: bool

    def in_words(self) -> str:
        """For the notes below a table."""
        if not self.differ:
            return f"the answers' two readings, {self.headline} (the headline) and {self.other}, give the same numbers"
        return (
            f"headline: the {self.headline} reading of the answers ({_MEANING[self.headline]}); {self.other}: "
            f"{_MEANING[self.other]}; unanswered: no answer can be read, which is not right and is not wrong either"
        )


_MEANING = {"strict": "an answer counts where the format was followed", "flexible": "what a person would read"}


def readings_of(records: Iterable[RunRecord]) -> Readings | None:
    """The two readings of some runs; None where one of them was read once, or they have not the same headline."""
    records = list(records)
    found = {(r.headline, r.other_reading.reading if r.other_reading else None) for r in records}
    if len(found) != 1:
        return None
    headline, other = found.pop()
    return None if other is None else Readings(headline, other, any(map(_differ, records)))


def _differ(record: RunRecord) -> bool:
    other = record.other_reading
    if other is None:
        return False
    same = _tasks(record.accuracy) == _tasks(other.accuracy) and _families(record.retention) == _families(other.retention)
    return not same


def _tasks(accuracy: Accuracy) -> tuple[object, ...]:
    return accuracy.matrix, accuracy.unanswered, accuracy.untrained, accuracy.untrained_unanswered


def _families(retention: Retention) -> list[object]:
    return [(row.families, row.unanswered) for view in VIEWS for row in getattr(retention, view) if row]
