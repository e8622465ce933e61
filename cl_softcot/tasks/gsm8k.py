"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school word problems with written steps.

Test is the published one (1,319). Validation is 500 questions that are taken out of training: by hash, or those of the
iCoT repository's valid.txt (``valid_path``). Training goes without the questions that share 13 consecutive words with a test
question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from pydantic import Field

from cl_softcot.tasks._judging import AnswerKind, Numbers
from cl_softcot.tasks._sources import Row, Source, SourceSettings, carve, hub_id, question_of, read, read_file, without_overlap
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

TRAIN = Source(("train.jsonl", "gsm8k/train.jsonl"), "train", "main")
TEST = Source(("test.jsonl", "gsm8k/test.jsonl"), "test", "main")
N_VALID = 500
ANNOTATION = re.compile(r"<<([^<>]*)>>")
_ANSWER = re.compile(r"\s*####\s*(-?[0-9.,]+)\s*$")


class Settings(SourceSettings):
    hub: str = hub_id("openai/gsm8k")
    calculator: bool = Field(False, description="keep the calculator's annotations, <<3*4=12>>, in the steps")
    valid_path: str | None = Field(None, description="iCoT's valid.txt: its questions are the validation split (null: by hash)")


class Gsm8k(Benchmark):
    family = "word_problems"
    typical_lengths = TextLengths(58, 76, 6, 4)
    knowledge = "skill"
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        for number, row in enumerate(self._rows[split]):
            lines, answer = split_solution(row)
            steps = lines if self.settings.calculator else [ANNOTATION.sub("", line) for line in lines]
            yield self.make(split, number, row.text("question"), steps, answer, where=row.where, hops=len(steps))

    def answers(self, example: Example) -> AnswerKind:
        return Numbers()

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        test = list(read(self.settings, TEST))
        train = without_overlap(read(self.settings, TRAIN), _question, map(_question, test))
        if self.settings.valid_path is None:
            train, valid = carve(train, _key, N_VALID)
        else:
            named = {question_of(row.text("text").partition("||")[0]) for row in read_file(self.settings.valid_path)}
            valid = [row for row in train if _key(row) in named]
            train = [row for row in train if _key(row) not in named]
        return {"train": train, "valid": valid, "test": test}


def split_solution(row: Row) -> tuple[list[str], str]:
    """(lines of the solution, answer without commas) of a row in GSM8K's form. UserError where it has no ``####`` line."""
    solution = row.text("answer")
    match = _ANSWER.search(solution)
    if match is None:
        raise row.wrong(
            "field 'answer' does not end with a line '#### NUMBER'", fix="rows are in GSM8K's form: steps, then `#### 18`"
        )
    lines = [line.strip() for line in solution[: match.start()].split("\n")]
    return [line for line in lines if line], match[1].replace(",", "").rstrip(".")


def _question(row: Row) -> str:
    return row.text("question")


def _key(row: Row) -> str:
    return question_of(row.text("question"))
