"""Accuracy while a turn goes on: what a look after each turn alone does not see.

Every few optimiser steps the tasks learned so far, the one in the making included, are answered on the same examples. From these
points come the measures of De Lange et al. 2022 (arXiv 2205.13452, section 3), for the k tasks learned so far:

    min-ACC = 1/(k-1) sum_{j<k} min_t A_j(t)          over all points t after the end of task j's own turn
    WC-ACC  = 1/k A_k(now) + (1 - 1/k) min-ACC
    gap_j   = A_j(before the turn) - min_t A_j(t)      over the points inside the turn: the stability gap

and, ours, the area under the forgetting curve: 1/(k-1) sum_{j<k} of the mean over time of A_j(end of its turn) - A_j(t), by the
trapezoid rule over optimiser steps. A minimum over few examples is too low by their noise: look at n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from cl_softcot.answering.evaluate import Probe
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings, Subject
from cl_softcot.reasoning.base import Reasoning

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig

Curve = list[tuple[int, float]]  # (optimiser steps since the start of the stream, accuracy)


class Settings(DiagnosticSettings):
    every: int = Field(20, ge=1, description="optimiser steps between two points")
    examples: int = Field(40, ge=1, description="examples a task and point, at most: the first ones of the evaluation")


class During(Diagnostic):
    """Answers the tasks learned so far every few steps. Per-task methods are told the task."""

    settings: Settings
    Settings = Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if not method.strategy.cls.trains:
            return "nothing is trained, so nothing happens between two rows"
        if method.strategy.cls.together:
            return "all tasks are learned in one turn: there is no earlier one to forget"
        return None

    def wants(self, row: int, last: int) -> bool:
        return row > 0  # every turn has points of its own

    def moments(self, reasoning: Reasoning, steps: int) -> list[int]:
        return list(range(self.settings.every, steps, self.settings.every))

    def measure_inside(self, subject: Subject) -> dict[str, Any]:
        return {"accuracy": self._accuracy(subject)}

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            of this turn: ``steps`` of its points, the last one after the turn, and ``accuracy``: task -> a value a point; of the
            stream so far: ``acc/min``, ``acc/wc``, ``forgetting/curve_area`` (None while there is one task) and
            ``stability_gap``: earlier task -> fraction; ``n``: examples a task.
        """
        points = [*(subject.inside[step]["accuracy"] for step in sorted(subject.inside)), self._accuracy(subject)]
        numbers: dict[str, Any] = {
            "steps": [*sorted(subject.inside), subject.train.steps],
            "accuracy": {task: [point[task] for point in points] for task in subject.learned},
            "n": {task: len(self._probe(subject, task).examples) for task in subject.learned},
        }
        turns = [*(subject.earlier[row] for row in sorted(subject.earlier)), numbers]
        return numbers | summary(subject.learned, turns, subject.train.steps)

    def _accuracy(self, subject: Subject) -> dict[str, float]:
        return {task: float(np.mean(subject.answered(self._probe(subject, task), task))) for task in subject.learned}

    def _probe(self, subject: Subject, task: str) -> Probe:
        probe = subject.probe(task)
        return Probe(probe.kind, probe.task, probe.examples[: self.settings.examples])


def summary(learned: Sequence[str], turns: Sequence[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The measures of the module's docstring.

    Args:
        learned: the tasks, in the order of their turns.
        turns: ``steps`` and ``accuracy`` of each turn.
        steps: optimiser steps of a turn.
    """
    k = len(learned)
    if k < 2:
        return {"acc/min": None, "acc/wc": None, "forgetting/curve_area": None, "stability_gap": {}}
    curves = {task: _since_learned(task, j, turns, steps) for j, task in enumerate(learned[:-1])}
    lowest = float(np.mean([min(value for _, value in curve[1:]) for curve in curves.values()]))
    now = turns[-1]["accuracy"][learned[-1]][-1]
    before = {task: turns[-2]["accuracy"][task][-1] for task in learned[:-1]}
    return {
        "acc/min": lowest,
        "acc/wc": now / k + (1 - 1 / k) * lowest,
        "forgetting/curve_area": float(np.mean([_area(curve) for curve in curves.values()])),
        "stability_gap": {task: before[task] - min(turns[-1]["accuracy"][task]) for task in learned[:-1]},
    }


def _since_learned(task: str, turn: int, turns: Sequence[dict[str, Any]], steps: int) -> Curve:
    """A task's accuracy from the end of its own turn on."""
    curve = [((turn + 1) * steps, turns[turn]["accuracy"][task][-1])]
    for later in range(turn + 1, len(turns)):
        points = zip(turns[later]["steps"], turns[later]["accuracy"][task], strict=True)
        curve += [(later * steps + step, value) for step, value in points]
    return curve


def _area(curve: Curve) -> float:
    """Mean over time of the fall since the first point."""
    times, values = map(np.asarray, zip(*curve, strict=True))
    return float(np.trapezoid(values[0] - values, times) / (times[-1] - times[0]))
