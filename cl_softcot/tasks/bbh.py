"""BIG-Bench Hard (Suzgun et al. 2022, arXiv 2210.09261): 27 hard subsets, for evaluation only.

The files carry a canary and ask not to be trained on. Repeated inputs are asked once; three rows whose options were cut apart
at their commas, so that no letter is right, are left out (movie_recommendation: one, ruin_names: two).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import Field

from cl_softcot.additions import ADDED_LATER
from cl_softcot.tasks._judging import LETTERS, AnswerKind, Choices, Numbers, Options, Stated, options_meta
from cl_softcot.tasks._sources import Row, Source, SourceSettings, distinct_items, hub_id, read
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

_OPTIONS = "Give the letter of one option as your answer."
CHOICES = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "formal_fallacies": ("valid", "invalid"),
    "navigate": ("Yes", "No"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}
NUMBERS = ("multistep_arithmetic_two", "object_counting")
HINTS = {
    "dyck_languages": "Answer with the missing brackets only, with spaces between them.",
    "word_sorting": "Answer with the sorted words on one line, with spaces between them.",
    **{name: f"Answer with {yes} or {no}." for name, (yes, no) in CHOICES.items()},
    **dict.fromkeys(NUMBERS, "Answer with a number."),
}
LETTERED = (
    "date_understanding",
    "disambiguation_qa",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
)
SUBSETS = tuple(sorted((*HINTS, *LETTERED)))
_LINE = re.compile(rf"^\(([{LETTERS}])\)[ \t]*(.*)$", re.M)


class Settings(SourceSettings):
    hub: str = hub_id("lukaemon/bbh")
    subset: str = Field("all", description="one of the 27 subsets, or all")
    exclude: Annotated[list[str], ADDED_LATER] = Field(
        [], description="subsets that `all` leaves out, such as one that the stream trains on (date_understanding)"
    )
    hint: bool = Field(True, description="end the question with a line that says how to answer")


class Bbh(Benchmark):
    family = "bbh"
    settings: Settings
    typical_lengths = TextLengths(100, 80, 6, 4)
    Settings = Settings
    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(self, settings: Any, name: str):
        super().__init__(settings, name)
        self.require_known("subset", settings.subset, ("all", *SUBSETS))
        for subset in settings.exclude:
            self.require_known("subset", subset, SUBSETS)
        if settings.subset == "date_understanding":
            self.family = "dates"

    def why_not(self, split: Split) -> str:
        return "BIG-Bench Hard carries a canary and asks not to be trained on, so it is for evaluation only"

    def load(self, split: Split) -> Iterable[Example]:
        chosen = [s for s in SUBSETS if s not in self.settings.exclude]
        for subset in chosen if self.settings.subset == "all" else (self.settings.subset,):
            for number, row in enumerate(bbh_rows(self.settings, subset)):
                yield self._example(split, subset, number, row)

    def _example(self, split: Split, subset: str, number: int, row: Row) -> Example:
        asked, answer = row.text("input"), row.text("target")
        question = f"{asked}\n{HINTS.get(subset, _OPTIONS)}" if self.settings.hint else asked
        meta: dict[str, Any] = {"subset": subset}
        if subset in LETTERED:
            answer = answer.strip("()")
            meta |= options_meta(options_of(asked), answer)
        return self.make(split, f"{subset}/{number}", question, (), answer, where=row.where, field="target", **meta)

    def n_options_of(self, example: Example) -> int | None:
        return 2 if example.meta["subset"] in CHOICES else super().n_options_of(example)

    def answers(self, example: Example) -> AnswerKind:
        subset = example.meta["subset"]
        if subset in CHOICES:
            return Choices(*CHOICES[subset])
        if subset in NUMBERS:
            return Numbers()
        if subset in LETTERED:
            return Options(example.meta["options"])
        return Stated(_brackets if subset == "dyck_languages" else _words)


def bbh_rows(settings: SourceSettings, subset: str) -> list[Row]:
    """The usable rows of a subset."""
    names = (f"{subset}.json", f"bbh/{subset}.json", f"date_understanding/bbh_{subset}.json", f"bbh_{subset}.json")
    rows = distinct_items(read(settings, Source(names, "test", subset)), lambda row: " ".join(row.text("input").split()))
    if subset in LETTERED:
        return [row for row in rows if re.fullmatch(rf"\([{LETTERS}]\)", row.text("target"))]
    return rows


def options_of(asked: str) -> dict[str, str]:
    """The options that stand in a question, ``(A) text`` a line."""
    return {match[1]: match[2].strip() for match in _LINE.finditer(asked)}


def _brackets(place: str) -> set[str]:
    return {" ".join(signs)} if (signs := re.findall(r"[\[\](){}<>]", place)) else set()


def _words(place: str) -> set[str]:
    words = [word.strip(".;:\"'") for word in place.replace(",", " ").casefold().split()]
    return {" ".join(filter(None, words))} - {""}
