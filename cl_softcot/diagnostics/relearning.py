"""Spurious or true forgetting: how much of a lost task comes back after a handful of steps on a few of its training examples?

What comes back at once was not gone but out of reach (Zheng et al. 2025, "Spurious forgetting in continual learning of language
models", arXiv 2501.13453). The control is what anybody would learn in these steps: the same from the method's own beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cl_softcot.answering.evaluate import Probe
from cl_softcot.diagnostics._changes import accuracy, change, ratio
from cl_softcot.diagnostics.base import NO_SEQUENCE, Diagnostic, DiagnosticSettings, Subject
from cl_softcot.tasks.base import Example

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig

_CONTROL = "relearning"


class Settings(DiagnosticSettings):
    steps: int = Field(5, ge=1, description="optimiser steps on each earlier task")
    examples: int = Field(64, ge=1, description="of its own training examples, the same that it was learned from")
    test: int = Field(100, ge=1, description="test examples a task, at most")


class Relearning(Diagnostic):
    """Learns each earlier task again for a few steps, each time from the method as it is; nothing of it stays.

    Where there is a curriculum, all steps are at its last stage: the task as it was answered.
    """

    settings: Settings
    Settings = Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if method.strategy.cls.reference:
            return NO_SEQUENCE
        if not method.strategy.cls.trains:
            return "nothing is trained, so nothing was learned that could be lost"
        if method.per_task:
            return "every task has a copy of its own, which later tasks leave alone: there is nothing to learn again"
        return None

    def wants(self, row: int, last: int) -> bool:
        return row > 1 and super().wants(row, last)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            for each earlier task accuracies on the same examples, ``as_learned`` (after its own turn), ``before`` and ``after``
            learning it again, ``control_before`` and ``control_after`` (the same steps from the method's beginning); ``lost``,
            before - as_learned; ``recovered``, (after - before) / (as_learned - before), and ``control``, the same share for the
            control: what is recovered beyond it was still there. Shares of a loss that was not shown are None.
        """
        return {"steps": self.settings.steps, "tasks": {name: self._task(subject, name) for name in subject.learned[:-1]}}

    def _task(self, subject: Subject, name: str) -> dict[str, Any]:
        probe, n_boot = subject.probe(name), subject.evaluate.bootstrap
        probe = Probe(probe.kind, probe.task, probe.examples[: self.settings.test])
        examples = probe.task.examples("train", subject.train.examples, subject.seed)[: self.settings.examples]
        n = len(probe.examples)
        learned = subject.outcomes(subject.learned.index(name) + 1, name)[:n]
        before = subject.outcomes(subject.row, name)[:n]
        after = self._after(subject, probe, examples, fresh=False)
        control_before, control_after = self._control(subject, probe, examples)
        given: dict[str, Sequence[int]] = {"as_learned": learned, "before": before, "after": after}
        given |= {"control_before": control_before, "control_after": control_after}
        return {
            **{key: accuracy(right, n_boot) for key, right in given.items()},
            "lost": change(before, learned, n_boot),
            "recovered": _share(before, after, learned, n_boot),
            "control": _share(control_before, control_after, learned, n_boot),
        }

    def _after(self, subject: Subject, probe: Probe, examples: list[Example], *, fresh: bool) -> list[int]:
        with subject.learning(probe.name, examples, self.settings.steps, fresh=fresh, last_stage=True):
            return subject.answered(probe)

    def _control(self, subject: Subject, probe: Probe, examples: list[Example]) -> tuple[list[int], list[int]]:
        """Outcomes of the method's beginning before and after these steps: the same at every row."""
        known = subject.cache.setdefault(_CONTROL, {})
        if probe.name not in known:
            with subject.changed(to=subject.initial):
                before = subject.answered(probe)
            known[probe.name] = before, self._after(subject, probe, examples, fresh=True)
        return known[probe.name]


def _share(before: Sequence[int], after: Sequence[int], goal: Sequence[int], n_boot: int) -> dict[str, Any]:
    """(after - before) / (goal - before)."""
    above = [a - b for a, b in zip(after, before, strict=True)]
    return ratio(above, [g - b for g, b in zip(goal, before, strict=True)], n_boot)
