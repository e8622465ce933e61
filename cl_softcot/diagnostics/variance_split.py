"""How much of what soft thoughts bring is prompt-like, and how much belongs to the single question.

The same questions are answered with no thoughts (their slots taken away), with the mean thoughts of other questions of the
task (slot by slot, the same for all), with another question's thoughts, and with their own. What the mean thoughts gain over
none, as a share of what the own ones gain, is what a soft prompt would do as well. Beside it stands where the thoughts differ
at all: between slots, between tasks, or between the questions of a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cl_softcot.diagnostics._numbers import SOURCES, by_task_and_pooled, change, level_of, ratio, variance_shares
from cl_softcot.diagnostics._thoughts import Answered, answered_many, recorded, some, thinking_of
from cl_softcot.diagnostics.base import Diagnostic, DiagnosticSettings
from cl_softcot.diagnostics.interventions import donors_of

if TYPE_CHECKING:
    from cl_softcot.answering.evaluate import Probe
    from cl_softcot.config.settings import MethodConfig
    from cl_softcot.diagnostics.base import Subject

_RESAMPLES = 200  # of questions, behind the intervals of the variance shares


class VarianceSplit(Diagnostic):
    """Gains of mean, swapped and own soft thoughts over none, and shares of the thoughts' variance."""

    class Settings(DiagnosticSettings):
        n: int = Field(32, ge=2, description="examples a task")
        mean_over: int = Field(64, ge=1, description="training examples that the mean thoughts are taken over, at most")

    settings: Settings

    @classmethod
    def refuses(cls, method: MethodConfig) -> str | None:
        if thinking_of(method).thought != "slot":
            return f"{method.reasoning.name} has no soft thoughts in slots"
        return None

    def measure(self, subject: Subject) -> dict[str, Any]:
        n_boot = subject.evaluate.bootstrap
        tasks: dict[str, Any] = {}
        found: dict[str, dict[str, Answered]] = {}
        thoughts: dict[str, Tensor] = {}
        for name in subject.learned:
            with subject.answering(name):
                found[name], thoughts[name] = self._task(subject, subject.probe(name))
            tasks[name] = split_of({name: found[name]}, n_boot) | {"variance": variance_of([thoughts[name]], subject.seed)}
        result = by_task_and_pooled(tasks, lambda: split_of(found, n_boot))
        if len(thoughts) > 1:
            result["pooled"]["variance"] = variance_of(list(thoughts.values()), subject.seed)
        return result

    def _task(self, subject: Subject, probe: Probe) -> tuple[dict[str, Answered], Tensor]:
        encoded = subject.encode(some(probe, self.settings.n))
        own = recorded(subject, encoded)
        known = probe.task.count("train")
        n = self.settings.mean_over if known is None else min(self.settings.mean_over, known)
        others = recorded(subject, subject.encode(probe.task.examples("train", n, subject.seed)))
        mean_KD = torch.stack(others).float().mean(0).to(own[0])
        donors = donors_of(len(own), subject.seed)
        conditions = {
            "own": own,
            "mean": [mean_KD] * len(own),
            "swap": [own[donor] for donor in donors],
            "none": [thoughts_KD[:0] for thoughts_KD in own],
        }
        return answered_many(subject, probe, encoded, conditions), torch.stack(own).float().cpu()


def split_of(tasks: dict[str, dict[str, Answered]], n_boot: int) -> dict[str, Any]:
    """Levels under each condition, gains over none, and the gains of mean and swapped thoughts as a share of the own ones'.

    ``share_of_gain``: of accuracy and of the log-probability (nats) of the gold answer, and of all gold text.
    """
    by_condition = {name: {task: found[name] for task, found in tasks.items()} for name in ("own", "mean", "swap", "none")}
    none = by_condition["none"]
    shares = {}
    for kind in ("mean", "swap"):
        shares[kind] = {
            what: ratio(_gains(tasks, kind, what), _gains(tasks, "own", what), n_boot)
            for what in ("accuracy", "logp", "text_logp")
        }
    return {
        "without": level_of(none, n_boot),
        "gain": {name: change(by_condition[name], none, n_boot) for name in ("own", "mean", "swap")},
        "share_of_gain": shares,
    }


def _gains(tasks: dict[str, dict[str, Answered]], kind: str, what: str) -> list[np.ndarray]:
    def values(answered: Answered) -> np.ndarray:
        return np.asarray(answered.right if what == "accuracy" else getattr(answered, what), dtype=np.float64)

    return [values(found[kind]) - values(found["none"]) for found in tasks.values()]


def variance_of(thoughts: list[Tensor], seed: int) -> dict[str, Any]:
    """Shares of the variance of thoughts [Q, K, D] of each task, with 95 % intervals over resampled questions."""
    Q = min(map(len, thoughts))
    x_TQKD = np.stack([thoughts_QKD[:Q].numpy() for thoughts_QKD in thoughts])
    shares, rng = variance_shares(x_TQKD), np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(Q, size=(len(thoughts), Q))
        drawn.append(variance_shares(np.stack([x[r] for x, r in zip(x_TQKD, rows, strict=True)])))
    ends = {name: np.quantile([d[name] for d in drawn], [0.025, 0.975]) for name in SOURCES}
    named = {name: {"value": shares[name], "low": float(ends[name][0]), "high": float(ends[name][1])} for name in SOURCES}
    return {"n": Q, "tasks": len(thoughts), "shares": named}
