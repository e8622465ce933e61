"""CommonsenseQA (Talmor et al. 2019, arXiv 1811.00937): five options, no written steps.

Test is the labelled dev part (1,221), as the published test part has no labels; validation is 500 questions out of training,
chosen by hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pydantic import Field

from cl_softcot.tasks._judging import AnswerKind, Options, options_meta, with_options
from cl_softcot.tasks._sources import Row, Source, SourceSettings, carve, distinct_items, hub_id, question_of, read
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

TRAIN = Source(("train_rand_split.jsonl", "commonsenseqa/train_rand_split.jsonl"), "train")
TEST = Source(("dev_rand_split.jsonl", "commonsenseqa/dev_rand_split.jsonl"), "validation")
N_VALID = 500


class Settings(SourceSettings):
    hub: str = hub_id("tau/commonsense_qa")
    hint: bool = Field(True, description="end the question with a line that asks for the letter of an option")


class CommonsenseQA(Benchmark):
    family = "commonsense"
    typical_lengths = TextLengths(40, 1, 6, 1)
    knowledge = "facts"
    n_options = 5
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        for row in self._rows[split]:
            stem, options = _asked(row)
            question, letter = with_options(stem, options, self.settings.hint), row.text("answerKey")
            meta = options_meta(options, letter)
            yield self.make(split, row.text("id"), question, (), letter, where=row.where, field="answerKey", **meta)

    def answers(self, example: Example) -> AnswerKind:
        return Options(example.meta["options"])

    @cached_property
    def _rows(self) -> dict[str, list[Row]]:
        test = distinct_items(read(self.settings, TEST), _key)
        tested = set(map(_key, test))
        train = [row for row in distinct_items(read(self.settings, TRAIN), _key) if _key(row) not in tested]
        train, valid = carve(train, _key, N_VALID)
        return {"train": train, "valid": valid, "test": test}


def _asked(row: Row) -> tuple[str, dict[str, str]]:
    """Stem and options: nested in the published files, flat on the hub."""
    question: Any = row.take("question")
    if isinstance(question, Mapping):
        inner = Row(question, row.where)
        choices: list[Any] = list(inner.take("choices"))
        return inner.text("stem"), {choice["label"]: choice["text"].strip() for choice in choices}
    choices_of: Mapping[str, Any] = row.take("choices")
    return row.text("question"), dict(zip(choices_of["label"], (t.strip() for t in choices_of["text"]), strict=True))


def _key(row: Row) -> str:
    """Stem and options: a few stems are asked twice, with other options."""
    stem, options = _asked(row)
    return question_of(f"{stem} {' '.join(options.values())}")
