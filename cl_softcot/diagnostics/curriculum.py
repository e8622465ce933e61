"""Forgetting inside a curriculum: how well earlier stages (fewer thoughts, more text) still work after later ones.

For every task a matrix ``S[l, s]``: the share of examples that are answered right at stage ``s``, when training has come to the
end of its l-th stretch (one stage each, in the order of the curriculum). It is measured inside the turn, after the last optimiser
step of each stretch, and after the turn. The last row adds how all stages of all tasks work at the end of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cl_softcot.answering.evaluate import Probe
from cl_softcot.diagnostics._changes import accuracy, change
from cl_softcot.diagnostics.base import NO_SEQUENCE, Diagnostic, DiagnosticSettings, Subject
from cl_softcot.reasoning.base import Phase, Reasoning

if TYPE_CHECKING:
    from cl_softcot.config.settings import MethodConfig

_ANY = 1000  # steps, where only the order of the stages matters


class Settings(DiagnosticSettings):
    examples: int = Field(50, ge=1, description="test examples a task and stage, at most")


class Curriculum(Diagnostic):
    """Answers a task at every stage of its curriculum, at the end of every stage of its training."""

    settings: Settings
    Settings = Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if method.strategy.cls.reference:
            return NO_SEQUENCE
        if not method.strategy.cls.trains:
            return "nothing is trained, so no stage comes after another"
        if method.strategy.cls.together:
            return "all tasks are learned in one turn: none has stages of its own"
        reasoning = method.reasoning.cls(method.reasoning.settings)
        if len({phase.stage for phase in reasoning.phases(_ANY)}) < 2:
            return f"{method.reasoning.name} is trained at one stage only here: there is no earlier one to forget"
        return None

    def wants(self, row: int, last: int) -> bool:
        return row > 0  # every task has a matrix of its own

    def moments(self, reasoning: Reasoning, steps: int) -> list[int]:
        """The last step of each stretch but the last, which ends with the turn."""
        return list(accumulate(phase.steps for phase in reasoning.phases(steps)))[:-1]

    def measure_inside(self, subject: Subject) -> dict[str, Any]:
        return {"outcomes": self._outcomes(subject, subject.learned[-1])}

    def measure(self, subject: Subject) -> dict[str, Any]:
        """
        Returns:
            of the task just learned: ``trained``, stages in the order of training, the rows of its matrix; ``stages``, those
            that it is answered at, the columns; ``accuracy``; ``outcomes``, the same as texts of 0 and 1, an example each;
            ``forgetting``. After the last experience (``rows: each``: after every one) ``later``: of every task before, the
            accuracy at each stage now, and the change since the end of its own turn.
        """
        task = subject.learned[-1]
        trained = [phase.stage for phase in subject.parts.reasoning.phases(subject.train.steps)]
        rows = [subject.inside[step]["outcomes"] for step in sorted(subject.inside)] + [self._outcomes(subject, task)]
        n_boot = subject.evaluate.bootstrap
        numbers: dict[str, Any] = {
            "task": task,
            "trained": trained,
            "stages": [int(stage) for stage in rows[-1]],
            "accuracy": [[accuracy(_right(text), n_boot) for text in row.values()] for row in rows],
            "forgetting": forgetting(trained, rows, n_boot),
            "outcomes": rows,
        }
        if self.settings.rows == "each" or subject.row == len(subject.tasks):
            numbers["later"] = {kept["task"]: self._later(subject, kept) for kept in subject.earlier.values()}
        return numbers

    def _later(self, subject: Subject, kept: dict[str, Any]) -> dict[str, Any]:
        """How a task that was learned earlier is answered now, against the end of its turn."""
        now, then, n_boot = self._outcomes(subject, kept["task"]), kept["outcomes"][-1], subject.evaluate.bootstrap
        return {
            "stages": kept["stages"],
            "accuracy": [accuracy(_right(text), n_boot) for text in now.values()],
            "change": [change(_right(now[s]), _right(then[s]), n_boot) for s in now],
            "outcomes": now,
        }

    def _outcomes(self, subject: Subject, task: str) -> dict[str, str]:
        """Stage -> a text of 0 and 1, one for each example; stages as texts, as they come back from disk."""
        probe = subject.probe(task)
        probe = Probe(probe.kind, probe.task, probe.examples[: self.settings.examples])
        stages = sorted({phase.stage for phase in subject.parts.reasoning.phases(_ANY)})
        return {str(stage): "".join(map(str, subject.answered(probe, task, Phase(stage, 0)))) for stage in stages}


def forgetting(trained: Sequence[int], rows: Sequence[Mapping[str, str]], n_boot: int = 1000) -> dict[str, Any]:
    """What later stages cost earlier ones: Chaudhry et al. 2018 (RWalk, eq. 3) with stages in the place of tasks.

    Args:
        trained: the stage of each stretch of training.
        rows: outcomes after each stretch, stage -> text of 0 and 1.

    Returns:
        for each stage that was trained before the last: ``forgetting/chaudhry``, max over all earlier stretches of S[l, s] minus
        the last S[s]; ``change``, the last minus that after the stage's own (latest) stretch, paired over examples; and the means
        over these stages. A maximum of noisy numbers is too high: ``change`` is not.
    """
    before = [stage for stage in dict.fromkeys(trained) if stage != trained[-1]]
    found: dict[str, Any] = {"stages": before, "forgetting/chaudhry": [], "change": []}
    for stage in before:
        texts = [row[str(stage)] for row in rows]
        own = max(i for i, s in enumerate(trained) if s == stage)
        found["forgetting/chaudhry"].append(max(map(_share, texts[:-1])) - _share(texts[-1]))
        found["change"].append(change(_right(texts[-1]), _right(texts[own]), n_boot))
    if before:
        found["mean"] = {
            "forgetting/chaudhry": sum(found["forgetting/chaudhry"]) / len(before),
            "change": sum(c["value"] for c in found["change"]) / len(before),
        }
    return found


def _right(text: str) -> list[int]:
    return [int(outcome) for outcome in text]


def _share(text: str) -> float:
    return text.count("1") / len(text)
