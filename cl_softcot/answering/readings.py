"""The two readings of an answer: strict (the format was followed) and flexible (what a person would read).

Every answer is judged in both; ``evaluate.reading`` says which is an experiment's headline, on which all its numbers stand.
"""

from __future__ import annotations

from typing import Any

from cl_softcot.tasks.base import Example, Task, Verdict

READINGS = ("strict", "flexible")


def other_than(reading: str) -> str:
    """The reading that is not the headline."""
    return READINGS[1 - READINGS.index(reading)]


def judged(task: Task, example: Example, text: str, reading: str) -> Verdict:
    """The verdict on a text in one of the readings."""
    return task.judge(example, text) if reading == "strict" else task.judge_flexibly(example, text)


def in_both(task: Task, example: Example, text: str) -> dict[str, dict[str, Any]]:
    """The verdicts in both readings, as predictions hold them: {reading: {"outcome", "answer"}}."""
    return {reading: _plain(judged(task, example, text, reading)) for reading in READINGS}


def as_read(prediction: dict[str, Any], task: Task, example: Example, reading: str) -> dict[str, Any]:
    """A prediction that was kept, with both readings, and this one as its headline.

    What was judged when it was made stays as it was judged. A prediction from before there were two readings holds the strict
    one; the flexible one is then made from its text.
    """
    known = prediction.get("readings")
    if known and all(prediction[key] == value for key, value in known[reading].items()):
        return prediction
    if not known:
        strict = {key: prediction[key] for key in ("outcome", "answer")}
        known = {"strict": strict, "flexible": _plain(task.judge_flexibly(example, prediction["text"]))}
    return {**prediction, **known[reading], "readings": known}


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {"outcome": verdict.outcome, "answer": verdict.extracted}
