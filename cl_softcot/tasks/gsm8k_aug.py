"""GSM8K with steps as equations, ``<<16-3-4=9>>``: the form in which iCoT and Coconut train (arXiv 2405.14838, 2412.06769).

The augmented training set of 385,620 rows is on the hub; of a local folder iCoT's train.txt, valid.txt and test.txt are read.
Where a folder has only GSM8K itself, its rows are brought into the same form, which gives iCoT's lines exactly. Of training go
without: questions of validation and test, those that share 13 consecutive words with a test question, and repeated ones.
(iCoT's valid.txt is a part of GSM8K's own training file.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from cl_softcot.tasks._judging import AnswerKind, Numbers
from cl_softcot.tasks._sources import (
    Row,
    Source,
    SourceSettings,
    carve,
    distinct_items,
    find_file,
    hub_id,
    question_of,
    read,
    without_overlap,
)
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths
from cl_softcot.tasks.gsm8k import ANNOTATION, N_VALID, split_solution

TRAIN = Source(("train.txt", "gsm8k_icot/train.txt", "train.jsonl", "gsm8k/train.jsonl"), "train")
VALID = Source(("valid.txt", "gsm8k_icot/valid.txt"), "valid")
TEST = Source(("test.txt", "gsm8k_icot/test.txt", "test.jsonl", "gsm8k/test.jsonl"), "test")


class Settings(SourceSettings):
    hub: str = hub_id("casperhansen/gsm8k_synthetic_cot")


class Gsm8kAug(Benchmark):
    family = "word_problems"
    typical_lengths = TextLengths(58, 20, 6, 3)
    knowledge = "skill"
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        for number, (row, question, steps, answer) in enumerate(self._records[split]):
            yield self.make(split, number, question, steps, answer, where=row.where, hops=len(steps))

    def answers(self, example: Example) -> AnswerKind:
        return Numbers()

    @cached_property
    def _records(self) -> dict[str, list[_Record]]:
        test = [_record(row) for row in read(self.settings, TEST)]
        train = distinct_items((_record(row) for row in read(self.settings, TRAIN)), _key)
        if self.settings.path is None or find_file(self.settings.path, VALID.names, missing_ok=True):
            valid = [_record(row) for row in read(self.settings, VALID)]
        else:
            train, valid = carve(train, _key, N_VALID)
        tested = set(map(_key, test))
        valid = [record for record in valid if _key(record) not in tested]
        held_out = tested | set(map(_key, valid))
        train = [record for record in train if _key(record) not in held_out]
        return {"train": without_overlap(train, _question, map(_question, test)), "valid": valid, "test": test}


_Record = tuple[Row, str, Sequence[str], str]


def _question(record: _Record) -> str:
    return record[1]


def _key(record: _Record) -> str:
    return question_of(record[1])


def _record(row: Row) -> _Record:
    """A line of iCoT (``question||steps #### answer``), a row of the hub (question, cot, answer), or one of GSM8K."""
    if "text" in row.fields:
        question, bars, rest = row.text("text").partition("||")
        chain, hashes, answer = rest.partition("####")
        if not bars or not hashes:
            raise row.wrong("is not a line of the form question||<<3*4=12>> ... #### 12")
        return row, question.strip(), tuple(filter(None, chain.split(" "))), _number(answer)
    if "cot" in row.fields:
        cot = row.take("cot")
        pieces = cot.split(" ") if isinstance(cot, str) else row.texts("cot")
        return row, row.text("question"), tuple(filter(None, pieces)), _number(row.text("answer"))
    lines, answer = split_solution(row)
    steps = tuple(f"<<{inner.replace(' ', '')}>>" for line in lines for inner in ANNOTATION.findall(line))
    return row, row.text("question"), steps, answer


def _number(answer: str) -> str:
    return answer.replace(",", "").strip()
