"""One run: a method, a task order, a seed. Builds it, lets it learn turn after turn, measures after each, and writes its folder.

    <run folder>/  config.json  events.jsonl  rows/row_<i>.json  predictions/  diagnostics/  checkpoints/  figures/
                   result.json (last)

A run goes on where it was cut off: a turn that was learned is not learned again, a row that was measured is not measured again,
and the numbers are those of a run that was never interrupted.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cl_softcot.answering.build import build
from cl_softcot.answering.evaluate import Evaluator
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.fingerprint import run_fingerprint
from cl_softcot.config.plan import OnRow, RunSpec, Tell
from cl_softcot.errors import StopRun
from cl_softcot.files import atomic_write_json, read_json, read_jsonl
from cl_softcot.learning.learner import Learner
from cl_softcot.learning.snapshot import TurnReport
from cl_softcot.learning.stream import Turn, data_fingerprint, make_stream
from cl_softcot.machine import processes
from cl_softcot.machine.exact import make_exact, memory_explained
from cl_softcot.machine.lanes import LaneStopped, hand_on
from cl_softcot.metrics.cost import count_parameters, peak_memory_mb
from cl_softcot.metrics.flips import flips_of_run
from cl_softcot.metrics.intervals import summary_intervals
from cl_softcot.metrics.matrix import summary
from cl_softcot.models.frozen_states import tally
from cl_softcot.results.events import EventLog, final_metrics, row_metrics
from cl_softcot.run.diagnosing import Diagnosing
from cl_softcot.run.progress import Progress
from cl_softcot.tasks.base import Example

# ------------------------------------------------------------------------------------------------------- the run


def run_one(
    config: Experiment,
    spec: RunSpec,
    folder: Path,
    shared: Path,
    provenance: Mapping[str, Any],
    report: Tell,
    on_row: OnRow | None = None,
) -> dict:
    """Runs, or goes on with, one run; returns its result (also in ``folder/result.json``).

    Args:
        on_row: called with every row, in order, those that an earlier start measured included: the run, the row's index and the
            result so far (``tasks``, ``accuracy``, ``retention``, ``drift``, each with the rows up to this one).

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
    """The way of one run: build -> for each turn: learn, keep, measure, diagnose -> record."""

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
        self.config, self.spec, self.folder, self.report, self.log, self.on_row = config, spec, folder, report, log, on_row
        self._assistant_seconds = tally.seconds  # of this thread, up to the last row
        self._say("preparing", 0.0)
        self.subject = build(config, spec, folder, shared)
        self.evaluator: Evaluator = self.subject.evaluator
        self.tasks = [probe.task for probe in self.evaluator.tasks]
        self.progress = Progress(self.subject, folder, report)
        self.diagnosing = Diagnosing(config.measured, self.subject, self.progress, self._say)
        self.rows: list[dict[str, Any]] = []
        self.data_fingerprint: list[str] = []
        self._place = (config.seeds.index(spec.seed), list(config.orders).index(spec.order))

    # ------------------------------------------------------------------------------------------------ the whole way

    def go(self) -> None:
        subject = self.subject
        asked = [e for probe in (*subject.tasks, *subject.families) for e in probe.examples]
        subject.parts.reasoning.register(subject.parts, asked)
        if subject.strategy.trains:
            self._learn_all()
            return
        for i in range(len(self.tasks) + 1):
            self._measure(i, 0.0, None)

    def _learn_all(self) -> None:
        subject, progress = self.subject, self.progress
        strategy, train = subject.strategy, subject.train
        sets = self._training_sets()
        if strategy.together:
            sets = [(" + ".join(name for name, _ in sets), [e for _, examples in sets for e in examples])]
            train = train.model_copy(update={"steps": train.steps * len(self.tasks)})
        learner = Learner(subject.parts, strategy, train, subject.method.plugins, subject.seed, self._on_step)
        stream = make_stream(sets, learner.collate)
        progress.restore(learner, stream)
        self._measure(0, 0.0, None)
        for turn in strategy.plan(stream):
            if turn.index >= progress.done:
                if not progress.inside:
                    self._begin_anew()
                progress.inside = False
                learned = strategy.learn(turn, partial(self._loop, learner))
                strategy.after(turn)
                self._keep_copy(turn)
                progress.learned(learned)
                progress.save(learner.state_dict(), turn.index + 1)
            self._measure(turn.index + 1, progress.turns[turn.index]["train_seconds"], turn)
        for i in range(len(self.rows), len(self.tasks) + 1):  # learned together: all rows are of one model
            self._measure(i, 0.0, turn)

    def _training_sets(self) -> list[tuple[str, list[Example]]]:
        """Each task's training examples, known to the reasoning before any is used."""
        subject = self.subject
        sets = [(task.name, task.examples("train", subject.train.examples, subject.seed)) for task in self.tasks]
        subject.parts.reasoning.register(subject.parts, [e for _, examples in sets for e in examples])
        self.data_fingerprint = [data_fingerprint(name, examples) for name, examples in sets]
        return sets

    def _begin_anew(self) -> None:
        """Where a turn does not begin with what the one before has learned."""
        subject = self.subject
        if subject.bank:
            subject.bank.fresh()
        for name, tensor in subject.strategy.tensors(subject.parts).items() if subject.start else ():
            processes.put_local(tensor, subject.start[name])

    def _loop(self, learner: Learner, turn: Turn) -> TurnReport:
        return learner.loop(turn, checkpoint=lambda snapshot: self.progress.save(snapshot, turn.index))

    def _keep_copy(self, turn: Turn) -> None:
        if self.subject.bank:
            self.subject.bank.keep(turn.name)
            self.subject.router.fit(turn.name, turn.examples)

    def _on_step(self, step: Mapping[str, Any]) -> None:
        if step["step"] % 5 == 0 or step["step"] == step["steps"]:
            fraction = self.progress.fraction(step["turn"], step["step"])
            self.report({"phase": f"learning {step['task']}", "done": step["step"], "total": step["steps"], "fraction": fraction})
        if step["step"] < step["steps"]:
            self.diagnosing.inside(step["turn"] + 1, step["step"], step["steps"])
        hand_on((*self._place, step["turn"], step["step"]))

    def _say(self, phase: str, fraction: float) -> None:
        self.report({"phase": phase, "fraction": fraction})

    # ----------------------------------------------------------------------------------------------------- measuring

    def _measure(self, i: int, train_seconds: float, turn: Turn | None) -> None:
        """Row i: taken from disk where it was measured before."""
        path = self.folder / "rows" / f"row_{i}.json"
        predictions = self.folder / "predictions" / f"row_{i}.jsonl"
        row = processes.from_main(lambda: read_json(path) if path.exists() and predictions.exists() else None)
        if row is not None:
            self.evaluator.answers.remember_file(predictions)
            self.evaluator.answers.remember_file(self.folder / "predictions" / f"weights_alone_{i}.jsonl")
        else:
            self.progress.refuse_late(i, path)
            after = f"after {turn.name}" if turn is not None else "before learning"
            self._say(f"measuring {after}", self.progress.fraction(i, 0))
            row = self._row(i) | {"train_seconds": train_seconds, "assistant_seconds": self._seconds_of_the_assistant()}
            processes.from_main(lambda: atomic_write_json(path, row))
        self.rows.append(row)
        self.diagnosing.after(i)
        processes.from_main(lambda: self._tell(i))

    def _row(self, i: int) -> dict[str, Any]:
        subject = self.subject.after(i)
        if i == 0:  # row 0 is the base's zero-shot CoT; the base in the method's own mode stands beside it
            row = self.evaluator.row(0, subject.base, subject.base, self.folder)
            row["untrained"] = self.evaluator.untrained(subject.one_copy())
            return row
        return self.evaluator.row(i, subject.policy(), subject.alone(), self.folder)

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
        partial, method = self._partial(), self.subject.method
        after = self.subject.parts.backbone.weights_sha256()
        trained = count_parameters(self.subject.strategy.tensors(self.subject.parts)) if self.subject.strategy.trains else 0
        last, outcomes = self.rows[-1], processes.from_main(self._outcomes)
        flips = self._flips(outcomes)
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
            "reference": self.subject.strategy.reference,
            "per_task": method.per_task.model_dump(mode="json") if method.per_task else None,
            "plugins": [plugin.model_dump(mode="json") for plugin in method.plugins],
            "split": self.config.evaluate.split,
            "accuracy": partial["accuracy"],
            "summary": self._summary(partial["accuracy"]["matrix"], outcomes, flips),
            "flips": flips["tasks"],
            "retention": partial["retention"],
            "drift": partial["drift"],
            "routing": [row.get("routing") for row in self.rows] if self.subject.bank else None,
            "cost": {
                "trained_parameters": trained * (len(self.tasks) if self.subject.bank else 1),
                "trained_parameters_per_copy": trained,
                "tokens_per_answer": last["cost"]["tokens_per_answer"],
                "forward_passes_per_answer": last["cost"]["forward_passes_per_answer"],
                "train_seconds": sum(row["train_seconds"] for row in self.rows),
                "evaluate_seconds": sum(row["evaluate_seconds"] for row in self.rows),
                "assistant_seconds": sum(row.get("assistant_seconds", 0.0) for row in self.rows),
                "optimiser_steps": sum(turn["steps"] for turn in self.progress.turns),
                "examples_per_task": self.subject.train.examples if self.subject.strategy.trains else 0,
                "peak_memory_mb": peak_memory_mb(),
            },
            "losses": [turn["losses"] for turn in self.progress.turns],
            **({"diagnostics": self.diagnosing.found} if self.diagnosing.found else {}),
            "frozen": {
                "backbone_sha256_before": self.subject.backbone_sha256,
                "backbone_sha256_after": after,
                "unchanged": after == self.subject.backbone_sha256,
            },
            "train_fingerprints": self.data_fingerprint,
            "config_fingerprint": run_fingerprint(self.config, self.spec.method, self.spec.order, self.spec.seed),
            "machine": self._machine(),
            **provenance,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _machine(self) -> dict[str, Any]:
        now = {"device": str(self.subject.parts.backbone.device), "processes": self.progress.sizes[-1]}
        before = {"processes_before": self.progress.sizes[:-1]} if self.progress.sizes[:-1] else {}
        return {"processor": platform.machine(), "system": platform.system(), **now, **before}

    def _outcomes(self) -> list[list[list[float]]]:
        """1 right, 0 not: [row][task][example]."""
        outcomes = []
        for i in range(len(self.rows)):
            found: dict[str, list[float]] = {task.name: [] for task in self.tasks}
            path = self.folder / "predictions" / f"row_{i}.jsonl"
            for p in read_jsonl(path):
                if p["set"] == "task":
                    found[p["task"]].append(float(p["outcome"] == "right"))
            outcomes.append(list(found.values()))
        return outcomes

    def _summary(self, matrix: Sequence[Sequence[float]], outcomes: Sequence[Any], flips: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = dict(summary(matrix))
        intervals = summary_intervals(outcomes, self.config.evaluate.bootstrap)
        values |= {f"{name}_interval": list(interval) if interval else None for name, interval in intervals.items()}
        return values | flips["summary"]

    def _flips(self, outcomes: Sequence[Any]) -> dict[str, Any]:
        options = {p.name: [p.task.n_options_of(example) for example in p.examples] for p in self.evaluator.tasks}
        found = flips_of_run(outcomes, list(options), options)
        for name, numbers in options.items():  # one number where all examples have the same
            found["tasks"][name]["n_options"] = numbers[0] if len(set(numbers)) == 1 else numbers
        return found

    def finish(self, result: dict[str, Any]) -> None:
        """Figures, tables and last numbers; ``result.json`` comes last: a run without it is not finished."""
        from cl_softcot.track import figures
        from cl_softcot.track.predictions import TABLE_TAGS, write_predictions

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
