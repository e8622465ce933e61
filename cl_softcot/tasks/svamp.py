"""SVAMP (Patel et al. 2021, arXiv 2103.07191): one-sentence word problems with an equation.

The source has no split. Here 300 of its items are for test and 70 for validation, chosen by the hash of the question: the
700 / 300 split of the hub's copy comes from a shuffle that cannot be made again without it. So local files and the hub give
the same splits. Item chal-680 is left out: its answer is not that of its equation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property

from cl_softcot.tasks._judging import AnswerKind, Numbers
from cl_softcot.tasks._sources import Row, Source, SourceSettings, distinct_items, hub_id, question_of, read
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

LOCAL = Source(("SVAMP.json", "svamp/SVAMP.json"), "train", whole=True)
HUB_REST = Source(LOCAL.names, "test", whole=True)
MISLABELLED = {"chal-680"}
_TEST, _VALID = 0.3, 0.07


class Settings(SourceSettings):
    hub: str = hub_id("ChilleD/SVAMP")


class Svamp(Benchmark):
    family = "word_problems"
    typical_lengths = TextLengths(40, 8, 6, 1)
    knowledge = "skill"
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        for row in self._rows[split]:
            answer, equation = _answer(row), row.text("Equation")
            operations = sum(sign in "+-*/" for sign in equation.split())
            key, where = row.text("ID"), row.where
            yield self.make(split, key, _question(row), [equation], answer, where=where, field="Answer", hops=operations)

    def answers(self, example: Example) -> AnswerKind:
        return Numbers()

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        rows = [*read(self.settings, LOCAL), *(read(self.settings, HUB_REST) if self.settings.path is None else ())]
        rows = [row for row in distinct_items(rows, _key) if row.text("ID") not in MISLABELLED]
        rows.sort(key=lambda row: hashlib.sha256(_key(row).encode()).digest())
        n_test, n_valid = round(_TEST * len(rows)), round(_VALID * len(rows))
        return {"test": rows[:n_test], "valid": rows[n_test : n_test + n_valid], "train": rows[n_test + n_valid :]}


def _question(row: Row) -> str:
    body = row.text("Body")
    return f"{body}{'' if body.endswith(('.', '!', '?', ',')) else '.'} {row.text('Question')}"


def _key(row: Row) -> str:
    return question_of(_question(row))


def _answer(row: Row) -> str:
    """Answers are written 51.0 and mean 51."""
    try:
        value = float(row.text("Answer"))
    except ValueError:
        raise row.wrong(f"field 'Answer' should be a number (got {row.take('Answer')!r:.60})") from None
    return str(int(value)) if value.is_integer() else str(value)
