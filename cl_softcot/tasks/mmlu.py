"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): knowledge of 57 subjects, four options; for evaluation only.

Test is the published one without its repeated rows. Validation is the dev part (five a subject) without those that stand in
test too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from cl_softcot.tasks._judging import AnswerKind, Options, lettered, options_meta, with_options
from cl_softcot.tasks._sources import Row, Source, SourceSettings, distinct_items, hub_id, read
from cl_softcot.tasks.base import Benchmark, Example, Split, TextLengths

SUBJECTS = tuple(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
    professional_law professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions
    """.split()
)
_PARTS = {"valid": "dev", "test": "test"}


class Settings(SourceSettings):
    hub: str = hub_id("cais/mmlu")
    subject: str = Field("all", description="one of the 57 subjects, or all")
    hint: bool = Field(True, description="end the question with a line that asks for the letter of an option")


class Mmlu(Benchmark):
    family = "knowledge"
    typical_lengths = TextLengths(110, 80, 6, 4)
    knowledge = "facts"
    n_options = 4
    settings: Settings
    Settings = Settings
    splits: ClassVar[tuple[Split, ...]] = ("valid", "test")

    def __init__(self, settings: Any, name: str):
        super().__init__(settings, name)
        self.require_known("subject", settings.subject, ("all", *SUBJECTS))

    def why_not(self, split: Split) -> str:
        return "MMLU measures what a model knows, and has no training part of its own"

    def load(self, split: Split) -> Iterable[Example]:
        for number, (subject, row) in enumerate(self._rows[split]):
            stem, options = row.text("question"), _options(row)
            question, letter = with_options(stem, options, self.settings.hint), _letter(row)
            key = f"{subject}/{number}"
            meta = {"subset": subject, **options_meta(options, letter)}
            yield self.make(split, key, question, (), letter, where=row.where, **meta)

    def answers(self, example: Example) -> AnswerKind:
        return Options(example.meta["options"])

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, Row]]]:
        test = distinct_items(self._read("test"), _key)
        tested = set(map(_key, test))
        valid = [item for item in distinct_items(self._read("valid"), _key) if _key(item) not in tested]
        return {"test": test, "valid": valid}

    def _read(self, split: str) -> Iterable[tuple[str, Row]]:
        for subject in SUBJECTS if self.settings.subject == "all" else (self.settings.subject,):
            part = _PARTS[split]
            name = f"{part}/{subject}_{part}.csv"
            for row in read(self.settings, Source((name, f"mmlu/{name}"), part, subject)):
                yield subject, row


def _options(row: Row) -> dict[str, str]:
    """Four choices: a list on the hub, a column each in the published tables."""
    if "choices" in row.fields:
        return lettered([str(choice).strip() for choice in row.take("choices")])
    return lettered([str(row.take(f"choice{i}")).strip() for i in range(4)])


def _letter(row: Row) -> str:
    answer = row.text("answer")
    if answer not in ("0", "1", "2", "3"):
        raise row.wrong(f"field 'answer' should be 0, 1, 2 or 3 (got {answer!r:.60})")
    return "ABCD"[int(answer)]


def _key(item: tuple[str, Row]) -> str:
    subject, row = item
    return "|".join([" ".join(text.split()) for text in (row.text("question"), *_options(row).values())])
