"""StrategyQA (Geva et al. 2021, arXiv 2101.02235): yes/no questions whose steps are left unsaid.

Test is the labelled dev part of the publication (229 questions), whatever splits a source cuts: its rows are pooled, and the
test questions are found by ``strategyqa_test.json`` (their ids, and hashes of their words). The hub's own cut is 70 / 30.
Validation is 200 of the other questions, chosen by hash. Questions come from a `term`, and a term's questions need the same
facts: training goes without the terms of the test part (``shared_terms``). SoftCoT's split (first 1,832 rows, last 458) is
another one; its numbers are not comparable to the question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from cl_softcot.errors import UserError
from cl_softcot.tasks._judging import AnswerKind, Choices
from cl_softcot.tasks._sources import Row, Source, SourceSettings, carve, distinct_items, hub_id, question_of, read
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

# Both are pooled: only in the publication's own files are they its training and dev part.
PARTS = (Source(("train.json", "strategyqa/train.json"), "train"), Source(("dev.json", "strategyqa/dev.json"), "test"))
N_VALID = 200


class Settings(SourceSettings):
    hub: str = hub_id("ChilleD/StrategyQA")
    steps: Literal["facts", "decomposition"] = Field("facts", description="what the written steps are")
    shared_terms: bool = Field(False, description="keep training questions on a term that the test part asks about too")
    hint: bool = Field(True, description="end the question with a line that asks for yes or no")


class StrategyQA(Benchmark):
    family = "commonsense"
    typical_lengths = TextLengths(20, 45, 6, 3)
    knowledge = "facts"
    n_options = 2
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        s = self.settings
        for row in self._rows[split]:
            question = f"{row.text('question')}\nAnswer with yes or no." if s.hint else row.text("question")
            raw = row.take(s.steps)
            steps = [raw.strip()] if isinstance(raw, str) and raw.strip() else row.texts(s.steps)
            hops = len(row.texts("decomposition")) if isinstance(row.take("decomposition", None), list) else None
            yield self.make(split, _id(row), question, steps, _yes_or_no(row), where=row.where, hops=hops)

    def answers(self, example: Example) -> AnswerKind:
        return Choices("Yes", "No")

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        pool = distinct_items((row for part in PARTS for row in read(self.settings, part)), _key)
        pool.sort(key=_hash)  # the same order from every source
        test = [row for row in pool if _is_test(row)]
        if len(test) != len(official_test()):
            raise UserError(
                f"task {self.name!r}: {len(test)} of the {len(official_test())} official test questions are there",
                where=self.settings.path or self.settings.hub,
                fix="give `path:` or `hub:` the whole data set (2,290 labelled questions)",
            )
        train, valid = carve([row for row in pool if not _is_test(row)], _key, N_VALID)
        if not self.settings.shared_terms:
            terms = {row.text("term").casefold() for row in test}
            train = [row for row in train if row.text("term").casefold() not in terms]
        return {"train": train, "valid": valid, "test": test}


@cache
def official_test() -> dict[str, str]:
    """The 229 questions of the published dev part: qid -> first 16 hex digits of the SHA-256 of ``question_of``."""
    return json.loads(Path(__file__).with_name("strategyqa_test.json").read_text(encoding="utf-8"))


def _is_test(row: Row) -> bool:
    return row.take("qid", None) in official_test() or _hash(row) in official_test().values()


def _id(row: Row) -> str:
    return row.text("qid") if row.take("qid", None) else _hash(row)


def _hash(row: Row) -> str:
    return hashlib.sha256(_key(row).encode()).hexdigest()[:16]


def _key(row: Row) -> str:
    return question_of(row.text("question"))


def _yes_or_no(row: Row) -> str:
    answer = row.take("answer")
    if not isinstance(answer, bool):
        raise row.wrong(f"field 'answer' should be true or false (got {answer!r:.60})")
    return "Yes" if answer else "No"
