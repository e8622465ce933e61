"""The fields of a user's record as question, steps, answer and split. What is no text is never made one; it is a problem."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cl_softcot.errors import did_you_mean
from cl_softcot.tasks._tables import DataRow, Fault, shown
from cl_softcot.tasks.base import SPLITS, Split

_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "development"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_UNWRITABLE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")  # those that are no white space to a reader
_KNOWN = 20  # names of fields that a message lists at most


def no_field(field: str, key: str, known: Iterable[str], where: str, line: int = 0) -> Fault:
    """That a field is missing which the setting ``key`` names."""
    names = [name if name.isprintable() else shown(name) for name in known][:_KNOWN]
    also = ", or `steps: null` where there are none" if key == "steps" else ""
    return Fault(f"no field {field!r}{did_you_mean(field, names)}", where, f"map it in the YAML: `{key}: <field>`{also}", line)


@dataclass(frozen=True)
class Fields:
    """One record's. Each method gives None where it added to ``problems``."""

    record: DataRow
    problems: list[Fault]

    def wrong(self, text: str, fix: str | None = None) -> None:
        self.problems.append(Fault(text, self.record.where, fix, self.record.line))

    def text(self, field: str, key: str) -> str | None:
        """A text or a number, without white space around it; "" where the field is empty or null."""
        if not self._has(field, key):
            return None
        value = self.record.fields[field]
        text = "" if value is None else _plain(value, truth=key == "answer")
        if text is None:
            self.wrong(f"field {field!r} should be a text or a number (got {shown(value)})")
            return None
        return text if self._writable(field, text) else None

    def steps(self, field: str) -> tuple[str, ...] | None:
        """A list of texts or numbers, or a text with a step a line; empty ones are dropped. Null: there are none."""
        if not self._has(field, "steps"):
            return None
        value = self.record.fields[field]
        if value is not None and not isinstance(value, str | list):
            self.wrong(f"field {field!r} should be a list or a text (got {shown(value)})")
            return None
        found = []
        for step in value.splitlines() if isinstance(value, str) else value or []:
            text = _plain(step)
            if text is None:
                self.wrong(
                    f"field {field!r} should hold texts, and one of its steps is {shown(step)}",
                    "each step is a text or a number; leave out what is none",
                )
                return None
            found.append(text)
        return tuple(filter(None, found)) if all(self._writable(field, text) for text in found) else None

    def split(self, field: str) -> Split | None:
        """The split that a field names, by any of its usual names."""
        if not self._has(field, "split_field"):
            return None
        said = self.record.fields[field]
        split = _SPLITS.get(said.strip().casefold()) if isinstance(said, str) else None
        if split is None:
            self.wrong(f"split {shown(said)} is none of {', '.join(SPLITS)} (or validation, val, dev, training, testing)")
        return split

    def _has(self, field: str, key: str) -> bool:
        if field not in self.record.fields:
            self.problems.append(no_field(field, key, self.record.fields, self.record.where, self.record.line))
        elif field in self.record.twice:
            self.wrong(f"the field {field!r} stands in the row twice", "leave one of them out")
        else:
            return True
        return False

    def _writable(self, field: str, text: str) -> bool:
        for found in filter(None, (_UNWRITABLE.search(text), _CONTROL.search(text))):
            code = f"U+{ord(found[0]):04X}"
            what = "half of a surrogate pair, which no text can hold" if found[0] >= "\ud800" else "a control character"
            self.wrong(f"field {field!r} holds {code}, {what}", "take it out, or write the character that was meant")
            return False
        return True


def _plain(value: Any, *, truth: bool = False) -> str | None:
    """A text, or a number that is one, without white space around it; with ``truth`` also true and false. None: anything else."""
    if isinstance(value, bool) and not truth:
        return None
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return None
    return str(value).strip() if isinstance(value, str | int | float | Decimal) else None
