"""ASDiv-Aug, the set of word problems that SoftCoT (arXiv 2502.12134) made of ASDiv: rows in GSM8K's form.

Under a non-commercial licence, hence never with this package: from the hub, or a local folder with aug-train.jsonl and
aug-dev.jsonl. Test is aug-dev. Validation is taken out of training by hash, all variants of a problem (the same but for its
numbers) together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from cl_softcot.tasks._judging import AnswerKind, Numbers
from cl_softcot.tasks._sources import Row, Source, SourceSettings, carve, distinct_items, hub_id, question_of, read
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths
from cl_softcot.tasks.gsm8k import ANNOTATION, N_VALID, split_solution

TRAIN = Source(("aug-train.jsonl", "asdiv_aug/aug-train.jsonl"), "train")
TEST = Source(("aug-dev.jsonl", "asdiv_aug/aug-dev.jsonl"), "validation")


class Settings(SourceSettings):
    hub: str = hub_id("xuyige/ASDiv-Aug")


class AsdivAug(Benchmark):
    family = "word_problems"
    typical_lengths = TextLengths(45, 60, 6, 3)
    knowledge = "skill"
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        for number, row in enumerate(self._rows[split]):
            lines, answer = split_solution(row)
            steps = [ANNOTATION.sub("", line) for line in lines]
            yield self.make(split, number, row.text("question"), steps, answer, where=row.where, hops=len(steps))

    def answers(self, example: Example) -> AnswerKind:
        return Numbers()

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        test = distinct_items(read(self.settings, TEST), _key)
        tested = set(map(_key, test))
        train = [row for row in distinct_items(read(self.settings, TRAIN), _key) if _key(row) not in tested]
        train, valid = carve(train, _problem, N_VALID)
        return {"train": train, "valid": valid, "test": test}


def _key(row: Row) -> str:
    return question_of(row.text("question"))


def _problem(row: Row) -> str:
    """A question with its numbers masked: what variants of one problem have in common."""
    return re.sub(r"\d+", "0", _key(row))
