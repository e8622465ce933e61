"""One run: a method, a task order, a seed. Builds it, lets it learn turn after turn, measures after each, and writes its folder.

    <run folder>/  config.json  events.jsonl  rows/row_<i>.json  predictions/  diagnostics/  checkpoints/  figures/
                   result.json (last)  SHA256SUMS

A run goes on where it was cut off: a turn that was learned is not learned again, a row that was measured is not measured again,
and the numbers are those of a run that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cl_softcot.answering.build import build
from cl_softcot.answering.counting import Counting
from cl_softcot.answering.evaluate import Evaluator
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import OnRow, RunSpec, Tell
from cl_softcot.errors import StopRun, UserError
from cl_softcot.files import read_json
from cl_softcot.learning.learner import Learner
from cl_softcot.learning.snapshot import TurnReport
from cl_softcot.learning.stream import Turn, data_fingerprint, make_stream
from cl_softcot.machine import processes
from cl_softcot.machine.exact import make_exact, memory_explained
from cl_softcot.machine.lanes import LaneStopped, hand_on
from cl_softcot.models.frozen_states import tally
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.events import EventLog, row_metrics
from cl_softcot.results.folder import RunFolder
from cl_softcot.results.record import PartialRecord, RunRecord
from cl_softcot.run.diagnosing import Diagnosing
from cl_softcot.run.progress import Progress
from cl_softcot.run.recording import partial_record, run_record
from cl_softcot.tasks.base import Example

SILENCE = 1.0  # seconds after which a step is told, though it is not the fifth


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
        if not log.finished:  # the end may come between the log's last line and ours
            with suppress(UserError, OSError):  # the disk that ended the run takes no last word either
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
        self.config, self.spec, self.report, self.log, self.on_row = config, spec, report, log, on_row
        self.folder = RunFolder(folder)
        self.checksums = Checksums(folder)
        self._assistant_seconds = tally.seconds  # of this thread, up to the last row
        self._say("preparing", 0.0)
        self.subject = build(config, spec, folder, shared)
        assert self.subject.evaluator is not None, "build() makes it"
        self.evaluator: Evaluator = self.subject.evaluator
        self.tasks = [probe.task for probe in self.evaluator.tasks]
        self.progress = Progress(self.subject, self.folder, report)
        self.diagnosing = Diagnosing(config.measured, self.subject, self.folder, self.progress, self._say)
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
                self._say_learning(turn.name, turn.index, progress.step if progress.inside else 0, train.steps)
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
        bank, router = self.subject.bank, self.subject.router
        if bank:
            assert router is not None, "whoever has copies has a router"
            bank.keep(turn.name)
            router.fit(turn.name, turn.examples)

    def _on_step(self, step: Mapping[str, Any]) -> None:
        if step["step"] % 5 == 0 or step["step"] == step["steps"] or time.monotonic() - self._spoke > SILENCE:
            self._say_learning(step["task"], step["turn"], step["step"], step["steps"])
        if step["step"] < step["steps"]:
            self.diagnosing.inside(step["turn"] + 1, step["step"], step["steps"])
        hand_on((*self._place, step["turn"], step["step"]))

    def _say_learning(self, task: str, turn: int, step: int, steps: int) -> None:
        self._say(f"learning {task}", self.progress.while_learning(turn, step), done=step, total=steps)

    def _say(self, phase: str, fraction: float, **more: int) -> None:
        self._spoke = time.monotonic()
        self.report({"phase": phase, "fraction": fraction, **more})

    # ----------------------------------------------------------------------------------------------------- measuring

    def _measure(self, i: int, train_seconds: float, turn: Turn | None) -> None:
        """Row i: taken from disk where it was measured before."""
        path = self.folder.row(i)
        row = processes.from_main(lambda: self._known_row(i))
        if row is not None:
            self.evaluator.answers.remember_file(self.folder.answers(i))
            self.evaluator.answers.remember_file(self.folder.answers_alone(i))
        else:
            self.progress.refuse_late(i, path)
            after = f"after {turn.name}" if turn is not None else "before learning"
            with self._counted(i, f"measuring {after}"):
                measured = self._row(i)
            row = measured | {"train_seconds": train_seconds, "assistant_seconds": self._seconds_of_the_assistant()}
            processes.from_main(lambda: self.checksums.write_json(path, row))
        self.rows.append(row)
        self.diagnosing.after(i)
        processes.from_main(lambda: self._tell(i))

    def _known_row(self, i: int) -> dict[str, Any] | None:
        """Row i as an earlier start has measured it; None where it is missing, or not as that wrote it."""
        folder = self.folder
        if not (folder.row(i).exists() and folder.answers(i).exists()):
            return None
        changed = [p for p in (folder.row(i), folder.answers(i), folder.answers_alone(i)) if self.checksums.changed(p)]
        for path in changed:
            self.progress.tell_changed(path)
        return None if changed else read_json(folder.row(i))

    @contextmanager
    def _counted(self, i: int, phase: str) -> Iterator[None]:
        """Tells what is measured now and how much of it is answered."""
        probes = (*self.evaluator.tasks, *self.evaluator.families)

        def tell(name: str, done: int, total: int, part: float) -> None:
            self._say(name, self.progress.while_measuring(i, part), done=done, total=total)

        self._say(phase, self.progress.while_measuring(i))
        with Counting(sum(len(probe.examples) for probe in probes), tell).all_of(phase):
            yield

    def _row(self, i: int) -> dict[str, Any]:
        subject = self.subject.after(i)
        if i == 0:  # row 0 is the base's zero-shot CoT; the base in the method's own mode stands beside it
            row = self.evaluator.row(0, subject.base, subject.base, self.folder.path)
            return row | self.evaluator.untrained(subject.one_copy())
        return self.evaluator.row(i, subject.policy(), subject.alone(), self.folder.path)

    def _seconds_of_the_assistant(self) -> float:
        """Since the last row, learning included; next to nothing where the cache holds what it would compute."""
        before, self._assistant_seconds = self._assistant_seconds, tally.seconds
        return tally.seconds - before

    def _tell(self, i: int) -> None:
        partial = self._partial()
        self.log.metrics(i, row_metrics(partial, i))
        self.report({"logged": str(self.folder.path)})
        if self.on_row is not None:
            self.on_row(self.spec, i, partial)

    # -------------------------------------------------------------------------------------------------------- result

    def _partial(self) -> PartialRecord:
        return partial_record(self.evaluator, self.rows)

    def result(self, provenance: Mapping[str, Any]) -> RunRecord:
        """What `result.json` holds."""
        return run_record(
            config=self.config,
            spec=self.spec,
            folder=self.folder,
            evaluator=self.evaluator,
            parts=self.subject.parts,
            strategy=self.subject.strategy,
            rows=self.rows,
            turns=self.progress.turns,
            diagnosed=self.diagnosing.found,
            weights_before=self.subject.backbone_sha256,
            train_fingerprints=self.data_fingerprint,
            sizes=self.progress.sizes,
            provenance=provenance,
        )

    def finish(self, result: RunRecord) -> None:
        """Figures, tables and ``result.json``, without which a run is not finished. The log's last lines follow: where they are
        lost, the next start finds that they are missing."""
        from cl_softcot.track import figures
        from cl_softcot.track.finishing import finish_log
        from cl_softcot.track.predictions import write_predictions

        self._say("drawing", 0.99)
        figures.draw_run(result, self.folder.figures)
        write_predictions(self.folder.path, result)
        self.checksums.write_json(self.folder.result, result.as_dict())
        assert isinstance(self.log, EventLog), "this is done by the process that writes"
        finish_log(self.log, self.folder, result)
        self.report({"logged": str(self.folder.path)})
