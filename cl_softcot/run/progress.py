"""How far a run is: what was learned, and the checkpoints that a later start goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cl_softcot.answering.per_task import NearestRouter
from cl_softcot.answering.subject import Subject
from cl_softcot.config.plan import Tell
from cl_softcot.errors import UserError
from cl_softcot.learning import checkpoint
from cl_softcot.learning.learner import Learner
from cl_softcot.learning.snapshot import TurnReport
from cl_softcot.learning.stream import Stream
from cl_softcot.machine import processes
from cl_softcot.results.folder import RunFolder


class Progress:
    """
    Attributes:
        turns: what each learned turn took: seconds, steps, losses.
        done: turns that a checkpoint said are learned, when this start began.
        inside: the checkpoint was made inside a turn, which has not gone on yet; step: after how many of its steps.
        sizes: numbers of processes that worked on this run, one after the other.
    """

    def __init__(self, subject: Subject, folder: RunFolder, report: Tell):
        self.subject, self.folder, self.report = subject, folder.checkpoints, report
        self.turns: list[dict[str, Any]] = []
        self.done = 0
        self.inside = False
        self.step = 0
        self.sizes = [processes.size()]

    def learned(self, turn: TurnReport) -> None:
        """A turn was learned."""
        self.turns.append({"train_seconds": turn.train_seconds, "steps": turn.steps, "losses": turn.losses})

    def save(self, snapshot: Mapping[str, Any], turns_done: int) -> None:
        """A checkpoint: the learner's snapshot, and the copies of a per-task method."""
        subject, tensors = self.subject, dict(snapshot["tensors"])
        if subject.bank:
            tensors |= {f"bank/{name}": t for name, t in subject.bank.tensors().items()}
            tensors |= {f"router/{name}": t for name, t in _router_tensors(subject.router).items()}
        state = {
            "turns_done": turns_done,
            "turns": self.turns,
            "tasks": [probe.name for probe in subject.tasks],
            "kept": subject.bank.tasks if subject.bank else [],
            "processes": self.sizes,
            "learner": snapshot["state"],
        }
        processes.from_main(lambda: checkpoint.save(self.folder, f"turn_{turns_done}", tensors, state))

    def restore(self, learner: Learner, stream: Stream) -> None:
        """Goes back to the last good checkpoint, if there is one."""
        found = checkpoint.load_latest(self.folder) if processes.is_main() else None
        known = processes.from_main(lambda: (found.state, found.skipped) if found else None)
        if known is None:
            return
        state, skipped = known
        tensors = processes.tensors_from_main(found.tensors if found else None)
        for problem in skipped:
            self.report({"text": problem})
        self._tell_other_size(state)
        if self.subject.bank:
            kept = _under(tensors, "bank/")
            self.subject.bank.load({key: kept[key] for task in state["kept"] for key in kept if key.startswith(f"{task}/")})
            _load_router(self.subject.router, _under(tensors, "router/"), state["kept"])
        learner.load_state_dict({"tensors": tensors, "state": state["learner"]}, stream)
        self.inside = state["learner"]["turn"] is not None
        self.step = state["learner"]["turn"]["step"] if self.inside else 0
        self.turns, self.done = state["turns"], state["turns_done"]

    def _tell_other_size(self, state: Mapping[str, Any]) -> None:
        """A run may go on with another number of processes: checkpoints hold whole tensors, batches are the same."""
        before, now = state.get("processes", [1]), processes.size()
        self.sizes = before if before[-1] == now else [*before, now]
        if before[-1] != now:
            dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self.subject.parts.backbone.model.modules())
            also = " and in the draws of dropout" if dropout else ""
            self.report(
                {"text": f"begun with {before[-1]} processes, goes on with {now}: same batches; numbers differ in rounding{also}"}
            )

    def refuse_late(self, row: int, path: Path) -> None:
        """A model that has learned on cannot be measured as it was.

        Raises:
            UserError: if what stands at ``path``, of row ``row``, can no longer be measured.
        """
        if row < self.done or (self.inside and row == self.done):
            raise too_late(row, path)

    def tell_changed(self, path: Path) -> None:
        """A file of an earlier start is not as that wrote it, and is not used."""
        self.report({"text": f"{path} was changed after it was written: measured again, where that is still possible"})

    def while_learning(self, turn: int, step: int) -> float:
        """How far the run is, 0 to 1: a row counts as much as half a turn."""
        return self._of_all(turn + step / max(self.subject.train.steps, 1), turn + 1)

    def while_measuring(self, row: int, part: float = 0.0) -> float:
        """The same while a row is measured, ``part`` of which is done."""
        turns = len(self.subject.tasks)
        return self._of_all(turns if self.subject.strategy.together and row else min(row, turns), row + part)

    def _of_all(self, turns: float, rows: float) -> float:
        return (turns + 0.5 * rows) / (1.5 * len(self.subject.tasks) + 0.5)


def too_late(row: int, path: Path) -> UserError:
    """What is said of a measurement that was missed."""
    return UserError(
        f"a measurement of row {row} is missing or was changed, and the model has learned on since",
        where=str(path),
        fix="put it back as it was, or delete the run's folder to do this run again (all runs: --restart)",
    )


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _router_tensors(router: Any) -> dict[str, Any]:
    return router.tensors() if isinstance(router, NearestRouter) else {}


def _load_router(router: Any, tensors: Mapping[str, Any], tasks: Sequence[str]) -> None:
    if isinstance(router, NearestRouter):
        # Routes break ties in favour of the task that came first: the order of the turns is part of the state.
        router.load({f"{task}/{part}": tensors[f"{task}/{part}"] for task in tasks for part in ("centroid", "radius")})
    else:
        for task in tasks:
            router.fit(task, [])
