"""Reference: each task learned alone, from the base, as if no other had been learned before."""

from __future__ import annotations

from strategies._reference import Reference


class SingleTask(Reference):
    """Every turn begins with the base's weights, and trains its own task with the budget of a turn.

    R[j,j] is a* of ``intransigence/single_task``; a row's other columns are what task i alone does to the others.
    """

    reference = "single_task"
    from_base = True
