"""Running an experiment's runs: worker processes or this one, progress, trackers, and the table at the end.

    parent   shows progress, sends logs to MLflow, writes summary.json and table.txt
    worker   one core; takes one run after the other and keeps the models that they share

Workers die with the parent, also when it is killed: two starts never write one folder. Without workers the parent does their
work itself; under ``torchrun`` together with the other processes of the launch, which ``follow``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import shutil
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from cl_softcot.commands import in_words
from cl_softcot.config.experiment import Experiment
from cl_softcot.config.fingerprint import fingerprint, modules_of_run, named_modules, run_fingerprint, to_data, to_yaml
from cl_softcot.config.plan import OnRow, RunSpec
from cl_softcot.errors import StopRun, UserError
from cl_softcot.files import atomic_write_json, atomic_write_text, explained, read_json, sweep_unfinished
from cl_softcot.machine import processes
from cl_softcot.metrics.own import find_metrics
from cl_softcot.printable import printable
from cl_softcot.provenance import is_dirty, revision, versions
from cl_softcot.registry import source_file
from cl_softcot.results import kept
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.colors import palette
from cl_softcot.results.events import EventLog, run_identity, run_tags
from cl_softcot.results.folder import PACKED, ExperimentFolder, RunFolder
from cl_softcot.results.keeping import restore_run, restore_study
from cl_softcot.results.own_metrics import with_metrics
from cl_softcot.results.reading import Results, order_like
from cl_softcot.results.record import VIEWS, RunRecord, read_record
from cl_softcot.run import base, one_run
from cl_softcot.run.together import let_go, together
from cl_softcot.run.workers import kill_workers, start_worker, work_on_base, work_on_run, worker_died
from cl_softcot.track.console import ProgressDisplay, print_results, table_text
from cl_softcot.track.finishing import finish_log, milliseconds, reconcile


class Orchestration:
    """One start of an experiment.

    Args:
        jobs: worker processes; None: no workers, the runs are done here, one after the other.
        restart: throw away what an earlier start left.
        on_row: see ``one_run.run_one``; only without workers.
        tags: further tags of every run in its log and in MLflow.
        quiet: show nothing.
        kept_in: a folder of kept results, of which runs of exactly these settings are taken over as finished.
    """

    def __init__(
        self,
        config: Experiment,
        specs: list[RunSpec],
        folder: Path,
        jobs: int | None,
        *,
        restart: bool,
        on_row: OnRow | None = None,
        tags: Mapping[str, Any] | None = None,
        quiet: bool = False,
        kept_in: str | Path | None = None,
    ):
        if jobs is not None and processes.size() > 1:
            raise ValueError("the processes of a launch do the runs together: jobs=None")
        if on_row is not None and jobs is not None:
            raise ValueError("on_row is called in the process that does the runs: it needs jobs=None")
        self.config, self.specs, self.folder, self.jobs = config, specs, folder, jobs
        self.on_row, self.tags, self.quiet = on_row, dict(tags or {}), quiet
        self.place = ExperimentFolder(folder)
        self.shared = self.place.shared.path
        self.failed: dict[str, str] = {}
        self.stopped: dict[str, str] = {}
        self.first_error: BaseException | None = None
        self.about_tasks: dict[str, str] = {}
        if restart:
            if self.place.runs.exists() and not self.place.record.exists():
                raise UserError(
                    "the folder was not written by this command, so nothing in it is thrown away",
                    where=str(folder),
                    fix="write to another folder with output_dir=PATH",
                )
            _refuse_links(self.place)
            for path in self.place.written:
                _remove(path)
        self._sweep()
        self._refuse_other_settings()
        if kept_in is not None:
            self._take_kept(Path(kept_in))

    def _run_folder(self, spec: RunSpec) -> Path:
        return self.place.run(spec.key).path

    def _sweep(self) -> None:
        """Throws away what a killed start has not finished writing: whoever makes this holds the folder's lock."""
        for place in (self.shared, *(self._run_folder(spec) for spec in self.specs)):
            sweep_unfinished(place, alone=True)
        sweep_unfinished(self.folder, deep=False)
        sweep_unfinished(self.place.report.path)  # reports hold no lock

    def _is_finished(self, spec: RunSpec) -> bool:
        """Whether the run has its result, and all that it measured is as it was written."""
        run = self.place.run(spec.key)
        return run.result.exists() and not Checksums(run.path).all_changed()

    def _refuse_other_settings(self) -> None:
        """Numbers of different settings never mix in one folder."""
        for spec in self.specs:
            path = RunFolder(self._run_folder(spec)).config
            if path.exists():
                known = read_json(path)
                if known.get("fingerprint") != run_fingerprint(self.config, spec.method, spec.order, spec.seed):
                    now = modules_of_run(self.config, spec.method, spec.order)
                    raise UserError(
                        f"the run {spec.key} was started with {_what_differs(known.get('user_modules', {}), now)}",
                        where=str(path),
                        fix="keep both with output_dir=ANOTHER, or throw the earlier one away with --restart",
                    )

    def _take_kept(self, place: Path) -> None:
        """Kept runs become run folders that are finished; a study of many hours thereby outlives the machine it was begun on.

        Only where nobody could tell a run from one that this experiment would do: its fingerprint holds all settings that move
        numbers, and ``base.json``, which comes with it, the data and the base model, which are compared before anything runs.
        """
        found = kept.read(place)
        if found is None:
            raise UserError(f"no kept runs are in this folder (it would have a {PACKED})", where=str(place))
        missing = [spec for spec in self.specs if not self.place.run(spec.key).result.exists()]
        prints = {spec.key: run_fingerprint(self.config, spec.method, spec.order, spec.seed) for spec in missing}
        there = [spec for spec in missing if spec.key in found.runs]
        taken = [s for s in there if found.runs[s.key]["result"].get("config_fingerprint") == prints[s.key]]
        if taken:
            restore_study(found, self.folder)
        for spec in taken:
            run = self.place.run(spec.key)
            # A part of what is there whole now.
            for begun in (run.predictions, run.rows, run.checkpoints, run.diagnostics, run.sums):
                _remove(begun)
            record = read_record(found.runs[spec.key]["result"], where=place)
            finish_log(EventLog(run.path), run, record, milliseconds(record.finished))
            restore_run(found, spec.key, self.folder)
        if not self.quiet:
            others = f"; {len(there) - len(taken)} of other settings are not" if len(there) > len(taken) else ""
            left = len(missing) - len(taken)
            print(f"{len(taken)} runs are taken over from {place}{others}; {left} are to be done", flush=True)

    def _write_provenance(self) -> None:
        modules = named_modules(self.config)
        self.provenance: dict[str, Any] = {"versions": versions(), "revision": revision(), "user_modules": modules}
        if about := self.about_tasks or self._about_tasks_before():
            self.provenance["task_data"] = about
        atomic_write_text(self.place.config, to_yaml(self.config))
        record = {"name": self.config.name, "config_fingerprint": fingerprint(self.config), **self.provenance}
        atomic_write_json(self.place.record, record)
        colors = palette(m.name for m in self.config.methods)
        for spec in self.specs:
            folder = self._run_folder(spec)
            identity = run_fingerprint(self.config, spec.method, spec.order, spec.seed)
            if not RunFolder(folder).config.exists():
                atomic_write_json(RunFolder(folder).config, self._run_config(spec, identity))
            method = self.config.method(spec.method)
            log = EventLog(folder)
            log.params(_params(self.config, spec) | {f"versions.{k}": v for k, v in self.provenance["versions"].items()})
            log.tags(
                run_tags(
                    experiment=self.config.name,
                    method=spec.method,
                    order=spec.order,
                    seed=spec.seed,
                    tasks=self.config.orders[spec.order],
                    identity=run_identity(identity, spec.method, spec.order, spec.seed),
                    color=colors[spec.method],
                    reasoning=method.reasoning.name,
                    strategy=method.strategy.name,
                    per_task=method.per_task.routing if method.per_task else None,
                    mlflow_experiment=self.config.tracking.experiment,
                    folder=self.folder,
                )
                | self.tags
            )

    def _about_tasks_before(self) -> dict[str, str]:
        """What an earlier start wrote of the tasks' data, where nothing is left to do that would look at them again."""
        record = read_json(self.place.record) if self.place.record.exists() else None
        found = record.get("task_data") if isinstance(record, Mapping) else None
        return dict(found) if isinstance(found, Mapping) else {}

    def _run_config(self, spec: RunSpec, identity: str) -> dict[str, Any]:
        data = to_data(self.config)
        method = next(m for m in data["methods"] if m["name"] == spec.method)
        shared = {k: v for k, v in data.items() if k not in ("methods", "orders", "seeds", "output_dir", "tracking")}
        run = {"method": method, "order": spec.order, "tasks_in_order": self.config.orders[spec.order], "seed": spec.seed}
        modules = modules_of_run(self.config, spec.method, spec.order)
        return {"fingerprint": identity, "user_modules": modules, **run, "experiment": shared}

    # ------------------------------------------------------------------------------------------------------- running

    def go(self) -> Results:
        """Runs what is not finished; returns the results of all runs that are. ``failed`` and ``stopped`` name the others."""
        todo = [spec for spec in self.specs if not self._is_finished(spec)]
        with ProgressDisplay([spec.key for spec in self.specs], quiet=self.quiet) as display:
            self._sender = self._start_mlflow(display)
            if self.jobs is None:
                self._run_all_here(todo, display)
            elif todo or self._base_is_damaged():
                self._run_all(todo, display)
            else:
                self._begin(todo, display)
            results = self._conclude()
            unsent = self._sender.close(60.0) if self._sender else []
        if not self.quiet:
            self._print(results, unsent)
        return results

    def _begin(self, todo: list[RunSpec], display: ProgressDisplay) -> None:
        """From here on the folder is this experiment's: nothing is written before what it holds was found to fit."""
        self._write_provenance()
        if is_dirty(self.provenance["revision"]):
            display.say(f"note: the code has changes that no revision holds ({self.provenance['revision'][:12]} and more)")
        for spec in self.specs:
            folder = self._run_folder(spec)
            if spec not in todo:
                reconcile(folder)
                display.update({"run": spec.key, "phase": "kept"})
            elif RunFolder(folder).result.exists():
                for path in Checksums(folder).all_changed():
                    display.say(f"{path} was changed after it was written: {spec.key} is done again from what is as it was")
            if self._sender:
                self._sender.poke(folder)

    def _base_is_damaged(self) -> bool:
        """Whether what was measured of the base is not there as it was written; it is of use to later starts only."""
        base = self.place.shared
        sums = Checksums(base.path)
        return any(sums.knows(p) and (not p.exists() or sums.changed(p)) for p in (base.base, base.answers, base.continuations))

    def _start_mlflow(self, display: ProgressDisplay) -> Any:
        if not self.config.tracking.mlflow:
            return None
        from cl_softcot.track.sender import MLflowSender

        return MLflowSender(experiment=self.config.tracking.experiment, say=display.say)

    def _run_all_here(self, todo: list[RunSpec], display: ProgressDisplay) -> None:
        take = lambda run: lambda message: self._take({"run": run, **message}, display)  # noqa: E731
        processes.from_main(lambda: todo)
        if todo or (processes.size() == 1 and self._base_is_damaged()):
            with together():
                self.about_tasks = base.measure_base(self.config, self.shared, take("base"))
        self._begin(todo, display)
        for spec in todo:
            folder = self._run_folder(spec)
            try:
                with together():
                    one_run.run_one(self.config, spec, folder, self.shared, self.provenance, take(spec.key), self.on_row)
            except processes.OutOfStep:
                raise
            except Exception as error:
                self._note_end(error, spec, display)
                let_go(error)
            else:
                self._note_end(None, spec, display)

    def _run_all(self, todo: list[RunSpec], display: ProgressDisplay) -> None:
        context = mp.get_context("spawn")
        messages = context.Queue()
        pump = threading.Thread(target=self._pump, args=(messages, display), daemon=True)
        pump.start()
        pool = ProcessPoolExecutor(self.jobs, context, start_worker, (messages, os.getpid()))
        try:
            self.about_tasks = pool.submit(work_on_base, self.config, self.shared).result()
            self._begin(todo, display)
            waiting = {
                pool.submit(work_on_run, self.config, s, self._run_folder(s), self.shared, self.provenance): s for s in todo
            }
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    self._note_end(future.exception(), waiting.pop(future), display)
            # Ending, workers send their last messages; and one that work was too short for, and still starts, needs the queue.
            pool.shutdown()
        except BaseException as error:
            kill_workers(pool)
            if isinstance(error, BrokenProcessPool):
                raise worker_died() from None
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            messages.cancel_join_thread()  # a killed worker may hold the queue's lock: our exit must not wait for it
            messages.put(None)
            pump.join(5)

    def _pump(self, messages: Any, display: ProgressDisplay) -> None:
        """Takes the messages of the workers."""
        while True:
            try:
                message = messages.get(timeout=1.0)
            except queue.Empty:
                display.pulse()
                continue
            except (EOFError, OSError):
                return
            if message is None:
                return
            self._take(message, display)

    def _take(self, message: dict[str, Any], display: ProgressDisplay) -> None:
        """A message of a run: numbers that were logged go to MLflow, the rest to the display."""
        if "logged" not in message:
            display.update(message)
        elif self._sender:
            self._sender.poke(message["logged"])

    def _note_end(self, error: BaseException | None, spec: RunSpec, display: ProgressDisplay) -> None:
        if error is None:
            display.update({"run": spec.key, "phase": "finished"})
            return
        if isinstance(error, BrokenProcessPool):
            raise error
        if isinstance(error, StopRun):
            self.stopped[spec.key] = str(error)
            display.update({"run": spec.key, "phase": "stopped", "text": str(error)})
            return
        self.first_error = self.first_error or error
        told = in_words(error)
        self.failed[spec.key] = reason = printable(str(told) if told else self._keep_story(error, spec))
        display.update({"run": spec.key, "phase": "failed", "text": reason})

    def _keep_story(self, error: BaseException, spec: RunSpec) -> str:
        """Of a bug of ours: the whole story goes to a file, one line to the terminal. The other runs go on even where the file
        cannot be written."""
        path, short = self.place.run(spec.key).error, f"{type(error).__name__}: {error}"
        try:
            atomic_write_text(path, printable("".join(traceback.format_exception(error))))
        except (UserError, OSError, UnicodeError) as unwritten:
            return f"{short} (its traceback could not be kept: {unwritten})"
        return f"{short} (see {path})"

    # ---------------------------------------------------------------------------------------------------- conclusion

    def _conclude(self) -> Results:
        metrics = find_metrics(self.config.evaluate.metrics)
        found = [kept.record(self._run_folder(spec)) for spec in self.specs if spec.key not in {**self.failed, **self.stopped}]
        finished = [with_metrics(record, metrics) for record in found if record is not None]
        results = order_like(finished, [m.name for m in self.config.methods])
        if results:
            from cl_softcot.track.figures import draw_experiment

            atomic_write_text(self.place.table, table_text(results, failed=self._failed_methods(results)))
            last = [_in_short(result) for result in results]
            atomic_write_json(self.place.summary, {"results": last, "failed": self.failed, "stopped": self.stopped})
            draw_experiment(results, self.folder)
        return results

    def _failed_methods(self, results: Results) -> dict[str, str]:
        finished = {r.method for r in results}
        return {key.split(".")[0]: reason for key, reason in self.failed.items() if key.split(".")[0] not in finished}

    def _print(self, results: Results, unsent: list[Path]) -> None:
        print()
        if results:
            print_results(results, failed=self._failed_methods(results))
        for key, reason in self.failed.items():
            print(f"\nfailed: {key}: {reason}")
        print(f"\nEverything is in {self.folder}/ (table.txt, comparison.png, runs/<run>/result.json)")
        if self._sender:
            from cl_softcot.track.console import experiment_note
            from cl_softcot.track.mlflow import METHODS_VIEW, RUNS_VIEW, how_to_look, send_note
            from cl_softcot.track.sender import later

            last = self._sender.last
            if last and results:
                send_note(experiment_note(results, failed=self._failed_methods(results)), last.experiment_id, last.uri)
            if last:
                several = len(self.specs) > len(self.config.methods)
                print(how_to_look(last.uri, last.experiment_id, METHODS_VIEW if several else RUNS_VIEW))
            if unsent:
                print(f"{len(unsent)} runs did not reach MLflow. {later(self.folder)}")


def _what_differs(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Of somebody's own modules, those that were changed since; where none was, it is the settings."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    files = ", ".join(str(source_file(name) or name) for name in changed)
    return f"another version of {files}" if changed else "other settings"


def _in_short(result: RunRecord) -> dict[str, Any]:
    """What ``summary.json`` has of a run."""
    data = result.data
    short = {key: data[key] for key in ("method", "order", "seed", "summary", "cost")}
    return short | {section: {view: data[section][view][-1] for view in VIEWS} for section in ("retention", "drift")}


def _model_named(model: Any) -> str:
    """A model by its path, its file there, and the adapter that is merged into it."""
    file = f"/{model.gguf_file}" if model.gguf_file else ""
    return f"{model.path}{file}" + (f" with {model.adapter}" if model.adapter else "")


def _params(config: Experiment, spec: RunSpec) -> dict[str, Any]:
    """What a person compares runs by."""
    method = config.method(spec.method)
    return {
        "method": spec.method,
        "order": spec.order,
        "seed": spec.seed,
        "backbone": _model_named(config.backbone),
        "assistant": _model_named(config.assistant) if config.assistant else "none",
        "reasoning": method.reasoning.model_dump(mode="json"),
        "strategy": method.strategy.model_dump(mode="json"),
        "per_task": method.per_task.routing if method.per_task else "none",
        "plugins": ", ".join(plugin.name for plugin in method.plugins) or "none",
        "train": config.train_for(method).model_dump(mode="json"),
        "evaluate.split": config.evaluate.split,
        "evaluate.test": config.evaluate.test,
        "evaluate.reading": config.evaluate.reading,
    }


def _refuse_links(place: ExperimentFolder) -> None:
    """Nothing behind a link is thrown away: it may be somebody else's, and what is written next would go there again."""
    links = [path for path in (place.runs, place.shared.path) if path.is_symlink()]
    links += [path for path in place.runs.glob("*") if path.is_symlink()] if not links and place.runs.is_dir() else []
    if links:
        raise UserError(
            f"is a link (to {os.readlink(links[0])}), and what is behind a link is never thrown away",
            where=str(links[0]),
            fix="Remove by hand what it points to, or the link; or write to another folder with output_dir=PATH.",
        )


def _remove(path: Path) -> None:
    with explained(path):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
