"""Date Understanding: which date is it, when a story tells today's date in some roundabout way?

Test is BIG-Bench Hard's 250 items, as SoftCoT (arXiv 2502.12134) evaluates them. Nothing public is left to train on: all of
BIG-bench's other 119 items ask about the same 41 stories as the test. So training and validation are generated, from stories
of our own with own wording and with written steps; none of the 41 is among them.
"""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from pydantic import Field

from cl_softcot.tasks._judging import LETTERS, AnswerKind, Options, with_options
from cl_softcot.tasks._sources import SourceSettings, hub_id
from cl_softcot.tasks.base import Benchmark, Draft, Example, Split, TextLengths, distinct, split_of
from cl_softcot.tasks.bbh import bbh_rows, options_of

SUBSET = "date_understanding"
N_OPTIONS = 6


class Settings(SourceSettings):
    hub: str = hub_id("lukaemon/bbh")
    train: Literal["generated"] = Field(
        "generated", description="training and validation: no public rows are free of test stories"
    )
    hint: bool = Field(True, description="end the question with a line that asks for the letter of an option")


class DateUnderstanding(Benchmark):
    family = "dates"
    typical_lengths = TextLengths(62, 40, 6, 3)
    knowledge = "skill"
    settings: Settings
    Settings = Settings

    def load(self, split: Split) -> Iterable[Example]:
        """The test items; the other splits are generated."""
        for number, row in enumerate(bbh_rows(self.settings, SUBSET)):
            stem, _, _ = row.text("input").partition("\nOptions:\n")
            options = options_of(row.text("input"))
            question, letter = with_options(stem, options, self.settings.hint), row.text("target").strip("()")
            yield self.make(split, number, question, (), letter, where=row.where, field="target", options=options)

    def answers(self, example: Example) -> AnswerKind:
        return Options(example.meta["options"])

    def count(self, split: Split) -> int | None:
        return super().count(split) if split == "test" else None

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        if split == "test":
            return super().examples(split, n, seed)
        rng = random.Random(f"{SUBSET}|{split}|{seed}")

        def draw() -> Draft | None:
            draft = _draft(rng)
            return draft if split_of(SUBSET, draft.key) == split else None

        drafts = distinct(n, draw, f"task {self.name!r} has no {n} different {split} questions")
        return [self._example(split, i, draft) for i, draft in enumerate(drafts)]

    def _example(self, split: Split, number: int, draft: Draft) -> Example:
        options = draft.meta["options"]
        question = with_options(draft.question, options, self.settings.hint)
        hops = len(draft.steps)
        return self.make(split, number, question, draft.steps, draft.answer, where="generated", options=options, hops=hops)


# -------------------------------------------------------------------------------------------------------- generated


@dataclass(frozen=True)
class _Story:
    """A way to tell what day it is: the words, today's date, the step that finds it, and a date that misleads."""

    text: str
    today: date
    step: str
    decoy: date


def written(day: date) -> str:
    """MM/DD/YYYY."""
    return f"{day.month:02d}/{day.day:02d}/{day.year:04d}"


def moved_months(day: date, months: int) -> date:
    """The same day of another month; the last one of a month that is too short."""
    index = day.year * 12 + day.month - 1 + months
    year, month = index // 12, index % 12 + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def _long(day: date) -> str:
    return f"{calendar.month_name[day.month]} {day.day}, {day.year}"


def _some_day(rng: random.Random, last: int = 31) -> date:
    year, month = rng.randint(1905, 2045), rng.randint(1, 12)
    return date(year, month, rng.randint(1, min(last, calendar.monthrange(year, month)[1])))


def _letter(rng: random.Random) -> _Story:
    sent, k = _some_day(rng), rng.randint(2, 20)
    today = sent + timedelta(k)
    text = f"A letter written on {_long(sent)} needed {k} days to arrive, and it has arrived today."
    return _Story(text, today, f"{k} days after {written(sent)} is {written(today)}, which is today.", sent)


def _opening(rng: random.Random) -> _Story:
    opens, k = _some_day(rng), rng.randint(2, 20)
    today = opens - timedelta(k)
    text = f"A museum will open its doors on {_long(opens)}, and there are {k} days left until then."
    return _Story(text, today, f"{k} days before {written(opens)} is {written(today)}, which is today.", opens)


def _receipt(rng: random.Random) -> _Story:
    bought, k = _some_day(rng), rng.randint(2, 9)
    today = bought + timedelta(7 * k)
    text = f"A shop throws its receipts away after exactly {k} weeks; today it is the turn of those of {_long(bought)}."
    return _Story(text, today, f"{k} weeks are {7 * k} days: today is {written(today)}.", bought)


def _lease(rng: random.Random) -> _Story:
    first = _some_day(rng).replace(day=1)
    today = moved_months(first, 1) - timedelta(1)
    month = f"{calendar.month_name[first.month]} {first.year}"
    text = f"The lease of the flat runs out with the final day of {month}, and that is today."
    return _Story(text, today, f"That month has {today.day} days, so that today is {written(today)}.", first)


def _ticket(rng: random.Random) -> _Story:
    today = _some_day(rng, last=12)
    other = today.replace(month=today.day, day=today.month)
    dotted = f"{today.day}.{today.month}.{today.year}"
    text = f"A train ticket from Vienna, where the day is written in front of the month, is valid today only: {dotted}."
    return _Story(text, today, f"The day comes first there: today is {written(today)}.", other)


def _dam(rng: random.Random) -> _Story:
    finished, k = _some_day(rng, last=28), rng.randint(2, 30)
    today = moved_months(finished, k)
    text = f"The dam was finished on {_long(finished)}; as of today it has stood for {k} months to the day."
    return _Story(text, today, f"{k} months after {written(finished)} is {written(today)}, which is today.", finished)


def _tree(rng: random.Random) -> _Story:
    planted, k = _some_day(rng, last=28), rng.randint(2, 60)
    today = planted.replace(year=planted.year + k)
    text = f"An oak that was planted on {_long(planted)} is exactly {k} years old today."
    return _Story(text, today, f"{planted.year} + {k} = {today.year}, so that today is {written(today)}.", planted)


def _midnight(rng: random.Random) -> _Story:
    starts, hours = _some_day(rng), rng.choice([*range(1, 24), *range(25, 48)])
    today = starts - timedelta(1 if hours < 24 else 2)
    text = f"The first minute of {_long(starts)} is {hours} hours away."
    days = "one day" if hours < 24 else "two days"
    return _Story(text, today, f"{hours} hours before midnight it is {days} earlier: today is {written(today)}.", starts)


def _calendar_page(rng: random.Random) -> _Story:
    shown, k = _some_day(rng), rng.randint(2, 15)
    today = shown + timedelta(k)
    text = f"The tear-off calendar still shows {_long(shown)}, because nobody has torn a page off for {k} days."
    return _Story(text, today, f"The calendar is {k} days late: today is {written(today)}.", shown)


_STORIES: tuple[Callable[[random.Random], _Story], ...] = (
    _letter,
    _opening,
    _receipt,
    _lease,
    _ticket,
    _dam,
    _tree,
    _midnight,
    _calendar_page,
)


def _ask(rng: random.Random, today: date) -> tuple[str, date]:
    """What is asked, and the answer. Months and years only where every month has such a day."""
    days, weeks = rng.randint(2, 25), rng.randint(1, 4)
    plural = "" if weeks == 1 else "s"
    asks = [
        ("the day after today", today + timedelta(1)),
        ("the day before today", today - timedelta(1)),
        (f"{days} days from now", today + timedelta(days)),
        (f"{days} days back", today - timedelta(days)),
        (f"{weeks} week{plural} from now", today + timedelta(7 * weeks)),
        (f"{weeks} week{plural} back", today - timedelta(7 * weeks)),
        ("today", today),
    ]
    if today.day <= 28:
        asks += [("a month from now", moved_months(today, 1)), ("a month back", moved_months(today, -1))]
        asks += [("a year from now", moved_months(today, 12)), ("a year back", moved_months(today, -12))]
    return rng.choice(asks)


def _draft(rng: random.Random) -> Draft:
    story = rng.choice(_STORIES)(rng)
    what, answer = _ask(rng, story.today)
    steps = [story.step] if what == "today" else [story.step, f"The date {what} is {written(answer)}."]
    dates = [answer, *_decoys(rng, story, answer)]
    rng.shuffle(dates)
    options = dict(zip(LETTERS, map(written, dates), strict=False))
    question = f"{story.text} Which date is it {what}? Dates are written MM/DD/YYYY."
    return Draft(question, tuple(steps), LETTERS[dates.index(answer)], f"{story.text}|{what}", {"options": options})


def _decoys(rng: random.Random, story: _Story, answer: date) -> list[date]:
    """Wrong options: today itself, the story's own date, and what a slip of a day, a month or a year would give."""
    near = [
        story.today,
        story.decoy,
        moved_months(answer, 1),
        moved_months(answer, -1),
        moved_months(answer, 12 * rng.choice([-1, 1])),
    ]
    near += [answer + timedelta(k) for k in (-10, -7, -2, -1, 1, 2, 7, 10)]
    if answer.day <= 12:
        near.append(answer.replace(month=answer.day, day=answer.month))
    wrong = sorted(set(near) - {answer})
    return rng.sample(wrong, N_OPTIONS - 1)
