"""One run: a method, a task order, a seed. Builds it, lets it learn turn after turn, measures after each, and writes its folder.

    <run folder>/  config.json  events.jsonl  rows/row_<i>.json  predictions/  checkpoints/  figures/  result.json (last)

A run goes on where it was cut off: a turn that was learned is not learned again, a row that was measured is not measured again,
and the numbers are those of a run that was never interrupted.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from cl_softcot import checkpoint
from cl_softcot.config import Experiment, MethodConfig, run_fingerprint
from cl_softcot.errors import UserError
from cl_softcot.evaluate import Evaluator
from cl_softcot.files import atomic_write_json, read_json, read_jsonl
from cl_softcot.learning import Learner
from cl_softcot.metrics.cost import count_parameters, peak_memory_mb
from cl_softcot.metrics.intervals import summary_intervals
from cl_softcot.metrics.matrix import summary
from cl_softcot.models.language_model import LanguageModel, load_language_model
from cl_softcot.per_task import NearestRouter, PerTaskPolicy, TaskBank, make_router
from cl_softcot.policy import BasePolicy, MethodPolicy
from cl_softcot.reasoning.base import Parts
from cl_softcot.registry import find
from cl_softcot.stream import data_fingerprint, make_stream
from cl_softcot.tasks.base import Task
from cl_softcot.trackers.event_log import EventLog, final_metrics, row_metrics

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunSpec:
    """Which run of an experiment."""

    method: str
    order: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}.{self.order}.seed{self.seed}"


# ------------------------------------------------------------------------------------------------ what runs share


@cache
def _model(path: str, dtype: str, attention: str | None, trust_remote_code: bool) -> LanguageModel:
    """Loaded once a process; runs train copies."""
    return load_language_model(path, dtype, attention, trust_remote_code)


def load_models(config: Experiment) -> tuple[LanguageModel, LanguageModel | None]:
    """Backbone and assistant, never changed by anybody."""
    found = [m and _model(m.path, m.dtype, m.attention, m.trust_remote_code) for m in (config.backbone, config.assistant)]
    return found[0], found[1]


def make_tasks(config: Experiment, order: str) -> list[Task]:
    """The tasks of the stream, in the order of the run."""
    return [task.make() for task in config.tasks_in(order)]


def retention_tasks(config: Experiment, backbone: LanguageModel) -> list[Task]:
    """What the base's own abilities are measured on: as configured, or the families that the backbone was made with."""
    if config.evaluate.retention_tasks is not None:
        return [task.make() for task in config.evaluate.retention_tasks]
    families = (backbone.marker or {}).get("families", {})
    kinds = {family: find("task", name) for family, name in families.items()}
    return [kind(kind.Settings(), family) for family, kind in kinds.items()]


def general_examples(config: Experiment, backbone: LanguageModel) -> list[Any]:
    """Prompts like those that the backbone was pretrained on, where that is known."""
    if not (config.evaluate.general_text and config.evaluate.drift and (backbone.marker or {}).get("families")):
        return []
    from cl_softcot.tiny.corpus import general_text

    return general_text(config.evaluate.drift, 0)


def make_evaluator(config: Experiment, tasks: Sequence[Task]) -> Evaluator:
    backbone, _ = load_models(config)
    base = BasePolicy(backbone, batch_size=config.evaluate.batch_size)
    return Evaluator(config.evaluate, tasks, retention_tasks(config, backbone), general_examples(config, backbone), base)


def measure_base(config: Experiment, shared: Path, report: Report) -> None:
    """What is the same for every run: the base's answers and continuations, on all tasks (an order may leave some out). Done
    once an experiment.

    Raises:
        UserError: if it was done on other data, or with another base.
    """
    make_exact()
    evaluator = make_evaluator(config, [task.make() for task in config.tasks])
    if evaluator.has_measured_base(shared):
        return
    report({"text": "answering everything as the base does, once for all methods"})
    evaluator.measure_base(shared)


def make_exact() -> None:
    """One core a run; the same sums in the same order, however many run side by side, and in whatever environment."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


# ------------------------------------------------------------------------------------------------------- the run


def run_one(config: Experiment, spec: RunSpec, folder: Path, shared: Path, provenance: Mapping[str, Any], report: Report) -> dict:
    """Runs, or goes on with, one run; returns its result (also in ``folder/result.json``).

    Raises:
        UserError: for everything that the user can mend (a loss that diverged, a full disk, data that do not fit).
    """
    make_exact()
    run = _Run(config, spec, folder, shared, report)
    run.log.status("RUNNING")
    try:
        run.go()
    except BaseException:
        run.log.status("FAILED")
        raise
    result = run.result(provenance)
    run.finish(result)
    return result


class _Run:
    def __init__(self, config: Experiment, spec: RunSpec, folder: Path, shared: Path, report: Report):
        self.config, self.spec, self.folder, self.report = config, spec, folder, report
        self.method: MethodConfig = config.method(spec.method)
        self.train = config.train_for(self.method)
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        self.log = EventLog(folder)
        self._say("preparing", 0.0)
        pristine, assistant = load_models(config)
        self.backbone_sha256 = pristine.fingerprint
        reasoning = self.method.reasoning.cls(self.method.reasoning.settings)
        self.parts = Parts(pristine.copy(), assistant, reasoning)
        reasoning.build(self.parts, spec.seed)
        self.strategy = self.method.strategy.cls(self.method.strategy.settings)
        self.strategy.prepare(self.parts, spec.seed)
        self.evaluator = make_evaluator(config, make_tasks(config, spec.order))
        self.evaluator.load_base(shared)
        self.tasks = [probe.task for probe in self.evaluator.tasks]
        self.bank = self.router = None
        if self.method.per_task:
            self.bank, self.router = TaskBank(self.strategy, self.parts), make_router(self.method.per_task.routing, self.parts)
        self.rows: list[dict[str, Any]] = []
        self.turns: list[dict[str, Any]] = []
        self.data_fingerprint: list[str] = []
        self._done = 0  # turns that a checkpoint says are learned
        self._inside = False  # the checkpoint was made inside a turn

    # ------------------------------------------------------------------------------------------------ the whole way

    def go(self) -> None:
        self._register_evaluation()
        if self.strategy.trains:
            self._learn_all()
            return
        for i in range(len(self.tasks) + 1):
            self._measure(i, 0.0, None)

    def _learn_all(self) -> None:
        sets = [(task.name, task.examples("train", self.train.examples, self.spec.seed)) for task in self.tasks]
        self.parts.reasoning.register(self.parts, [e for _, examples in sets for e in examples])
        self.data_fingerprint = [data_fingerprint(name, examples) for name, examples in sets]
        learner = Learner(self.parts, self.strategy, self.train, self.method.plugins, self.spec.seed, self._on_step)
        stream = make_stream(sets, learner.collate)
        done = self._done = self._restore(learner, stream)
        self._measure(0, 0.0, None)
        for turn in self.strategy.plan(stream):
            if turn.index >= done:
                if self.bank and not self._inside:
                    self.bank.fresh()
                self._inside = False
                learned = self.strategy.learn(turn, partial(self._loop, learner))
                self.strategy.after(turn)
                self._keep_copy(turn)
                self.turns.append({"train_seconds": learned.train_seconds, "steps": learned.steps, "losses": learned.losses})
                self._save(learner.state_dict(), turn.index + 1)
            self._measure(turn.index + 1, self.turns[turn.index]["train_seconds"], turn)

    def _loop(self, learner: Learner, turn: Any) -> Any:
        return learner.loop(turn, checkpoint=lambda snapshot: self._save(snapshot, turn.index))

    def _keep_copy(self, turn: Any) -> None:
        if self.bank:
            self.bank.keep(turn.name)
            self.router.fit(turn.name, turn.examples)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _save(self, snapshot: Mapping[str, Any], turns_done: int) -> None:
        tensors = dict(snapshot["tensors"])
        if self.bank:
            tensors |= {f"bank/{name}": t for name, t in self.bank.tensors().items()}
            tensors |= {f"router/{name}": t for name, t in _router_tensors(self.router).items()}
        state = {
            "turns_done": turns_done,
            "turns": self.turns,
            "tasks": [task.name for task in self.tasks],
            "kept": self.bank.tasks if self.bank else [],
            "learner": snapshot["state"],
        }
        checkpoint.save(self.folder / "checkpoints", f"turn_{turns_done}", tensors, state)

    def _restore(self, learner: Learner, stream: Any) -> int:
        """Loads the last good checkpoint; returns how many turns are done."""
        found = checkpoint.load_latest(self.folder / "checkpoints")
        if found is None:
            return 0
        for problem in found.skipped:
            self.report({"text": problem})
        if self.bank:
            kept = _under(found.tensors, "bank/")
            self.bank.load({key: kept[key] for task in found.state["kept"] for key in kept if key.startswith(f"{task}/")})
            _load_router(self.router, _under(found.tensors, "router/"), found.state["kept"])
        learner.load_state_dict({"tensors": found.tensors, "state": found.state["learner"]}, stream)
        self._inside = found.state["learner"]["turn"] is not None
        self.turns = found.state["turns"]
        return found.state["turns_done"]

    # ----------------------------------------------------------------------------------------------------- measuring

    def _register_evaluation(self) -> None:
        examples = [e for probe in (*self.evaluator.tasks, *self.evaluator.families) for e in probe.examples]
        self.parts.reasoning.register(self.parts, examples)

    def _measure(self, i: int, train_seconds: float, turn: Any) -> None:
        """Row i: taken from disk where it was measured before."""
        path = self.folder / "rows" / f"row_{i}.json"
        predictions = self.folder / "predictions" / f"row_{i}.jsonl"
        if path.exists() and predictions.exists():
            self.evaluator.answers.remember_file(predictions)
            self.evaluator.answers.remember_file(self.folder / "predictions" / f"weights_alone_{i}.jsonl")
            row = read_json(path)
        elif i < self._done or (self._inside and i == self._done):
            raise UserError(
                f"row {i} is missing, and later turns were learned since", where=str(path), fix="start over with --restart"
            )
        else:
            after = f"after {turn.name}" if turn is not None else "before learning"
            self._say(f"measuring {after}", self._fraction(i, 0))
            row = self._row(i) | {"train_seconds": train_seconds}
            atomic_write_json(path, row)
        self.rows.append(row)
        self.log.metrics(i, row_metrics(self._partial(), i))
        self.report({"logged": str(self.folder)})

    def _row(self, i: int) -> dict[str, Any]:
        size = self.config.evaluate.batch_size
        alone = MethodPolicy(self.parts, self.strategy, batch_size=size, weights_alone=True)
        if i == 0:  # row 0 is the base's zero-shot CoT; the base in the method's own mode stands beside it
            row = self.evaluator.row(0, self.evaluator.base, self.evaluator.base, self.folder)
            row["untrained"] = self.evaluator.untrained(MethodPolicy(self.parts, self.strategy, batch_size=size))
            return row
        policy: Any = MethodPolicy(self.parts, self.strategy, batch_size=size)
        if self.bank:
            # With a base policy of its own: `alone` is the weights as they are, and remembers their fingerprint.
            policy = PerTaskPolicy(self.bank, self.router, batch_size=size)
        return self.evaluator.row(i, policy, alone, self.folder)

    # -------------------------------------------------------------------------------------------------------- result

    def _partial(self) -> dict[str, Any]:
        rows = self.rows
        return {
            "tasks": [task.name for task in self.tasks],
            "accuracy": {
                "matrix": [r["accuracy"]["values"] for r in rows],
                "n": rows[0]["accuracy"]["n"],
                "intervals": [r["accuracy"]["intervals"] for r in rows],
                "unanswered": [r["accuracy"]["unanswered"] for r in rows],
                "untrained": rows[0]["untrained"],
                "by": [r["accuracy"]["by"] for r in rows],
            },
            "retention": {
                "families": [probe.name for probe in self.evaluator.families],
                "same_family": self.evaluator.same_family,
                "as_used": [r["retention"]["as_used"] for r in rows],
                "weights_alone": [r["retention"]["weights_alone"] for r in rows],
            },
            "drift": {
                "as_used": [r["drift"]["as_used"] for r in rows],
                "weights_alone": [r["drift"]["weights_alone"] for r in rows],
            },
        }

    def result(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """What `result.json` holds (see the README of experiments/results for its fields)."""
        partial, method = self._partial(), self.method
        after = self.parts.backbone.weights_sha256()
        trained = count_parameters(self.strategy.tensors(self.parts)) if self.strategy.trains else 0
        last = self.rows[-1]
        return {
            "schema": 1,
            "experiment": self.config.name,
            "method": method.name,
            "order": self.spec.order,
            "seed": self.spec.seed,
            "tasks": partial["tasks"],
            "families": {task.name: task.family for task in self.tasks},
            "reasoning": method.reasoning.model_dump(mode="json"),
            "strategy": method.strategy.model_dump(mode="json"),
            "per_task": method.per_task.model_dump(mode="json") if method.per_task else None,
            "plugins": [plugin.model_dump(mode="json") for plugin in method.plugins],
            "split": self.config.evaluate.split,
            "accuracy": partial["accuracy"],
            "summary": self._summary(partial["accuracy"]["matrix"]),
            "retention": partial["retention"],
            "drift": partial["drift"],
            "routing": [row.get("routing") for row in self.rows] if self.bank else None,
            "cost": {
                "trained_parameters": trained * (len(self.tasks) if self.bank else 1),
                "trained_parameters_per_copy": trained,
                "tokens_per_answer": last["cost"]["tokens_per_answer"],
                "forward_passes_per_answer": last["cost"]["forward_passes_per_answer"],
                "train_seconds": sum(row["train_seconds"] for row in self.rows),
                "evaluate_seconds": sum(row["evaluate_seconds"] for row in self.rows),
                "optimiser_steps": sum(turn["steps"] for turn in self.turns),
                "examples_per_task": self.train.examples if self.strategy.trains else 0,
                "peak_memory_mb": peak_memory_mb(),
            },
            "losses": [turn["losses"] for turn in self.turns],
            "frozen": {
                "backbone_sha256_before": self.backbone_sha256,
                "backbone_sha256_after": after,
                "unchanged": after == self.backbone_sha256,
            },
            "train_fingerprints": self.data_fingerprint,
            "config_fingerprint": run_fingerprint(self.config, self.spec.method, self.spec.order, self.spec.seed),
            "machine": {"processor": platform.machine(), "system": platform.system(), "device": str(self.parts.backbone.device)},
            **provenance,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _summary(self, matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
        outcomes = []
        for i in range(len(matrix)):
            found: dict[str, list[float]] = {task.name: [] for task in self.tasks}
            path = self.folder / "predictions" / f"row_{i}.jsonl"
            for p in read_jsonl(path):
                if p["set"] == "task":
                    found[p["task"]].append(float(p["outcome"] == "right"))
            outcomes.append(list(found.values()))
        values: dict[str, Any] = dict(summary(matrix))
        intervals = summary_intervals(outcomes, self.config.evaluate.bootstrap)
        values |= {f"{name}_interval": list(interval) if interval else None for name, interval in intervals.items()}
        return values

    def finish(self, result: dict[str, Any]) -> None:
        """Figures, tables and last numbers; ``result.json`` comes last: a run without it is not finished."""
        from cl_softcot.trackers import figures
        from cl_softcot.trackers.predictions import TABLE_TAGS, write_predictions

        self._say("drawing", 0.99)
        pages = figures.draw_run(result, self.folder / "figures") + write_predictions(self.folder, result)
        self.log.metrics(0, final_metrics(result))  # MLflow draws a bar for a metric whose only step is 0
        if pages:
            self.log.tags(TABLE_TAGS)
        for page in pages:
            self.log.artifact(page.relative_to(self.folder))
        atomic_write_json(self.folder / "result.json", result)
        self.log.artifact("result.json")
        self.log.status("FINISHED")
        self.report({"logged": str(self.folder)})

    # ------------------------------------------------------------------------------------------------------ progress

    def _fraction(self, row: int, step: int) -> float:
        """How far the run is: rows count as much as half a turn."""
        turns, steps = len(self.tasks), max(self.train.steps, 1)
        learned = min(row, turns) if step == 0 else row + step / steps
        return (learned + 0.5 * row) / (1.5 * turns + 0.5)

    def _on_step(self, step: Mapping[str, Any]) -> None:
        if step["step"] % 5 == 0 or step["step"] == step["steps"]:
            fraction = self._fraction(step["turn"], step["step"])
            self.report({"phase": f"learning {step['task']}", "done": step["step"], "total": step["steps"], "fraction": fraction})

    def _say(self, phase: str, fraction: float) -> None:
        self.report({"phase": phase, "fraction": fraction})


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _router_tensors(router: Any) -> dict[str, Any]:
    return router.tensors() if isinstance(router, NearestRouter) else {}


def _load_router(router: Any, tensors: Mapping[str, Any], tasks: Sequence[str]) -> None:
    if isinstance(router, NearestRouter):
        # Routes break ties in favour of the task that came first: the order of the turns is part of the state.
        router.load({f"{task}/{part}": tensors[f"{task}/{part}"] for task in tasks for part in ("centroid", "radius")})
    else:
        for task in tasks:
            router.fit(task, [])
