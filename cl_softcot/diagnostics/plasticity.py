"""Plasticity: how much is learned of a new task from here, and how much from the method's own beginning, in equal steps?

Loss of plasticity is the other half of the trade with forgetting (Dohare et al. 2024, Nature 632, "Loss of plasticity in deep
continual learning"). The probe task is one that the stream does not have; it is learned on a copy, and nothing of it stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cl_softcot.answering.evaluate import DATA_SEED, Probe
from cl_softcot.config.plugins import TaskConfig
from cl_softcot.diagnostics._changes import accuracy, change, ratio
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings, Subject
from cl_softcot.tasks.base import Example, Split, SyntheticTask, Task

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig


class Settings(DiagnosticSettings):
    task: TaskConfig | None = Field(
        None,
        description="the probe task (null: the first of the base's own families that the stream does not have, in its "
        "alternative convention where it has one)",
    )
    steps: int = Field(80, ge=1, description="optimiser steps on the probe task")
    examples: int = Field(800, ge=1, description="its training examples")
    test: int = Field(100, ge=1, description="its test examples")


class Plasticity(Diagnostic):
    """Learns a held-out task from the method as it is, and once a run from what it began with."""

    settings: Settings
    Settings = Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if not method.strategy.cls.trains:
            return "nothing is trained, so nothing can be learned"
        if method.per_task:
            return "every task begins from an untrained copy: what was learned before cannot hinder it, by construction"
        return None

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            ``now`` and ``from_the_beginning``: accuracy ``before`` and ``after`` learning the probe task, and the ``losses``
            on the way (nats per token, every ten steps). ``gain_ratio``: gain now / gain from the beginning, below 1 where
            plasticity was lost. ``after_difference``: accuracy after learning, now minus from the beginning: other than the
            ratio it does not count against a method what it could do before.
        """
        task = self._task(subject)
        if task is None:
            return {
                "unmeasured": "the base has no families of its own that the stream leaves out; name a probe task: "
                "diagnostics: [{name: plasticity, task: {name: ..., task: ...}}]"
            }
        probe = Probe("task", task, _at_most(task, subject.evaluate.split, self.settings.test, DATA_SEED))
        examples = _at_most(task, "train", self.settings.examples, subject.seed)
        if "plasticity" not in subject.cache:
            subject.cache["plasticity"] = self._learned(subject, probe, examples, fresh=True)
        fresh, now = subject.cache["plasticity"], self._learned(subject, probe, examples, fresh=False)
        n_boot = subject.evaluate.bootstrap
        gain, fresh_gain = ([a - b for a, b in zip(one["after"], one["before"], strict=True)] for one in (now, fresh))
        return {
            "task": task.name,
            "family": task.family,
            "steps": self.settings.steps,
            "now": _told(now, n_boot),
            "from_the_beginning": _told(fresh, n_boot),
            "gain_ratio": ratio(gain, fresh_gain, n_boot),
            "after_difference": change(now["after"], fresh["after"], n_boot),
        }

    def _task(self, subject: Subject) -> Task | None:
        if self.settings.task is not None:
            return self.settings.task.make()
        in_stream = {probe.task.family for probe in subject.tasks}
        for probe in subject.families:
            if probe.task.family not in in_stream and "train" in probe.task.splits:
                return _alternative(probe.task)
        return None

    def _learned(self, subject: Subject, probe: Probe, examples: list[Any], *, fresh: bool) -> dict[str, list[Any]]:
        """Outcomes on the probe's examples before and after learning it, and the losses."""
        with subject.changed(to=subject.initial if fresh else None):
            before = subject.answered(probe)
        with subject.learning(probe.name, examples, self.settings.steps, fresh=fresh) as losses:
            return {"before": before, "after": subject.answered(probe), "losses": list(losses)}


def _alternative(task: Task) -> Task:
    """A generated family in the convention that the base does not follow; any other task as it is."""
    if not isinstance(task, SyntheticTask):
        return task
    other = next(name for name in task.conventions if name != task.convention)
    return type(task)(task.settings.model_copy(update={"convention": other}), f"{task.name}_{other}")


def _at_most(task: Task, split: Split, n: int, seed: int) -> list[Example]:
    count = task.count(split)
    return task.examples(split, n if count is None else min(n, count), seed)


def _told(one: dict[str, list[Any]], n_boot: int) -> dict[str, Any]:
    return {"before": accuracy(one["before"], n_boot), "after": accuracy(one["after"], n_boot), "losses": one["losses"]}
