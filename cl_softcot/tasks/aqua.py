"""AQuA-RAT (Ling et al. 2017, arXiv 1705.04146): algebra questions with five options and a rationale.

Training comes from the full train.json where a folder has it (or from the hub), otherwise from the 2,728 rows with rationales
that the FLAN collection holds. Of training go without: full duplicates, rows with the right text under two letters, and what
has its question, or 13 consecutive words, in common with validation (dev) or test. In four test rows the right text stands
under two letters: ``meta["accept"]`` has the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field

from cl_softcot.tasks._judging import AnswerKind, Options, options_meta, with_options
from cl_softcot.tasks._sources import Row, Source, SourceSettings, distinct_items, hub_id, question_of, read, without_overlap
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

_FLAN = ("question", "answer", "rationale")
_TRAIN_NAMES = ("train.json", "aqua/train.json", "flan_cot_aqua_train.tsv", "aqua/flan_cot_aqua_train.tsv")
TRAIN = Source(_TRAIN_NAMES, "train", "raw", columns=_FLAN)
VALID = Source(("dev.json", "aqua/dev.json"), "validation", "raw")
TEST = Source(("test.json", "aqua/test.json"), "test", "raw")

_OPTION = re.compile(r"\(?([A-E])\s*\)\s*(.*)", re.S)
_VERDICT_WORDS = set("so hence thus therefore the correct right answer ans option choice is it".split())


class Settings(SourceSettings):
    hub: str = hub_id("deepmind/aqua_rat")
    hint: bool = Field(True, description="end the question with a line that asks for the letter of an option")


@dataclass(frozen=True)
class _Item:
    row: Row
    stem: str
    options: Mapping[str, str]
    steps: tuple[str, ...]
    letter: str

    @property
    def is_clear(self) -> bool:
        """Whether the right text stands under one letter only (in a few training rows all five are the same)."""
        return "accept" not in options_meta(self.options, self.letter)

    @property
    def whole(self) -> str:
        return question_of(f"{self.stem} {' '.join(self.options.values())}")


class Aqua(Benchmark):
    family = "word_problems"
    typical_lengths = TextLengths(68, 42, 6, 4)
    knowledge = "skill"
    n_options = 5
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        for number, item in enumerate(self._items[split]):
            question, field = with_options(item.stem, item.options, self.settings.hint), "correct"
            meta = {**options_meta(item.options, item.letter), "hops": len(item.steps)}
            yield self.make(split, number, question, item.steps, item.letter, where=item.row.where, field=field, **meta)

    def answers(self, example: Example) -> AnswerKind:
        return Options(example.meta["options"])

    @cached_property
    def _items(self) -> dict[str, list[_Item]]:
        test = [_item(row) for row in read(self.settings, TEST)]
        valid = [_item(row) for row in read(self.settings, VALID)]
        stems = {question_of(item.stem) for item in (*valid, *test)}
        train = distinct_items(map(_item, read(self.settings, TRAIN)), lambda item: item.whole)
        train = [item for item in train if question_of(item.stem) not in stems and item.is_clear]
        train = without_overlap(train, lambda item: item.stem, (item.stem for item in (*valid, *test)))
        return {"train": train, "valid": valid, "test": test}


def _item(row: Row) -> _Item:
    """A row of AQuA itself, or of FLAN's table (question with options, letter, rationale)."""
    if "options" in row.fields:
        stem, told, letter = row.text("question"), row.texts("options"), row.text("correct")
        lines = str(row.take("rationale")).split("\n")
    else:
        stem, _, listed = row.text("question").replace("\\n", "\n").partition("\nOptions:\n")
        told, letter = listed.split("\n"), row.text("answer").strip("()")
        lines = str(row.take("rationale")).split("\\n")
    matches = [_OPTION.fullmatch(text.strip()) for text in told]
    options = {match[1]: match[2].strip() for match in matches if match}
    if len(options) != len(told) or letter not in options:
        raise row.wrong(f"has no options A, B, ... with the right one, {letter!r}, among them (got {told!r:.80})")
    steps = [line.strip() for line in lines if line.strip()]
    while steps and _is_verdict(steps[-1]):
        steps.pop()
    return _Item(row, stem.strip(), options, tuple(steps), letter)


def _is_verdict(line: str) -> bool:
    """Whether a line only names the letter: it is the answer then, and not a step."""
    words = re.findall(r"\w+", line.casefold())
    letters = [word for word in words if word in ("a", "b", "c", "d", "e")]
    return len(letters) == 1 and set(words) <= {*_VERDICT_WORDS, *letters}
