"""What a person would take for the answer: the flexible reading, by hand. And that the strict one never contradicts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cl_softcot.tasks._judging import AnswerKind, Choices, Numbers, Options, Words
from cl_softcot.tasks.base import Example, Task
from cl_softcot.tasks.prosqa import ProsQA


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()]


JUDGED = rows_of("judged.jsonl")
READ = rows_of("read_by_hand.jsonl")


def kind_of(row) -> AnswerKind:
    if row["kind"] == "number":
        return Numbers()
    if row["kind"] == "option":
        return Options(row["options"])
    if row["kind"] == "words":
        return Words(row["gold"])
    return Choices("True", "False") if row.get("task") == "prontoqa" else Choices("Yes", "No")


def verdict(row, reading: str) -> str:
    answers = kind_of(row)
    found = getattr(answers, reading)(row["text"])
    if found is None:
        return "unanswered"
    right = answers.same(found) if isinstance(answers, Words) else found == answers.strict(f"### {row['gold']}")
    return "right" if right else "wrong"


# ------------------------------------------------------------------------------------------------------- judged outputs

# What the judge says otherwise than the people who labelled the table.
DIFFERS: dict[str, list[str]] = {"strict": [], "flexible": []}


def test_the_table_of_judged_outputs_is_worth_its_name():
    """Labelled before the judge had read it, in two passes that did not know each other and agree on every row."""
    assert len(JUDGED) >= 400 and len({row["id"] for row in JUDGED}) == len(JUDGED)
    assert sum(row["strict"] != row["flexible"] for row in JUDGED) > len(JUDGED) / 4
    for reading in ("strict", "flexible"):
        shares = [sum(row[reading] == o for row in JUDGED) / len(JUDGED) for o in ("right", "wrong", "unanswered")]
        assert min(shares) > 0.1


@pytest.mark.parametrize("reading", ["strict", "flexible"])
def test_the_judge_agrees_with_people(reading):
    differ = [f"{row['id']}: {got}, not {row[reading]}" for row in JUDGED if (got := verdict(row, reading)) != row[reading]]
    assert len(differ) <= 0.02 * len(JUDGED) and differ == DIFFERS[reading]


def test_where_the_strict_reading_finds_an_answer_the_flexible_one_finds_the_same():
    for row in JUDGED + READ:
        strict = kind_of(row).strict(row["text"])
        assert strict is None or strict == kind_of(row).flexible(row["text"]), row


# ------------------------------------------------------------------------------------------------------------ by kind


@pytest.mark.parametrize("kind", ["number", "option", "choice"])
def test_what_a_person_reads(kind):
    rows = [row for row in READ if row["kind"] == kind]
    differ = [
        (row["text"], row["expected"], got) for row in rows if (got := kind_of(row).flexible(row["text"])) != row["expected"]
    ]
    assert len(rows) > 50 and not differ


class _Plain(Task):
    def examples(self, split, n, seed):
        return []


@pytest.mark.parametrize(
    ("text", "gold", "outcome"),
    [
        ("Paris", "Paris", "right"),
        ("**Paris**", "Paris", "right"),
        ("The capital of France is Paris.", "Paris", "right"),
        ("### The capital of France is Paris.", "Paris", "right"),
        ("Paris is the capital of France.", "Paris", "right"),
        ("It was written by Jane Austen.", "Jane Austen", "right"),
        ("The answer is Paris.", "Paris", "right"),
        ("The capital is Lyon.", "Paris", "wrong"),
        ("New York", "York", "wrong"),
        ("It is not Paris.", "Paris", "wrong"),
        ("The answer is Paris or Lyon.", "Paris", "unanswered"),
        ("I cannot answer this question.", "Paris", "unanswered"),
        ("The capital of France is", "Paris", "unanswered"),
        ("", "Paris", "unanswered"),
    ],
)
def test_words_that_a_person_reads(text, gold, outcome):
    assert _Plain(None, "mine").judge_flexibly(Example("x", "mine", "?", (), gold), text).outcome == outcome


GRAPH = {"edges": [[0, 2], [1, 3]], "names": ["Davis", "Tom", "lempus", "impus"], "root": 0, "target": 2, "neg_target": 3}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Davis is a lempus.", "right"),
        ("lempus", "right"),
        ("Tom is a impus.\nSo Davis is a lempus.", "right"),
        ("Davis is a impus.", "wrong"),
        ("Every impus is a zhorpus. Tom is a impus.", "unanswered"),
        ("Davis is a lempus or a impus.", "unanswered"),
    ],
)
def test_answers_of_a_task_of_its_own(text, outcome):
    asked = Example("x", "mine", "Is Davis a impus or lempus?", (), "Davis is a lempus.", GRAPH)
    assert ProsQA(ProsQA.Settings(), "mine").judge_flexibly(asked, text).outcome == outcome
