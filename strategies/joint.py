"""Reference: all tasks learned together, from the base, as if nothing had to be learned in sequence."""

from __future__ import annotations

from strategies._reference import Reference


class Joint(Reference):
    """One turn over the union of all tasks' examples, shuffled, with the steps of all their turns: the budget of a sequence.

    Every row after row 0 is this one model; its accuracies are a* of ``intransigence/joint``.
    """

    reference = "joint"
    together = True
