"""A method of a run with everything that answers and measures it, and what a look at it needs."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_softcot.answering.evaluate import Evaluator, Probe
from cl_softcot.answering.per_task import PerTaskPolicy, Router, TaskBank
from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.answering.readings import judged
from cl_softcot.config.settings import EvaluateConfig, MethodConfig, TrainConfig
from cl_softcot.machine import processes
from cl_softcot.models.batch import Edit, Encoded
from cl_softcot.models.writing import Generation, generate
from cl_softcot.reasoning.base import Parts, Phase
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.folder import RunFolder
from cl_softcot.tasks.base import Example


@dataclass(frozen=True)
class Subject:
    """A method of a run, with all that it answers with and is measured by. ``build`` makes it once, and it is handed down.

    What changes as the run goes on are the weights in ``parts`` and the copies in ``bank``; which moment it is looked at is said
    by ``after`` and ``inside_turn``, which give the same subject with other marks of time.

    Attributes:
        row: which row of R was just measured; 0 is before learning. Inside a turn: the row that it leads to.
        learned: names of the tasks that were learned so far, in their order, that of the current turn included.
        tasks, families: the probes of the stream's tasks and of the base's own families, with their examples.
        base: the base model's plain chain of thought.
        bank, router: the copies of a per-task method and who chooses among them; None for others.
        folder: the run's own, which ``kept_tensors`` are in.
        step: inside a turn the number of its optimiser steps so far; None after it.
        inside: what this diagnostic measured inside the turn that led to the row: step -> numbers.
        earlier: what it measured at earlier rows: row -> numbers.
        cache: what diagnostics of one run share; empty again after an interruption.
        evaluator: measures rows of R; ``tasks``, ``families`` and ``base`` are its.
        backbone_sha256: of the backbone's weights as they were loaded.
        start: the trained tensors that every turn begins with, where turns do not go on from one another (``from_base``).
    """

    parts: Parts
    strategy: Any
    method: MethodConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    seed: int
    row: int
    learned: list[str]
    tasks: list[Probe]
    families: list[Probe]
    base: BasePolicy
    bank: TaskBank | None = None
    router: Router | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    step: int | None = None
    inside: dict[int, dict[str, Any]] = field(default_factory=dict)
    earlier: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluator: Evaluator | None = None
    backbone_sha256: str = ""
    start: dict[str, Tensor] = field(default_factory=dict)

    def after(self, row: int) -> Subject:
        """The method as it is after an experience (0: before the first), while it is."""
        return dataclasses.replace(self, row=row, learned=[probe.name for probe in self.tasks[:row]], step=None)

    def inside_turn(self, row: int, step: int) -> Subject:
        """The method after a step of the turn that leads to a row."""
        return dataclasses.replace(self.after(row), step=step)

    def knowing(self, inside: Mapping[int, dict[str, Any]], earlier: Mapping[int, dict[str, Any]]) -> Subject:
        """The same, with what one diagnostic measured of it before."""
        return dataclasses.replace(self, inside=dict(inside), earlier=dict(earlier))

    def policy(self) -> MethodPolicy | PerTaskPolicy:
        """The method as used. Ask for a new one after every turn: a policy takes its fingerprint once."""
        if self.bank and self.router:
            return PerTaskPolicy(self.bank, self.router, batch_size=self.evaluate.batch_size)
        return self.one_copy()

    def one_copy(self) -> MethodPolicy:
        """The method with its parts as they are now, whatever copies are kept beside."""
        return MethodPolicy(self.parts, self.strategy, batch_size=self.evaluate.batch_size)

    def alone(self) -> MethodPolicy:
        """The weights as they are in plain chain of thought, without anything that the method brings."""
        return MethodPolicy(self.parts, self.strategy, batch_size=self.evaluate.batch_size, weights_alone=True)

    def probe(self, name: str) -> Probe:
        """The probe of that name, of a task or else of a family."""
        return next(p for p in (*self.tasks, *self.families) if p.name == name)

    @contextlib.contextmanager
    def answering(self, task: str | None = None) -> Iterator[Parts]:
        """The parts as they answer a task: adapters as used, no dropout, no gradients, and of a per-task method the copy of that
        task (where it has none, its untrained parts). Inside a turn the copy in the making is that of the turn's task.
        """
        copy: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.bank and not (self.step is not None and task == self.learned[-1]):
            copy = self.bank.active(task if task in self.bank.copies else None)
        self.parts.backbone.model.eval()
        self.parts.reasoning.eval()
        with torch.no_grad(), copy, self.strategy.as_used(self.parts):
            yield self.parts

    def encode(self, examples: Sequence[Example], phase: Phase | None = None) -> list[Encoded]:
        """Examples as the method answers them, or as it would at another stage."""
        reasoning = self.parts.reasoning
        reasoning.register(self.parts, examples)
        phase = dataclasses.replace(phase or reasoning.final_phase(), answering=True)
        return [reasoning.encode(self.parts.backbone.text, e, phase, random.Random(0)) for e in examples]

    def write(
        self, encoded: Sequence[Encoded], edit: Edit | None = None, parts: Parts | None = None, limit: int | None = None
    ) -> list[Generation]:
        """Greedy answers; call inside ``answering``.

        Args:
            edit: changes the thoughts before the backbone reads them.
            parts: those to answer with in place of the method's, such as the same with another way of thinking.
            limit: longest answer in tokens, where it is not that of the evaluation.
        """
        parts = parts or self.parts
        limit, size = limit or self.evaluate.max_new_tokens, self.evaluate.batch_size
        return generate(parts.reasoning, parts, encoded, limit, batch_size=size, edit=edit)

    def right(self, probe: Probe, examples: Sequence[Example], answers: Sequence[Generation]) -> list[bool]:
        """Which answers are right, in the experiment's headline reading."""
        reading = self.evaluate.reading
        return [judged(probe.task, e, a.text, reading).outcome == "right" for e, a in zip(examples, answers, strict=True)]

    def answered(self, probe: Probe, task: str | None = None, phase: Phase | None = None) -> list[int]:
        """The probe answered now, as used: 1 for each example that is right, else 0.

        Args:
            task: see ``answering``.
            phase: the stage to answer at in place of the last.
        """
        with self.answering(task):
            answers = self.write(self.encode(probe.examples, phase))
        return [int(right) for right in self.right(probe, probe.examples, answers)]

    @contextlib.contextmanager
    def learning(
        self, name: str, examples: Sequence[Example], steps: int, *, fresh: bool = False, last_stage: bool = False
    ) -> Iterator[list[float]]:
        """The method after ``steps`` more optimiser steps on other examples, at its own rate; afterwards it is as it was.

        Args:
            name: what the examples are called.
            fresh: begin from what the method began with, in place of what it is now.
            last_stage: all steps at the stage that answers are given at, without the curriculum on the way there.

        Yields:
            the losses of the training (nats per token, a value every ten steps).
        """
        from cl_softcot.learning.learner import Learner
        from cl_softcot.learning.stream import make_stream

        train = self.train.model_copy(update={"steps": steps, "checkpoint_every_steps": 0})
        with self.changed(self.initial if fresh else None), self._phases(last_stage):
            learner = Learner(self.parts, self.strategy, train, (), self.seed)
            report = learner.loop(make_stream([(name, examples)], learner.collate)[0])
            yield report.losses

    @contextlib.contextmanager
    def _phases(self, last_stage: bool) -> Iterator[None]:
        reasoning = self.parts.reasoning
        if last_stage:
            last = reasoning.final_phase()
            vars(reasoning)["phases"] = lambda steps: [dataclasses.replace(last, steps=steps)]
        try:
            yield
        finally:
            vars(reasoning).pop("phases", None)

    @contextlib.contextmanager
    def changed(self, to: Mapping[str, Any] | None = None) -> Iterator[None]:
        """The trained tensors may change inside, and begin with the values ``to`` (such as ``initial``); afterwards they are as
        they were.
        """
        from cl_softcot.learning.snapshot import load_weights

        trained = self.strategy.tensors(self.parts)
        before = {n: t.detach().clone() for n, t in trained.items()}
        try:
            if to is not None:
                load_weights(trained, to)
            yield
        finally:
            load_weights(trained, before)

    def outcomes(self, row: int, name: str) -> list[bool]:
        """Which examples of a probe were answered right, as used, when that row was measured."""
        kind = next(p.kind for p in (*self.tasks, *self.families) if p.name == name)
        assert self.folder is not None, "answers are in the run's own folder"
        folder = RunFolder(self.folder)
        lines = processes.from_main(lambda: Checksums(folder.path).read_jsonl(folder.answers(row)))
        return [line["outcome"] == "right" for line in lines if (line["set"], line["task"]) == (kind, name)]

    @property
    def initial(self) -> dict[str, Any]:
        """The trained tensors as they were before anything was learned."""
        return self.cache["initial"]
