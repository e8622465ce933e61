"""What every task is: examples of a split, and a judge that tells right, wrong and unanswered apart."""

from __future__ import annotations

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cl_softcot.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Outcome = Literal["right", "wrong", "unanswered"]


@dataclass(frozen=True)
class Example:
    """One question with its written steps and its answer; ``meta`` holds what results are broken down by (hops, ...)."""

    id: str
    task: str
    question: str
    steps: tuple[str, ...]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """How one written answer is judged. ``extracted`` is the answer that was read out of the text, if there was one."""

    outcome: Outcome
    extracted: str | None


class TaskSettings(BaseModel):
    """Settings of a task; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_MARKER = re.compile(r"(?:^|(?<=\s))(?:###|answer)(?=\s|:|$):?")


def answer_of(text: str) -> str | None:
    """The words after the last answer marker (``answer`` or ``###``); None where nothing follows or there is no marker."""
    markers = list(_MARKER.finditer(text))
    return " ".join(text[markers[-1].end() :].split()) or None if markers else None


class Task(ABC):
    """A source of examples. Subclasses set ``family`` and implement ``examples``; the judge compares words."""

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    family: ClassVar[str]

    def __init__(self, settings: TaskSettings, name: str):
        self.settings = settings
        self.name = name

    @abstractmethod
    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        """``n`` different examples of a split, the same for the same seed. UserError where there are not that many."""

    def judge(self, example: Example, text: str) -> Verdict:
        """Compares the words after the last answer marker with the gold answer; case and spacing do not count."""
        extracted = answer_of(text)
        if extracted is None:
            return Verdict("unanswered", None)
        right = extracted.casefold().split() == example.answer.casefold().split()
        return Verdict("right" if right else "wrong", extracted)


# --------------------------------------------------------------------------------------------------- synthetic tasks


@dataclass(frozen=True)
class Draft:
    """A generated example before it has a name.

    ``key`` is what makes the question the same question, whatever the order of its facts or its convention: the split
    is a function of it, so that no question stands in two splits, at no seed.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    key: str
    meta: Mapping[str, Any]


class SyntheticSettings(TaskSettings):
    """Settings that all generated families share."""

    convention: str | None = Field(None, description="which convention answers follow; None: the family's default one")
    note: bool = Field(False, description="state the convention in the question")


# Shares of the question space, in hundredths.
_SHARES: tuple[tuple[int, Split], ...] = ((80, "train"), (90, "valid"), (100, "test"))


def split_of(family: str, key: str) -> Split:
    """The one split that a question belongs to: a hash of what it asks (80 / 10 / 10)."""
    bucket = int.from_bytes(hashlib.sha256(f"{family}|{key}".encode()).digest()[:4], "big") % 100
    return next(split for limit, split in _SHARES if bucket < limit)


Amount = int | list[int]  # a difficulty setting: a number, or a list of them to draw from


def between(lowest: int, highest: int) -> AfterValidator:
    """Bounds of a difficulty setting: what the word stock has room for."""

    def check(value: Amount) -> Amount:
        numbers = [value] if isinstance(value, int) else value
        if not numbers:
            raise ValueError("should not be an empty list")
        for number in numbers:
            if not lowest <= number <= highest:
                raise ValueError(f"should be between {lowest} and {highest} (got {number})")
        return value

    return AfterValidator(check)


def largest_of(value: Amount) -> int:
    """The largest number that a difficulty setting can come to."""
    return value if isinstance(value, int) else max(value)


def choose(rng: random.Random, value: int | Sequence[int]) -> int:
    """A difficulty setting is a number, or a list of them to draw from."""
    return value if isinstance(value, int) else rng.choice(list(value))


class SyntheticTask(Task):
    """A generated family: subclasses give ``conventions`` (default first, with the note that states each) and ``draft``."""

    conventions: ClassVar[Mapping[str, str]]
    Settings: ClassVar[type[TaskSettings]] = SyntheticSettings

    def __init__(self, settings: Any, name: str):
        super().__init__(settings, name)
        self.convention = settings.convention or next(iter(self.conventions))
        if self.convention not in self.conventions:
            known = ", ".join(self.conventions)
            raise UserError(f"task {name!r}: unknown convention {self.convention!r}", fix=f"known: {known}")

    @abstractmethod
    def draft(self, rng: random.Random, convention: str) -> Draft:
        """One example under a convention, from the family's whole question space."""

    def split_of(self, draft: Draft) -> Split:
        return split_of(self.family, draft.key)

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        rng = random.Random(f"{self.family}|{split}|{seed}")
        found: dict[str, Draft] = {}
        misses = 0
        while len(found) < n:
            draft = self.draft(rng, self.convention)
            if self.split_of(draft) != split or draft.key in found:
                misses += 1
                if misses > 2000 + 200 * n:
                    raise UserError(
                        f"task {self.name!r} has no {n} different {split} questions at this difficulty (found {len(found)})",
                        fix="ask for fewer examples, or widen its difficulty settings",
                    )
                continue
            found[draft.key] = draft
        return [self._example(draft, split, i) for i, draft in enumerate(found.values())]

    def _example(self, draft: Draft, split: Split, index: int) -> Example:
        question = draft.question
        if self.settings.note:
            question = f"note {self.conventions[self.convention]} . {question}"
        meta = {"family": self.family, "convention": self.convention, **draft.meta}
        return Example(f"{self.name}/{split}/{index}", self.name, question, draft.steps, draft.answer, meta)
