"""The worker that every launcher starts: takes trials until there are enough, and gives back what it cannot finish.

A trial is `python -m cl_softcot.run` with some settings, done in this process: the same function, folder and files. What ends a
worker early (a signal, `Interrupted`) gives its trial back at once; `kill -9` is noticed by the others. Either way the next
attempt goes on in the trial's folder, at the last finished experience.
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import StopRun, UserError
from cl_softcot.files import FolderLock, atomic_write_json, atomic_write_text, read_json, sweep_unfinished
from cl_softcot.printable import hide
from cl_softcot.results import kept
from cl_softcot.results.folder import ExperimentFolder
from cl_softcot.results.record import RunRecord
from cl_softcot.sweep import objectives
from cl_softcot.sweep.alive import beat
from cl_softcot.sweep.config import SearchPlan, SweepConfig
from cl_softcot.sweep.folder import find
from cl_softcot.sweep.samplers import chosen_pruner
from cl_softcot.sweep.space import shown
from cl_softcot.sweep.storage import StorageAway, is_away
from cl_softcot.sweep.trials import Counts, Search, Taken, trial_experiment

Say = Callable[[str], None]
REQUEUE = 85  # exit status of a worker that was told to stop and left work undone


class Interrupted(BaseException):
    """A signal asked the worker to stop. Not an `Exception`: nothing on the way takes it for a failure of the trial."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextmanager
def interruptible(signals: Sequence[int] = (signal.SIGTERM, signal.SIGUSR2)) -> Iterator[None]:
    """Turns signals into `Interrupted` inside the block. Only the first: what cleans up after it is left alone."""
    received: list[int] = []

    def interrupt(signum: int, _: Any) -> None:
        if not received:
            received.append(signum)
            raise Interrupted(signum)

    before = {signum: signal.signal(signum, interrupt) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def work(sweep: SweepConfig, say: Say = print, workers: int = 1) -> None:
    """Runs trials until the sweep has enough; as many at a time as may share what they compute (``study.at_once``).

    Args:
        workers: how many work on the sweep, this one included.

    Raises:
        UserError: if nothing but failures comes out, or the storage stays away.
        Interrupted: after giving back what was begun.
    """
    sweep_unfinished(sweep.folder)
    searches = find(sweep, say)
    for search in searches:
        _check_unchanged(search.plan)
    while True:
        answers = []
        for search in searches:
            taken = search.take_several(workers)
            answers.append(taken)
            if isinstance(taken, list):
                run_trials(search, taken, say)
                break
        else:
            if "wait" not in answers:
                break
            time.sleep(min(sweep.storage.heartbeat_seconds, 2.0))
    for search in searches:
        _tell_if_short(search)


def _check_unchanged(plan: SearchPlan) -> None:
    """A worker that starts hours after the command must not run another experiment than the first ones did."""
    known = read_json(plan.sweep.folder / "sweep.json")["fingerprints"]
    if known.get(plan.study_name) != plan.fingerprint():
        raise UserError(
            "the experiment was changed since the sweep was started, so that its trials could not be compared",
            where=plan.trial_experiment,
            fix="Undo the change, or start a sweep with another name.",
        )


def _tell_if_short(search: Search) -> None:
    found = search.records()
    counts, sweep = Counts.of(found), search.plan.sweep
    if counts.failed and not counts.complete:
        worst = [r for r in found if r.state == "failed"][-1]
        error = UserError(
            f"{search.plan.study_name}: {counts.failed} trials failed and none completed; the last: {worst.error}",
            where=str(search.plan.trial_folder(worst.number) / "error.txt"),
        )
        error.exit_status = 1
        raise error
    if sweep.sampler.name != "grid" and counts.complete < sweep.trials:
        error = UserError(
            f"{search.plan.study_name}: {counts.complete} of {sweep.trials} trials completed; "
            f"{counts.total} were begun ({counts.pruned} pruned, {counts.failed} failed), which is the most (most_trials)",
            fix="See `sweep status` for the failures, and raise most_trials if it should go on.",
        )
        error.exit_status = 1
        raise error


def run_trials(search: Search, taken: Sequence[Taken], say: Say) -> None:
    """Runs trials to their ends: one by itself, several side by side. Each is told, fails, is pruned or given back for itself.

    Raises:
        Interrupted, KeyboardInterrupt: after giving all of them back.
    """
    if len(taken) == 1:
        return run_trial(search, taken[0], say)
    from cl_softcot.machine.lanes import side_by_side

    say(f"{search.plan.study_name}: trials {', '.join(str(one.number) for one in taken)} side by side")
    for outcome in side_by_side([partial(run_trial, search, one, say) for one in taken]):
        if isinstance(outcome, Exception):  # the storage is away, or worse: no trial's own failure comes as far as here
            raise outcome


def run_trial(search: Search, taken: Taken, say: Say) -> None:
    """Runs a trial to its end, whatever that is, and tells the storage.

    Raises:
        Interrupted, KeyboardInterrupt, LaneStopped: after giving the trial back.
    """
    heart = _Heart(search, taken)
    try:
        with heart:
            _run_to_the_end(search, taken, heart, say)
    except BaseException as error:
        if heart.lost:
            say(f"{_name(search, taken)}: another worker took it over")
        elif isinstance(error, StorageAway):
            raise  # not the trial's fault: it stays as it is, and is taken up again
        elif isinstance(error, Exception):
            _fail(search, taken, error, say)
        else:
            with suppress(UserError):  # the storage is away: the others will notice our silence
                search.release(taken)
            say(f"{_name(search, taken)}: interrupted ({error or type(error).__name__}), given back")
        if not isinstance(error, Exception):
            raise


def _name(search: Search, taken: Taken) -> str:
    return f"{search.plan.study_name} trial {taken.number}"


def _run_to_the_end(search: Search, taken: Taken, heart: _Heart, say: Say) -> None:
    from cl_softcot.machine.lanes import working_seconds
    from cl_softcot.run.api import run_experiment

    plan = search.plan
    config, overrides = trial_experiment(plan, taken.params, taken.folder)
    command = shlex.join(["python", "-m", "cl_softcot.run", plan.trial_experiment, *overrides])
    again = f" (attempt {taken.attempt})" if taken.attempt > 1 else ""
    say(f"{_name(search, taken)}{again}: {shown(taken.params)}\n  {command}")
    _wait_until_free(taken.folder, heart)
    record = {"number": taken.number, "attempt": taken.attempt, "params": taken.params, "command": command}
    record["worker"] = {key: beat(0)[key] for key in ("host", "pid")}
    atomic_write_json(taken.folder / "trial.json", {**record, "state": "running"})
    follower = _Follower(search, taken, heart, config)
    started = working_seconds()
    results = run_experiment(
        config,
        folder=taken.folder,
        on_row=follower,
        tags={"sweep": plan.study_name, "trial": taken.number, "sweep_attempt": taken.attempt},
    )
    if heart.lost:
        say(f"{_name(search, taken)}: another worker took it over")
        return
    if follower.pruned:
        ended: dict[str, Any] = {"state": "pruned"}
        mine = search.prune(taken)
        say(f"{_name(search, taken)}: pruned after {follower.steps} experiences")
    else:
        ended = {"state": "complete", "values": judge(plan, results), "intervals": intervals(plan, results)}
        ended["excesses"] = excesses(plan, results)
        atomic_write_json(taken.folder / "trial.json", {**record, **ended})  # on the disk before the storage knows
        mine = search.complete(taken, list(ended["values"].values()), ended["excesses"])
        took = f"{working_seconds() - started:.0f} s"
        values = ", ".join(f"{name} {value:.4g}" for name, value in ended["values"].items())
        outside = "" if all(e <= 0 for e in ended["excesses"].values()) else ", outside the constraints"
        say(f"{_name(search, taken)}: {values}{outside} ({took})")
    atomic_write_json(taken.folder / "trial.json", {**record, **ended})
    (taken.folder / "error.txt").unlink(missing_ok=True)
    if not mine:
        say(f"{_name(search, taken)}: another worker has told this already")


def judge(plan: SearchPlan, results: Sequence[RunRecord]) -> dict[str, float]:
    """The objectives of a trial: means over its runs."""
    return {name: objectives.mean_value(results, name) for name in plan.sweep.objectives}


def intervals(plan: SearchPlan, results: Sequence[RunRecord]) -> dict[str, list[float] | None]:
    return {name: objectives.interval(results, name) for name in plan.sweep.objectives}


def excesses(plan: SearchPlan, results: Sequence[RunRecord]) -> dict[str, float]:
    """How far each constrained number is outside of its bounds (0 or below: inside)."""
    bounds = plan.sweep.constraints
    return {name: bound.excess(objectives.mean_value(results, name)) for name, bound in bounds.items()}


def _fail(search: Search, taken: Taken, error: Exception, say: Say) -> None:
    text = hide("".join(traceback.format_exception(error)))
    path = taken.folder / "error.txt"
    with suppress(UserError, OSError):  # a full disk is often the reason
        atomic_write_text(path, text)
    first = hide(f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    search.fail(taken, first)
    say(f"{_name(search, taken)}: failed: {first.splitlines()[0]} ({path})")


def _wait_until_free(folder: Path, heart: _Heart, seconds: float = 600.0) -> None:
    """An earlier attempt that was taken for dead may still be writing: two never write one folder."""
    from cl_softcot.machine.lanes import step_aside

    end = time.monotonic() + seconds
    while True:
        try:
            with FolderLock(folder):
                return
        except UserError:
            if time.monotonic() > end or heart.lost:
                raise
        time.sleep(0.5)
        step_aside()  # what is done beside this trial need not wait too


class _Heart(threading.Thread):
    """Says again and again that this worker lives, and looks whether others do. Survives a database that is away.

    Attributes:
        lost: the trial has ended in the storage: another worker took this one for dead.
    """

    def __init__(self, search: Search, taken: Taken):
        super().__init__(daemon=True, name="heartbeat")
        self.search, self.taken = search, taken
        self.lost = False
        self._end = threading.Event()

    def __enter__(self) -> _Heart:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join(30)

    def run(self) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        n = 0
        while not self._end.wait(self.search.plan.sweep.storage.heartbeat_seconds):
            n += 1
            try:
                self.taken.trial.set_user_attr("beat", beat(n))
                self.search.look()
            except UpdateFinishedTrialError:
                self.lost = True
                return
            except Exception as error:
                if not is_away(error):
                    traceback.print_exc()


class _Follower:
    """Sees every row of a trial's runs as it is measured: reports values for pruning, and stops what should stop."""

    def __init__(self, search: Search, taken: Taken, heart: _Heart, config: Experiment):
        from cl_softcot.config.plan import plan

        self.search, self.taken, self.heart = search, taken, heart
        wanted = list(search.plan.sweep.objectives)
        self.objective = wanted[0] if len(wanted) == 1 and objectives.can_be_followed(wanted[0]) else None
        self.prunes = chosen_pruner(search.plan).name != "none"
        self.pruned, self.steps = False, 0
        self.order = [spec.key for spec in plan(config)]
        self.lengths = [len(config.orders[spec.order]) for spec in plan(config)]
        self.newest: dict[str, float] = {}
        for key in self.order:  # runs that an earlier attempt finished are not shown again
            found = kept.record(ExperimentFolder(taken.folder).run(key).path) if self.objective else None
            if found:
                self._remember(key, found)

    def _remember(self, key: str, result: RunRecord) -> None:
        assert self.objective is not None, "nothing else is remembered"
        value = objectives.value(result, self.objective)
        if value is not None:
            self.newest[key] = value

    def __call__(self, spec: Any, i: int, partial: Any) -> None:
        if self.heart.lost:
            raise StopRun("another worker took the trial over")
        if self.pruned:
            raise StopRun("the trial was pruned")
        if not self.objective or i == 0:
            return
        value = objectives.so_far(partial, self.objective)
        if value is None:
            return
        self.newest[spec.key] = value
        place = self.order.index(spec.key)
        self.steps = sum(self.lengths[:place]) + i
        shown_now = [self.newest[key] for key in self.order[: place + 1] if key in self.newest]
        trial = self.taken.trial
        with suppress(StorageAway):  # the trial matters more than its curve
            self.search.patience(lambda: trial.report(sum(shown_now) / len(shown_now), self.steps))
            self.pruned = self.prunes and self.search.patience(trial.should_prune)
        if self.pruned:
            raise StopRun("the trial was pruned")
