"""The trials of one search, in the storage: who takes which, who lives, what is tried again.

A trial that was interrupted (its worker killed, preempted, out of time) is told FAIL and queued again with the same values as a
new attempt. All attempts of a trial share its number's folder, so that the next goes on at the last finished experience. What
raised an error is not tried again: its attempt holds the attribute `error`.

Everything that reads the trials and then changes them happens under the sweep's lock, so that no two workers take one trial,
queue one twice, or start more than was asked for. Workers need no clock in common: see `Watch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_softcot.config.experiment import Experiment
from cl_softcot.errors import UserError
from cl_softcot.files import waiting_lock
from cl_softcot.sweep.alive import Watch, beat
from cl_softcot.sweep.config import SearchPlan
from cl_softcot.sweep.samplers import at_once, make_pruner, make_sampler
from cl_softcot.sweep.space import suggest, values_of
from cl_softcot.sweep.storage import Patience, hide


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


def records(plan: SearchPlan, trials: Iterable[Any]) -> list[Record]:
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

    def __init__(self, plan: SearchPlan, storage: Any, patience: Patience):
        import optuna

        self.plan, self.patience = plan, patience
        self.study = patience(lambda: optuna.load_study(study_name=plan.study_name, storage=storage, pruner=make_pruner(plan)))
        self._watch = Watch(plan.sweep.storage.heartbeat_seconds, plan.sweep.storage.grace_seconds)

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

    def has_lost(self, record: Record) -> bool:
        """Whether the worker of a running trial is known to be gone."""
        return self._watch.is_dead(record.last)

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
        return Taken(trial, number, len(earlier), params, self.plan.trial_folder(number))

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


def looks_broken(counts: Counts, plan: SearchPlan) -> bool:
    """Whether nothing but failures came out so far. While others run, they may show that it works: nothing new is started."""
    return counts.failed >= plan.sweep.first_failures and not counts.complete


def trial_experiment(plan: SearchPlan, params: Mapping[str, Any], folder: Path) -> tuple[Experiment, list[str]]:
    """The experiment of a trial, and the overrides that say so."""
    from cl_softcot.config.loading import load_experiment

    overrides = [*plan.trial_overrides(params), f"output_dir={folder}"]
    return load_experiment(plan.trial_experiment, overrides).config, overrides
