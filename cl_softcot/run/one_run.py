"""One run: a method, a task order, a seed. Builds it, lets it learn turn after turn, measures after each, and writes its folder.

    <run folder>/  config.json  events.jsonl  rows/row_<i>.json  predictions/  diagnostics/  checkpoints/  figures/
                   result.json (last)

A run goes on where it was cut off: a turn that was learned is not learned again, a row that was measured is not measured again,
and the numbers are those of a run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cl_softcot.answering.build import load_models, make_evaluator, make_tasks
from cl_softcot.answering.per_task import NearestRouter, PerTaskPolicy, TaskBank, make_router
from cl_softcot.answering.policy import MethodPolicy, tensors_sha256
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import OnRow, RunSpec, Tell
from cl_softcot.config.settings import MethodConfig
from cl_softcot.diagnostics.base import Diagnostic, Subject, undisturbed
from cl_softcot.errors import StopRun, UserError
from cl_softcot.files import atomic_write_json, jsonable, read_json
from cl_softcot.learning import checkpoint
from cl_softcot.learning.learner import Learner
from cl_softcot.learning.snapshot import load_weights
from cl_softcot.learning.stream import data_fingerprint, make_stream
from cl_softcot.machine import processes
from cl_softcot.machine.exact import make_exact, memory_explained
from cl_softcot.machine.lanes import LaneStopped, hand_on, working_seconds
from cl_softcot.models.frozen_states import tally
from cl_softcot.reasoning.base import Parts
from cl_softcot.results.events import EventLog, final_metrics, row_metrics
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.record import PartialRecord, RunRecord
from cl_softcot.run.recording import partial_record, run_record

# ------------------------------------------------------------------------------------------------------- the run


def run_one(
    config: Experiment,
    spec: RunSpec,
    folder: Path,
    shared: Path,
    provenance: Mapping[str, Any],
    report: Tell,
    on_row: OnRow | None = None,
) -> RunRecord:
    """Runs, or goes on with, one run; returns its record (also in ``folder/result.json``).

    Args:
        on_row: called with every row, in order, those that an earlier start measured included: the run, the row's index and the
            record so far (``PartialRecord``: its sections hold the rows up to this one).

    Raises:
        UserError: for everything that the user can mend (a loss that diverged, a full disk, data that do not fit).
        StopRun: if ``on_row`` did.
    """
    make_exact()
    log = EventLog(folder) if processes.is_main() else _NoLog()
    log.status("RUNNING")
    try:
        with memory_explained():
            run = _Run(config, spec, folder, shared, report, log, on_row)
            run.go()
            result = run.result(provenance)
            processes.from_main(lambda: run.finish(result))
    except BaseException as error:
        log.status("KILLED" if isinstance(error, StopRun | KeyboardInterrupt | LaneStopped) else "FAILED")
        raise
    return result


class _NoLog:
    """Stands for the log of a run in processes that write nothing."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class _Run:
    def __init__(
        self,
        config: Experiment,
        spec: RunSpec,
        folder: Path,
        shared: Path,
        report: Tell,
        log: EventLog | _NoLog,
        on_row: OnRow | None = None,
    ):
        self.config, self.spec, self.folder, self.report, self.on_row = config, spec, folder, report, on_row
        self.method: MethodConfig = config.method(spec.method)
        self.train = config.train_for(self.method)
        self.log = log
        self._assistant_seconds = tally.seconds  # of this thread, up to the last row
        self._say("preparing", 0.0)
        pristine, assistant = load_models(config)
        self.backbone_sha256 = pristine.fingerprint
        reasoning = self.method.reasoning.cls(self.method.reasoning.settings)
        self.strategy = self.method.strategy.cls(self.method.strategy.settings)
        backbone = pristine.copy(share_weights=not self.strategy.writes_weights)
        self.parts = Parts(backbone, assistant, reasoning)
        reasoning.build(self.parts, spec.seed)
        self.strategy.prepare(self.parts, spec.seed)
        self._make_equal()
        if self.train.sharding == "full" and self.strategy.trains:
            processes.shard(self.parts.backbone)
        self.evaluator = make_evaluator(config, make_tasks(config, spec.order))
        self.evaluator.load_base(shared)
        self.tasks = [probe.task for probe in self.evaluator.tasks]
        self.bank = self.router = None
        if self.method.per_task:
            self.bank, self.router = TaskBank(self.strategy, self.parts), make_router(self.method.per_task.routing, self.parts)
        trained = self.strategy.tensors(self.parts) if self.strategy.from_base else {}
        self._initial = {name: processes.local_copy(tensor) for name, tensor in trained.items()}
        self.rows: list[dict[str, Any]] = []
        self.turns: list[dict[str, Any]] = []
        self.data_fingerprint: list[str] = []
        trained = self.strategy.tensors(self.parts)
        initial = {n: t.detach().clone() for n, t in trained.items()} if config.measured else {}
        self._shared_by_diagnostics: dict[str, Any] = {"initial": initial}
        reasons = {one.name: one.cls.refuses(self.method) for one in config.measured}
        self._diagnosed: dict[str, dict[str, Any]] = {
            name: {"skipped": reason} if reason else {"rows": {}, "seconds": 0.0} for name, reason in reasons.items()
        }
        self._diagnostics: dict[str, Diagnostic] = {one.name: one.make() for one in config.measured if not reasons[one.name]}
        self._place = (config.seeds.index(spec.seed), list(config.orders).index(spec.order))
        self._done = 0  # turns that a checkpoint says are learned
        self._inside = False  # the checkpoint was made inside a turn
        self._sizes = [processes.size()]  # numbers of processes that worked on this run, one after the other

    def _make_equal(self) -> None:
        """Several processes begin with the same weights: what is trained comes from the first, the rest is compared."""
        if processes.size() == 1:
            return
        trained = self.strategy.tensors(self.parts) if self.strategy.trains else {}
        values = processes.tensors_from_main({name: t.detach().cpu() for name, t in trained.items()})
        load_weights(trained, values)
        processes.require_same("the models", self.backbone_sha256)
        processes.require_same("the trained weights", tensors_sha256(trained))

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
        train = self.train
        if self.strategy.together:
            sets = [(" + ".join(name for name, _ in sets), [e for _, examples in sets for e in examples])]
            train = train.model_copy(update={"steps": train.steps * len(self.tasks)})
        learner = Learner(self.parts, self.strategy, train, self.method.plugins, self.spec.seed, self._on_step)
        stream = make_stream(sets, learner.collate)
        done = self._done = self._restore(learner, stream)
        self._measure(0, 0.0, None)
        for turn in self.strategy.plan(stream):
            if turn.index >= done:
                if not self._inside:
                    self._begin_anew()
                self._inside = False
                learned = self.strategy.learn(turn, partial(self._loop, learner))
                self.strategy.after(turn)
                self._keep_copy(turn)
                self.turns.append({"train_seconds": learned.train_seconds, "steps": learned.steps, "losses": learned.losses})
                self._save(learner.state_dict(), turn.index + 1)
            self._measure(turn.index + 1, self.turns[turn.index]["train_seconds"], turn)
        for i in range(len(self.rows), len(self.tasks) + 1):  # learned together: all rows are of one model
            self._measure(i, 0.0, turn)

    def _begin_anew(self) -> None:
        """Where a turn does not begin with what the one before has learned."""
        if self.bank:
            self.bank.fresh()
        for name, tensor in self.strategy.tensors(self.parts).items() if self._initial else ():
            processes.put_local(tensor, self._initial[name])

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
            "processes": self._sizes,
            "learner": snapshot["state"],
        }
        processes.from_main(lambda: checkpoint.save(self.folder / "checkpoints", f"turn_{turns_done}", tensors, state))

    def _restore(self, learner: Learner, stream: Any) -> int:
        """Loads the last good checkpoint; returns how many turns are done."""
        found = checkpoint.load_latest(self.folder / "checkpoints") if processes.is_main() else None
        known = processes.from_main(lambda: found and (found.state, found.skipped))
        if known is None:
            return 0
        state, skipped = known
        tensors = processes.tensors_from_main(found.tensors if found else None)
        for problem in skipped:
            self.report({"text": problem})
        self._tell_other_size(state)
        if self.bank:
            kept = _under(tensors, "bank/")
            self.bank.load({key: kept[key] for task in state["kept"] for key in kept if key.startswith(f"{task}/")})
            _load_router(self.router, _under(tensors, "router/"), state["kept"])
        learner.load_state_dict({"tensors": tensors, "state": state["learner"]}, stream)
        self._inside = state["learner"]["turn"] is not None
        self.turns = state["turns"]
        return state["turns_done"]

    def _tell_other_size(self, state: Mapping[str, Any]) -> None:
        """A run may go on with another number of processes: checkpoints hold whole tensors, batches are the same."""
        before, now = state.get("processes", [1]), processes.size()
        self._sizes = before if before[-1] == now else [*before, now]
        if before[-1] != now:
            dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self.parts.backbone.model.modules())
            also = " and in the draws of dropout" if dropout else ""
            self.report(
                {"text": f"begun with {before[-1]} processes, goes on with {now}: same batches; numbers differ in rounding{also}"}
            )

    # ----------------------------------------------------------------------------------------------------- measuring

    def _register_evaluation(self) -> None:
        examples = [e for probe in (*self.evaluator.tasks, *self.evaluator.families) for e in probe.examples]
        self.parts.reasoning.register(self.parts, examples)

    def _measure(self, i: int, train_seconds: float, turn: Any) -> None:
        """Row i: taken from disk where it was measured before."""
        path = self.folder / "rows" / f"row_{i}.json"
        predictions = self.folder / "predictions" / f"row_{i}.jsonl"
        row = processes.from_main(lambda: read_json(path) if path.exists() and predictions.exists() else None)
        if row is not None:
            self.evaluator.answers.remember_file(predictions)
            self.evaluator.answers.remember_file(self.folder / "predictions" / f"weights_alone_{i}.jsonl")
        else:
            self._refuse_late(i, path)
            after = f"after {turn.name}" if turn is not None else "before learning"
            self._say(f"measuring {after}", self._fraction(i, 0))
            row = self._row(i) | {"train_seconds": train_seconds, "assistant_seconds": self._seconds_of_the_assistant()}
            processes.from_main(lambda: atomic_write_json(path, row))
        self.rows.append(row)
        self._diagnose(i)
        processes.from_main(lambda: self._tell(i))

    def _diagnose(self, i: int) -> None:
        """What the experiment wants to know beside row i: taken from disk where it was measured before."""
        for name, diagnostic in self._diagnostics.items():
            if not diagnostic.wants(i, len(self.tasks)):
                continue
            found = self._diagnosed[name]

            def measure(name: str = name, diagnostic: Diagnostic = diagnostic) -> tuple[dict[str, Any], float]:
                inside = self._found_inside(name, diagnostic, i)
                subject = self._subject(i)
                subject.inside = {step: kept["numbers"] for step, kept in inside.items()}
                subject.earlier = {int(row): numbers for row, numbers in self._diagnosed[name]["rows"].items()}
                with undisturbed(subject):
                    return diagnostic.measure(subject), sum(kept["seconds"] for kept in inside.values())

            kept = self._kept_or(measure, i, name)
            found["rows"][str(i)] = kept["numbers"]
            found["seconds"] += kept["seconds"]

    def _diagnose_inside(self, i: int, step: int, steps: int) -> None:
        """The same inside the turn that leads to row i. A checkpoint of this step comes later, so that a resumed run has what was
        measured before its checkpoint, and comes by again where it was not measured.
        """
        for name, diagnostic in self._diagnostics.items():
            if step not in diagnostic.moments(self.parts.reasoning, steps):
                continue

            def measure(diagnostic: Diagnostic = diagnostic) -> tuple[dict[str, Any], float]:
                subject = self._subject(i)
                subject.step = step
                with undisturbed(subject):
                    return diagnostic.measure_inside(subject), 0.0

            self._kept_or(measure, i, name, step)

    def _found_inside(self, name: str, diagnostic: Diagnostic, i: int) -> dict[int, dict[str, Any]]:
        if i == 0 or not self.turns:
            return {}
        turn = min(i, len(self.turns))  # tasks that are learned together have one
        moments = sorted(diagnostic.moments(self.parts.reasoning, self.turns[turn - 1]["steps"]))
        return {step: self._kept_or(None, turn, name, step) for step in moments}

    def _kept_or(
        self, measure: Callable[[], tuple[dict[str, Any], float]] | None, i: int, name: str, step: int | None = None
    ) -> dict[str, Any]:
        """Numbers and seconds from disk, or else from ``measure`` (which says what it needed before); None: it is too late."""
        path = self.folder / "diagnostics" / (f"{name}_{i}.json" if step is None else f"{name}_{i}_step{step}.json")
        kept = processes.from_main(lambda: read_json(path) if path.exists() else None)
        if kept is not None:
            return kept
        if measure is None:
            raise _too_late(i, path)
        if step is None:
            self._refuse_late(i, path)
        self._say(f"measuring {name}", self._fraction(i if step is None else i - 1, step or 0))
        started = working_seconds()
        numbers, before = measure()
        kept = {"numbers": jsonable(numbers), "seconds": working_seconds() - started + before}
        processes.from_main(lambda: atomic_write_json(path, kept))
        return kept

    def _subject(self, i: int) -> Subject:
        return Subject(
            parts=self.parts,
            strategy=self.strategy,
            method=self.method,
            train=self.train,
            evaluate=self.config.evaluate,
            seed=self.spec.seed,
            row=i,
            learned=[task.name for task in self.tasks[:i]],
            tasks=self.evaluator.tasks,
            families=self.evaluator.families,
            base=self.evaluator.base,
            bank=self.bank,
            router=self.router,
            cache=self._shared_by_diagnostics,
            folder=self.folder,
        )

    def _refuse_late(self, i: int, path: Path) -> None:
        """A model that has learned on cannot be measured as it was."""
        if i < self._done or (self._inside and i == self._done):
            raise _too_late(i, path)

    def _seconds_of_the_assistant(self) -> float:
        """Since the last row, learning included; next to nothing where the cache holds what it would compute."""
        before, self._assistant_seconds = self._assistant_seconds, tally.seconds
        return tally.seconds - before

    def _tell(self, i: int) -> None:
        partial = self._partial()
        self.log.metrics(i, row_metrics(partial, i))
        self.report({"logged": str(self.folder)})
        if self.on_row is not None:
            self.on_row(self.spec, i, partial)

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

    def _partial(self) -> PartialRecord:
        return partial_record(self.evaluator, self.rows)

    def result(self, provenance: Mapping[str, Any]) -> RunRecord:
        """What `result.json` holds."""
        return run_record(
            config=self.config,
            spec=self.spec,
            folder=RunFolder(self.folder),
            evaluator=self.evaluator,
            parts=self.parts,
            strategy=self.strategy,
            rows=self.rows,
            turns=self.turns,
            diagnosed=self._diagnosed,
            weights_before=self.backbone_sha256,
            train_fingerprints=self.data_fingerprint,
            sizes=self._sizes,
            provenance=provenance,
        )

    def finish(self, result: RunRecord) -> None:
        """Figures, tables and last numbers; ``result.json`` comes last: a run without it is not finished."""
        from cl_softcot.track import figures
        from cl_softcot.track.predictions import TABLE_TAGS, write_predictions

        self._say("drawing", 0.99)
        folder = RunFolder(self.folder)
        pages = figures.draw_run(result, folder.figures) + write_predictions(self.folder, result)
        self.log.metrics(0, final_metrics(result))  # MLflow draws a bar for a metric whose only step is 0
        if pages:
            self.log.tags(TABLE_TAGS)
        for page in pages:
            self.log.artifact(page.relative_to(self.folder))
        atomic_write_json(folder.result, result.as_dict())
        self.log.artifact(folder.result.name)
        self.log.status("FINISHED")
        self.report({"logged": str(self.folder)})

    # ------------------------------------------------------------------------------------------------------ progress

    def _fraction(self, row: int, step: int) -> float:
        """How far the run is: rows count as much as half a turn."""
        turns, steps = len(self.tasks), max(self.train.steps, 1)
        learned = min(row, turns) if step == 0 else row + step / steps
        if self.strategy.together and row:
            learned = turns
        return (learned + 0.5 * row) / (1.5 * turns + 0.5)

    def _on_step(self, step: Mapping[str, Any]) -> None:
        if step["step"] % 5 == 0 or step["step"] == step["steps"]:
            fraction = self._fraction(step["turn"], step["step"])
            self.report({"phase": f"learning {step['task']}", "done": step["step"], "total": step["steps"], "fraction": fraction})
        if step["step"] < step["steps"]:
            self._diagnose_inside(step["turn"] + 1, step["step"], step["steps"])
        hand_on((*self._place, step["turn"], step["step"]))

    def _say(self, phase: str, fraction: float) -> None:
        self.report({"phase": phase, "fraction": fraction})


def _too_late(i: int, path: Path) -> UserError:
    return UserError(
        f"a measurement of row {i} is missing, and the model has learned on since",
        where=str(path),
        fix="start over with --restart",
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
