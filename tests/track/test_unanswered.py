"""Where more than a third of the answers are unanswered the terminal says so, and no sentence claims a difference."""

from __future__ import annotations

import pytest

from cl_softcot.metrics.unanswered import too_many
from cl_softcot.results.record import RunRecord
from cl_softcot.track.conclusion import sentence
from cl_softcot.track.console import final_table, table_markdown

LEARNED, EARLIER, KEPT = "The stream's tasks at the end", "Earlier tasks at the end", "Retention as used, all families"


def record(method="lora", *, accuracy=((0, 0), (1, 0), (1, 1)), unanswered=None, kept=(1, 1, 1), kept_unanswered=None, **more):
    """Two tasks of 40 questions and a family of its own; accuracies and counts a row."""
    n = 40
    family = [
        {"families": {"f": value}, "n": {"f": n}, "all": value, **({} if counts is None else {"unanswered": {"f": counts}})}
        for value, counts in zip(kept, kept_unanswered or [None] * 3, strict=True)
    ]
    last = accuracy[-1]
    return RunRecord.model_validate({
        "method": method, "tasks": ["a", "b"], "strategy": {"name": "lora"}, "cost": {"trained_parameters": 10},
        "accuracy": {"matrix": accuracy, "n": [n, n], **({} if unanswered is None else {"unanswered": unanswered})},
        "summary": {"acc": sum(last) / 2, "learning_accuracy": (accuracy[1][0] + accuracy[2][1]) / 2},
        "retention": {"families": ["f"], "as_used": family}, **more,
    })  # fmt: skip


def of(records, title):
    return next((line for line in sentence(records).splitlines() if line.startswith(title)), "")


@pytest.mark.parametrize(("count", "questions", "so"), [(0, 8, False), (3, 9, False), (4, 9, True), (8, 8, True), (0, 0, False)])
def test_more_than_a_third(count, questions, so):
    assert too_many(count, questions) is so


def test_nothing_is_compared_with_a_base_that_answers_nothing():
    """The real case: full fine-tuning learned '### No', and the base wrote 'Yes.', which counts as none."""
    run = record(unanswered=[[40, 40], [0, 40], [0, 0]])
    assert of([run], LEARNED).endswith("(base 0.000, n = 80): not compared: 80 of 80 of the base's answers are unanswered.")
    assert "above it" not in sentence([run]) and "0.000 (80 of 80 unanswered)" in final_table([run]).plain
    assert "0.000 (80 of 80 unanswered)" in table_markdown([run])
    assert "not compared" not in of([run], KEPT), "of its own abilities nothing is unanswered"


def test_at_most_a_third_is_compared_as_before():
    some, none = record(unanswered=[[26, 0], [0, 0], [0, 0]]), record()
    assert sentence([some]) == sentence([none]) and final_table([some]).plain == final_table([none]).plain
    assert "above it: lora" in sentence([some])


def test_a_method_that_answers_nothing_is_not_compared_and_the_others_are():
    silent = record("silent", accuracy=((1, 1), (1, 1), (0, 0)), unanswered=[[0, 0], [0, 0], [40, 39]])
    worse = record("worse", accuracy=((1, 1), (1, 1), (0, 0)), unanswered=[[0, 0], [0, 0], [0, 0]])
    told = of([silent, worse], LEARNED)
    assert "below it: worse −1.00" in told and "silent −" not in told
    assert "not compared: silent (79 of 80 of its answers at the end are unanswered)" in told
    assert "not compared: silent (40 of 40 of its answers at the end" in of([silent, worse], EARLIER)
    table = final_table([silent, worse]).plain
    assert "0.000 (79 of 80 unanswered)" in next(line for line in table.splitlines() if "silent" in line)
    assert "unanswered" not in next(line for line in table.splitlines() if "worse" in line)


def test_forgetting_needs_answers_right_after_the_turn():
    run = record(accuracy=((1, 1), (0, 1), (1, 1)), unanswered=[[0, 0], [30, 0], [0, 0]])
    assert "not compared: lora (30 of 40 of its answers right after their turn are unanswered)" in of([run], EARLIER)
    assert "not compared" not in of([run], LEARNED)


RETAINED = [([20, 0, 0], "20 of 40 of the base's answers"), ([0, 0, 14], "lora (14 of 40 of its")]


@pytest.mark.parametrize(("counts", "words"), RETAINED)
def test_retention_too(counts, words):
    told = of([record(kept=(0.2, 0.5, 1.0), kept_unanswered=counts)], KEPT)
    assert f"not compared: {words}" in told and "above it:" not in told


def test_seeds_count_together_and_the_base_once():
    runs = [record(seed=seed, unanswered=[[20, 20], [0, 0], [0, 0]]) for seed in range(3)]
    assert "40 of 80 of the base's answers" in of(runs, LEARNED)
    rare = [record(seed=seed, unanswered=[[0, 0], [0, 0], [40 if seed else 0, 40 if seed else 0]]) for seed in (0, 0, 1)]
    assert "not compared" not in of(rare, LEARNED), "one run of three: exactly a third"


def test_rows_that_were_asked_fewer_questions_count_these():
    asked = [[40, 40], [6, 40], [40, 40]]
    run = record(accuracy=((1, 1), (0, 1), (1, 1)), unanswered=[[0, 0], [3, 0], [0, 0]])
    run = run.model_copy(update={"accuracy": run.accuracy.model_copy(update={"asked": asked})})
    assert "3 of 6 of its answers right after their turn" in of([run], EARLIER)


def test_a_missing_number_has_nothing_beside_it():
    run = record(unanswered=[[0, 0], [40, 40], [40, 40]])
    bare = run.model_copy(update={"summary": {}})
    assert "–" in final_table([bare]).plain and "unanswered" not in table_markdown([bare]).splitlines()[-1]


@pytest.mark.parametrize("width", [200, 120, 100])
def test_the_table_still_fits(width):
    counts = {"unanswered": [[40, 40], [40, 40], [40, 40]], "kept_unanswered": [40, 40, 40]}
    runs = [record(name, **counts) for name in ("lora", "full_coconut")]
    text = final_table(runs, width=width).plain
    assert max(map(len, text.splitlines())) <= width and "(80 of 80" in text and "unanswered)" in text
