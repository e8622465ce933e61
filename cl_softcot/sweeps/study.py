"""The trials of one search, in the storage: who takes which, who lives, what is tried again.

A trial that was interrupted (its worker killed, preempted, out of time) is told FAIL and queued again with the same values as a
new attempt. All attempts of a trial share its number's folder, so that the next goes on at the last finished experience. What
raised an error is not tried again: its attempt holds the attribute `error`.

Everything that reads the trials and then changes them happens under the sweep's lock, so that no two workers take one trial,
queue one twice, or start more than was asked for. Workers need no clock in common: see `_Watch`.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_softcot.config import Experiment
from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, read_json, waiting_lock
from cl_softcot.sweeps import objectives
from cl_softcot.sweeps.config import Plan, PrunerConfig, SamplerConfig, SweepConfig
from cl_softcot.sweeps.space import grid, suggest, values_of
from cl_softcot.sweeps.storage import Patience, hide, open_storage, shown_address

LANES = 4  # trials side by side where the sweep does not say how many


@dataclass(frozen=True)
class Record:
    """A trial with all its attempts.

    Attributes:
        number: of the first attempt, and the name of the trial's folder.
        state: complete, pruned, failed, running, waiting (queued), or interrupted (to be queued).
        attempts: Optuna's numbers.
        last: the last attempt (an Optuna `FrozenTrial`).
    """

    number: int
    state: str
    attempts: list[int]
    last: Any
    params: dict[str, Any]

    @property
    def error(self) -> str:
        return self.last.user_attrs.get("error") or f"interrupted {len(self.attempts)} times"

    @property
    def feasible(self) -> bool:
        return all(excess <= 0 for excess in self.last.constraints.values())

    @property
    def seconds(self) -> float | None:
        """Of the last attempt, once it has ended."""
        if self.last.datetime_complete is None or self.last.datetime_start is None:
            return None
        return (self.last.datetime_complete - self.last.datetime_start).total_seconds()


def records(plan: Plan, trials: Iterable[Any]) -> list[Record]:
    """Optuna's trials, attempts of one trial together, by number."""
    groups: dict[int, list[Any]] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        groups.setdefault(trial.user_attrs.get("attempt_of", trial.number), []).append(trial)
    found = []
    for number, attempts in sorted(groups.items()):
        # Two attempts only exist one after the other; should a disk without locks have allowed more, the complete one counts.
        last = next((t for t in attempts if t.state.name == "COMPLETE"), attempts[-1])
        state = last.state.name.lower()
        if state == "fail":
            given_up = "error" in last.user_attrs or len(attempts) > plan.sweep.retries
            state = "failed" if given_up else "interrupted"
        found.append(Record(number, state, [t.number for t in attempts], last, values_of(last.params, plan.space)))
    return found


@dataclass(frozen=True)
class Counts:
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    interrupted: int = 0

    @classmethod
    def of(cls, found: Iterable[Record]) -> Counts:
        states = [record.state for record in found]
        return cls(**{state: states.count(state) for state in cls.__dataclass_fields__})

    @property
    def open(self) -> int:
        """Trials that are not judged yet."""
        return self.running + self.waiting + self.interrupted

    @property
    def total(self) -> int:
        return self.complete + self.pruned + self.failed + self.open


@dataclass
class Taken:
    """A trial that this process runs now."""

    trial: Any  # Optuna's
    number: int  # of the first attempt
    attempt: int  # 1 for the first
    params: dict[str, Any]
    folder: Path


# --- a search ------------------------------------------------------------------------------------------------


class Search:
    """One study, as a worker uses it."""

    def __init__(self, plan: Plan, storage: Any, patience: Patience):
        import optuna

        self.plan, self.patience = plan, patience
        self.study = patience(lambda: optuna.load_study(study_name=plan.study_name, storage=storage, pruner=make_pruner(plan)))
        self._watch = _Watch(plan.sweep.storage.heartbeat_seconds, plan.sweep.storage.grace_seconds)

    def records(self) -> list[Record]:
        return self.patience(lambda: records(self.plan, self.study.get_trials(deepcopy=False)))

    def look(self) -> None:
        """Notes which running trials have beaten since the last look. Called often, so that silence is noticed soon."""
        self._watch.look(self._running())

    def _running(self) -> list[Any]:
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    # ---------------------------------------------------------------------------------------------------- taking

    def take(self) -> Taken | str:
        """A trial to run now; or 'wait' (others run the last ones), or 'done'."""
        return self.patience(self._take)

    def take_several(self, workers: int) -> list[Taken] | str:
        """The same for trials to run side by side (see ``at_once``), as many as leave the other workers their share."""
        taken = self.take()
        if not isinstance(taken, Taken):
            return taken
        together = [taken]
        try:
            share = self._share(workers)
            while len(together) < share and isinstance(more := self.take(), Taken):
                together.append(more)
        except BaseException:
            for one in together:
                with suppress(UserError):
                    self.release(one)
            raise
        return together

    def _share(self, workers: int) -> int:
        """How many trials one of ``workers`` may hold: while few are left, an equal part of them."""
        most = at_once(self.plan)
        if most == 1 or workers == 1:
            return most
        counts, sweep = Counts.of(self.records()), self.plan.sweep
        unfinished = counts.open if sweep.sampler.name == "grid" else sweep.trials - counts.complete
        return min(most, -(-unfinished // workers))

    def _take(self) -> Taken | str:
        with waiting_lock(self.plan.folder / ".lock"):
            self._queue_interrupted()
            counts = Counts.of(records(self.plan, self.study.get_trials(deepcopy=False)))
            if counts.waiting or self._may_start_another(counts):
                return self._ask(counts.total)
            return "wait" if counts.open else "done"

    def _may_start_another(self, counts: Counts) -> bool:
        if self.plan.sweep.sampler.name == "grid" or looks_broken(counts, self.plan):
            return False
        return counts.complete + counts.open < self.plan.sweep.trials and counts.total < self.plan.sweep.most

    def _queue_interrupted(self) -> None:
        """Ends the attempts of dead workers, and queues every interrupted trial once more."""
        import optuna
        from optuna.trial import TrialState

        running = self._running()
        self._watch.look(running)
        for trial in running:
            if self._watch.is_dead(trial):
                self._tell(trial.number, TrialState.FAIL)
        for record in records(self.plan, self.study.get_trials(deepcopy=False)):
            if record.state == "interrupted":
                queued = record.last.system_attrs.get("fixed_params")  # of a grid, which it may not have taken over yet
                attempt = optuna.create_trial(
                    state=TrialState.WAITING,
                    params=record.last.params,
                    distributions=record.last.distributions,
                    user_attrs={"attempt_of": record.number},
                    system_attrs={"fixed_params": queued} if queued else {},
                )
                self.study.add_trial(attempt)

    def _ask(self, total: int) -> Taken:
        # A sampler of its own for every trial: what is proposed depends on the seed, the number and what is known by then, and
        # neither on which worker asks nor on how often it was restarted.
        self.study.sampler = make_sampler(self.plan.sweep.sampler, total, self.plan.sweep.objectives)
        trial = self.study.ask()
        trial.set_user_attr("beat", beat(0))
        params = suggest(trial, self.plan.space)
        number = trial.user_attrs.get("attempt_of", trial.number)
        earlier = [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get("attempt_of", t.number) == number]
        return Taken(trial, number, len(earlier), params, self.plan.folder / "trials" / str(number))

    # ---------------------------------------------------------------------------------------------------- ending

    def complete(self, taken: Taken, values: list[float], excesses: Mapping[str, float]) -> bool:
        """False if the trial is another worker's by now."""
        from optuna.trial import TrialState

        if not self._note(taken, lambda: [taken.trial.set_constraint(name, excess) for name, excess in excesses.items()]):
            return False
        return self.patience(lambda: self._tell(taken.trial.number, TrialState.COMPLETE, values))

    def fail(self, taken: Taken, error: str) -> bool:
        """Ends a trial that raised an error; it is not tried again."""
        from optuna.trial import TrialState

        return self._note(taken, lambda: taken.trial.set_user_attr("error", hide(error)[:1000])) and self.patience(
            lambda: self._tell(taken.trial.number, TrialState.FAIL)
        )

    def prune(self, taken: Taken) -> bool:
        from optuna.trial import TrialState

        return self.patience(lambda: self._tell(taken.trial.number, TrialState.PRUNED))

    def release(self, taken: Taken, seconds: float = 20.0) -> bool:
        """Gives an unfinished trial back, for any worker to go on with."""
        from optuna.trial import TrialState

        return self.patience(lambda: self._tell(taken.trial.number, TrialState.FAIL), seconds)

    def _note(self, taken: Taken, write: Callable[[], Any]) -> bool:
        """Writes to the trial; False if it has ended."""
        from optuna.exceptions import UpdateFinishedTrialError

        def call() -> bool:
            try:
                write()
            except UpdateFinishedTrialError:
                return False
            return True

        return self.patience(call)

    def _tell(self, number: int, state: Any, values: list[float] | None = None) -> bool:
        """Ends a running trial. May be called again after a lost answer: ended in the same way is as good."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            try:
                self.study.tell(number, values, state=state)
                return True
            except (ValueError, RuntimeError):  # it ended between the two calls
                trial = self.study.get_trials(deepcopy=False)[number]
                if not trial.state.is_finished():
                    raise
        return trial.state == state and (values is None or trial.values == values)


def looks_broken(counts: Counts, plan: Plan) -> bool:
    """Whether nothing but failures came out so far. While others run, they may show that it works: nothing new is started."""
    return counts.failed >= plan.sweep.first_failures and not counts.complete


# --- who lives -----------------------------------------------------------------------------------------------


def beat(n: int) -> dict[str, Any]:
    """What a worker writes into its trial again and again, `n` counting."""
    return {"n": n, "machine": _machine(), "host": os.uname().nodename, "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """What tells processes with one table of ids from others: the machine's start and the container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a living process was started, in the kernel's ticks; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@dataclass
class _Seen:
    n: int
    looked: float
    silence: float = 0.0


class _Watch:
    """Which running trials have lost their worker.

    A worker of this machine is dead when its process is gone: known at once. Others are judged by their beats, with the watcher's
    own clock: one is dead when its count has stood still over `grace` seconds of looking. Time in which nobody could look (the
    database was away) does not count, since nobody could beat then either.
    """

    def __init__(self, heartbeat: float, grace: float):
        self.heartbeat, self.grace = heartbeat, grace
        self._seen: dict[int, _Seen] = {}
        self._looking = threading.Lock()  # the hearts of several trials look, and no time may count twice

    def look(self, running: Iterable[Any]) -> None:
        with self._looking:
            now = time.monotonic()
            for trial in running:
                n = (trial.user_attrs.get("beat") or {"n": -1})["n"]
                seen = self._seen.get(trial.number)
                if seen is None or seen.n != n:
                    self._seen[trial.number] = _Seen(n, looked=now)
                else:
                    seen.silence += min(now - seen.looked, 2 * self.heartbeat)
                    seen.looked = now

    def is_dead(self, trial: Any) -> bool:
        written = trial.user_attrs.get("beat")
        if written and written["machine"] and written["machine"] == _machine():
            return _started(written["pid"]) != written["started"]
        seen = self._seen.get(trial.number)
        return seen is not None and seen.silence > self.grace


# --- samplers and pruners -----------------------------------------------------------------------------------


def make_sampler(config: SamplerConfig, number: int, wanted: Mapping[str, str]) -> Any:
    import optuna

    seed = int.from_bytes(hashlib.sha256(f"{config.seed} {number}".encode()).digest()[:4], "big")
    samplers = optuna.samplers
    if config.name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=config.startup_trials)
    if config.name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=max(2, config.startup_trials))
    if config.name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=config.startup_trials)
    return samplers.RandomSampler(seed=seed)  # a grid is queued, so that nothing is sampled


def chosen_pruner(plan: Plan) -> PrunerConfig:
    """As configured; otherwise median for a single objective that measures learning alone. Others favour, after early
    experiences, high rates whose forgetting shows later."""
    if plan.sweep.pruner is not None:
        return plan.sweep.pruner
    wanted = list(plan.sweep.objectives)
    return PrunerConfig(name="median" if len(wanted) == 1 and wanted[0] in objectives.OF_LEARNING_ALONE else "none")


def at_once(plan: Plan) -> int:
    """How many trials a worker runs side by side. Unless the sweep says, more than one only where no trial's result decides
    anything about another."""
    wanted = plan.sweep.side_by_side
    if wanted is None:
        independent = plan.sweep.sampler.name in ("random", "grid") and chosen_pruner(plan).name == "none"
        wanted = LANES if independent else 1
    return wanted if wanted == 1 or plan.alone_because() is None else 1


def make_pruner(plan: Plan) -> Any:
    import optuna

    config = chosen_pruner(plan)
    if config.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.after)
    if config.name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=config.after, reduction_factor=2)
    return optuna.pruners.NopPruner()


# --- making and finding a sweep ------------------------------------------------------------------------------


def create(sweep: SweepConfig) -> list[Search]:
    """Makes the sweep's folder, storage and studies, or finds them as they are. Safe to call at the same time.

    Raises:
        UserError: if the folder or the storage holds another sweep of that name.
    """
    with waiting_lock(sweep.folder / ".lock"):
        identity = _identity(sweep)
        storage = open_storage(sweep.storage, sweep.folder, create=True)
        patience = Patience(sweep.storage, sweep.folder)
        for plan in sweep.plans():
            patience(lambda plan=plan: _create_study(plan, storage, identity))
        write_sweep(sweep)
        (sweep.folder / "logs").mkdir(exist_ok=True)  # Slurm makes none
    return [Search(plan, storage, patience) for plan in sweep.plans()]


def find(sweep: SweepConfig, say: Callable[[str], None] = lambda _: None) -> list[Search]:
    """The searches of a sweep that was created.

    Raises:
        UserError: if there is none, or its storage cannot be reached.
    """
    patience = Patience(sweep.storage, sweep.folder, say)
    storage = patience(lambda: open_storage(sweep.storage, sweep.folder))
    try:
        return [Search(plan, storage, patience) for plan in sweep.plans()]
    except KeyError:
        raise UserError(
            "the storage does not know this sweep",
            where=shown_address(sweep.storage, sweep.folder),
            fix="Start it with its YAML file.",
        ) from None


def write_sweep(sweep: SweepConfig) -> None:
    from cl_softcot import _yaml
    from cl_softcot.files import atomic_write_text

    atomic_write_text(sweep.folder / "sweep.yaml", _yaml.dump(sweep.model_dump(mode="json", exclude_none=True)))


def _identity(sweep: SweepConfig) -> dict[str, Any]:
    """What tells this sweep from others: an id of its folder, and the fingerprint of each search.

    Raises:
        UserError: if the folder holds another sweep.
    """
    path = sweep.folder / "sweep.json"
    fingerprints = {plan.study_name: plan.fingerprint() for plan in sweep.plans()}
    if not path.exists():
        known = {"id": os.urandom(8).hex(), "fingerprints": fingerprints, "started": time.time()}
        atomic_write_json(path, known)
        return known
    known = read_json(path)
    if not isinstance(known, dict) or known.get("fingerprints") != fingerprints:
        raise UserError(
            "this folder holds a sweep with other settings",
            where=str(sweep.folder),
            fix="Give this one another name (name=OTHER), or remove the folder and the study of the earlier one. "
            "The number of trials, the sampler and the launcher may change; what a trial is may not.",
        )
    return known


def _create_study(plan: Plan, storage: Any, identity: Mapping[str, Any]) -> None:
    import optuna

    directions = list(plan.sweep.objectives.values())
    try:
        study = optuna.create_study(study_name=plan.study_name, storage=storage, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=plan.study_name, storage=storage)
        if study.user_attrs.get("sweep") not in (None, identity["id"]) or (
            study.user_attrs.get("sweep") is None and study.get_trials(deepcopy=False)
        ):
            raise UserError(
                f"the storage holds another sweep called {plan.study_name!r}",
                where=shown_address(plan.sweep.storage, plan.sweep.folder),
                fix="Give this one another name (name=OTHER), or start it in the folder of the other.",
            ) from None
    if study.user_attrs.get("made"):
        return
    study.set_user_attr("sweep", identity["id"])
    study.set_metric_names(list(plan.sweep.objectives))
    if plan.sweep.sampler.name == "grid":
        for params in grid(plan.space):
            stored = {key: plan.space[key].stored(value) for key, value in params.items()}
            study.enqueue_trial(stored, skip_if_exists=True)  # an earlier start may have died half-way
    study.set_user_attr("made", True)


def trial_experiment(plan: Plan, params: Mapping[str, Any], folder: Path) -> tuple[Experiment, list[str]]:
    """The experiment of a trial, and the overrides that say so."""
    from cl_softcot.config import load_experiment

    overrides = [*plan.trial_overrides(params), f"output_dir={folder}"]
    return load_experiment(plan.trial_experiment, overrides).config, overrides
