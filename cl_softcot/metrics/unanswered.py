"""Unanswered: answers in whose text none can be read. They are not right, and they are not wrong.

A model that leaves most questions unanswered was not asked in its own form, so that an accuracy says little of what it can do:
a difference that rests on such answers is of the form, and is not claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from cl_softcot.metrics import Meaning

FEW = Fraction(1, 3)  # at most this share of the answers may be unanswered where a difference is claimed


def too_many(unanswered: int, questions: int) -> bool:
    """Whether so many of the questions are unanswered that no difference can rest on them."""
    return unanswered > FEW * questions


def unanswered_shares(unanswered: Sequence[Sequence[int]], n: Sequence[int]) -> dict[str, float]:
    """Shares of all test questions that are unanswered at the base's row and at the last.

    Args:
        unanswered: counts, a row an experience (0: the base), a column a task.
        n: test questions of each task; both rows are asked all of them.
    """
    return {f"unanswered/{name}": sum(unanswered[row]) / sum(n) for name, row in (("base", 0), ("final", -1))}


CATALOGUE: dict[str, Meaning] = {
    "unanswered/base": Meaning(
        "share of the test questions whose text holds no answer, row 0: the base", "ours", "fraction", "lower is better"
    ),
    "unanswered/final": Meaning(
        "share of the test questions whose text holds no answer, row T: at the end", "ours", "fraction", "lower is better"
    ),
}
