"""Lanes: runs side by side in one process are in step, equal those alone to the bit, and end each for itself."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import optuna
import pytest
import torch
from run_fakes import METHODS, assert_same_numbers
from run_fakes import write as write_experiment
from sweep_fakes import (
    RATE,
    Hold,
    assert_sound,
    experiment,
    held,
    rows,
    searches,
    spawn,
    states,
    sweep,
    until,
    write,
)

from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import RunsFailed, UserError
from cl_softcot.machine import lanes as side_by_side
from cl_softcot.machine.lanes import LaneStopped, hand_on, undivided, working_seconds
from cl_softcot.models import frozen_prefix
from cl_softcot.run import one_run
from cl_softcot.run.api import run_experiment
from cl_softcot.sweep.__main__ import main
from cl_softcot.sweep.config import load_sweep
from cl_softcot.sweep.samplers import at_once
from cl_softcot.track import figures

REASONING = "methods.softcot.reasoning"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder. The figures of single runs take most of a small trial's time and are not what is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "draw_run", lambda *_: [])
    monkeypatch.setattr(figures, "draw_experiment", lambda *_: None)
    return tmp_path


# ------------------------------------------------------------------------------------------------ who works


def noting(trace: list, name: str, pieces: int):
    def job() -> str:
        for piece in range(pieces):
            trace.append((name, piece))
            hand_on()
        return name

    return job


def test_lanes_take_turns_and_one_that_ends_is_left_out():
    trace: list = []
    assert side_by_side.side_by_side([noting(trace, "a", 3), noting(trace, "b", 1), noting(trace, "c", 2)]) == ["a", "b", "c"]
    assert trace == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1), ("a", 2)]


def test_a_lane_that_fell_behind_comes_first():
    """One has more to do at a place than the other; one begins further on; one waits for something."""
    trace: list = []

    def lane(name: str, start: int, pieces: int) -> None:
        for place in range(start, 3):
            for piece in range(pieces if place == 1 else 0):
                trace.append(f"{name}{place}.{piece}")
                hand_on()
            trace.append(f"{name}{place}")
            hand_on((0, place))

    side_by_side.side_by_side([lambda: lane("a", 0, 0), lambda: lane("b", 0, 2), lambda: lane("c", 2, 0)])
    assert trace == ["a0", "b0", "c2", "a1", "b1.0", "b1.1", "b1", "a2", "b2"]


def test_who_has_to_wait_lets_others_work():
    trace: list = []

    def waits() -> None:
        while len(trace) < 4:
            side_by_side.step_aside()
        trace.append("at last")

    side_by_side.side_by_side([waits, noting(trace, "b", 5)])
    assert trace == [("b", 0), ("b", 1), ("b", 2), ("b", 3), "at last", ("b", 4)]


def test_what_is_undivided_is_not_interrupted_by_other_lanes():
    trace: list = []

    def whole() -> None:
        with undivided():
            noting(trace, "whole", 3)()
        hand_on()
        trace.append(("whole", "end"))

    side_by_side.side_by_side([whole, noting(trace, "b", 1)])
    assert trace == [("whole", 0), ("whole", 1), ("whole", 2), ("b", 0), ("whole", "end")]


def draws(seed: int, n: int = 5) -> list[float]:
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    found = []
    for _ in range(n):
        found += [random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(()))]
        hand_on()
    return found


def test_random_numbers_are_each_lanes_own_and_the_callers_too():
    alone = [draws(seed) for seed in (1, 2, 3)]
    draws(7, 1)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(())))
    draws(7, 1)
    assert side_by_side.side_by_side([lambda seed=seed: draws(seed) for seed in (1, 2, 3)]) == alone
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected


def test_grad_mode_and_threads_are_a_lanes_own():
    threads = torch.get_num_threads()

    def without() -> list[bool]:
        with torch.no_grad():
            hand_on()
            return [torch.is_grad_enabled()]

    def with_() -> list[bool]:
        found = [torch.is_grad_enabled()]
        hand_on()
        return [*found, torch.is_grad_enabled(), torch.get_num_threads() == threads]

    assert side_by_side.side_by_side([without, with_]) == [[False], [True, True, True]]
    assert torch.is_grad_enabled()


def test_the_clock_stands_still_while_others_work(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: now[0])

    def job(seconds: float) -> float:
        began = working_seconds()
        for _ in range(3):
            now[0] += seconds
            hand_on()
        return working_seconds() - began

    assert side_by_side.side_by_side([lambda: job(1.0), lambda: job(10.0)]) == [3.0, 30.0]
    assert job(2.0) == 6.0  # outside of a lane it is the clock itself


def test_a_lane_that_fails_leaves_the_others_be():
    trace: list = []

    def fails() -> None:
        hand_on()
        raise ValueError("it broke")

    a, error, c = side_by_side.side_by_side([noting(trace, "a", 3), fails, noting(trace, "c", 3)])
    assert (a, c) == ("a", "c") and isinstance(error, ValueError) and len(trace) == 6


class Ended(BaseException):
    pass


def endless(ended: list, name: str) -> None:
    try:
        while True:
            hand_on()
    except LaneStopped:
        ended.append(name)
        raise


def test_what_is_no_mere_error_ends_all_lanes():
    ended: list = []

    def ends() -> None:
        hand_on()
        raise Ended

    with pytest.raises(Ended):
        side_by_side.side_by_side([lambda: endless(ended, "a"), ends, lambda: endless(ended, "c")])
    assert sorted(ended) == ["a", "c"]


def test_a_signal_to_the_process_ends_all_lanes():
    """It reaches the main thread alone, which only waits."""
    ended: list = []

    def interrupt(*_: object) -> None:
        raise Ended

    def sends() -> None:
        hand_on()
        os.kill(os.getpid(), signal.SIGUSR1)
        with undivided():  # where nothing is handed on lanes end too
            endless(ended, "sender")

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Ended):
            side_by_side.side_by_side([sends, lambda: endless(ended, "other")])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(ended) == ["other", "sender"]


# ------------------------------------------------------------------------------------------------ real runs

SETTINGS: dict[str, list[str]] = {
    "few": [f"{REASONING}.soft_thoughts=2", f"{RATE}=0.003"],
    "many": [f"{REASONING}.soft_thoughts=7"],
    "mlp": [f"{REASONING}.projector=mlp", f"{REASONING}.hidden=8", f"{RATE}=0.03"],
    "free": [f"{REASONING}.source=free"],
    "random": [f"{REASONING}.source=random", f"{REASONING}.soft_thoughts=3"],
}


def settings_of(here, name: str, where: str, *more: str):
    texts = [*SETTINGS[name], f"output_dir={here / where / name}", *more]
    return load_experiment(here / "base.yaml", texts).config


def run_side_by_side(here, names, where: str, *more: str, **options) -> list:
    configs = [settings_of(here, name, where, *more) for name in names]
    return side_by_side.side_by_side([lambda config=config: run_experiment(config, **options) for config in configs])


def base(here) -> None:
    """Replay draws on the global generators, so that lanes that shared them would find other numbers."""
    data = experiment(train={"steps": 3, "checkpoint_every_steps": 1})
    data["methods"][0]["plugins"] = METHODS["lora_replay"]["plugins"]
    write_experiment(here, data, "base.yaml")


def test_runs_side_by_side_are_those_alone_to_the_bit(here, monkeypatch):
    """Projectors, rates, numbers of thoughts and free vectors; twice, with other lanes beside them."""
    base(here)
    for name in SETTINGS:
        run_experiment(settings_of(here, name, "alone"))
    steps: list = []
    original = one_run._Run._on_step

    def noted(run, step):
        steps.append((step["turn"], step["step"], run.folder.path.parents[1].name))
        original(run, step)

    monkeypatch.setattr(one_run._Run, "_on_step", noted)
    for where, names in (("five", list(SETTINGS)), ("two", ["free", "few"])):
        steps.clear()
        outcomes = run_side_by_side(here, names, where)
        assert [len(results) for results in outcomes] == [1] * len(names), outcomes
        for name in names:
            assert_same_numbers(here / where / name, here / "alone" / name)
        moments = [(turn, step) for turn in (0, 1) for step in (1, 2, 3)]
        assert steps == [(*moment, name) for moment in moments for name in names]


def test_what_runs_side_by_side_share_is_computed_once(here, monkeypatch):
    """Also where there is no room for most of it: they come by the same prompts one right after the other."""
    write_experiment(here, experiment(train={"steps": 8, "examples": 32}), "base.yaml")

    def computed(where: str, names: list[str], room: int) -> frozen_prefix.PrefixStore:
        frozen_prefix.forget()
        monkeypatch.setenv(frozen_prefix.MEMORY, str(room))
        run_side_by_side(here, names, where)
        (store,) = frozen_prefix.stores().values()
        return store

    large = computed("large", ["few"], 10**9)
    assert large.computed > 64  # of two tasks, and what is asked
    room = large.size // 3
    alone = computed("alone", ["few"], room)
    lanes = computed("lanes", ["few", "many", "free"], room)
    assert lanes.asked == 3 * alone.asked
    assert lanes.computed < 1.5 * alone.computed  # each for itself would be about 2.4


def test_a_run_that_diverges_does_not_harm_the_others(here):
    base(here)
    wild = load_experiment(
        here / "base.yaml", [f"{RATE}=1e25", f"{REASONING}.projector=mlp", f"output_dir={here / 'lanes' / 'wild'}"]
    ).config
    tame = [settings_of(here, name, "lanes") for name in ("few", "free")]
    run_experiment(settings_of(here, "few", "alone"))
    few, error, free = side_by_side.side_by_side(
        [lambda config=config: run_experiment(config) for config in (tame[0], wild, tame[1])]
    )
    assert isinstance(error, RunsFailed) and "no longer a number" in str(error)
    assert len(few) == len(free) == 1
    assert_same_numbers(here / "lanes/few", here / "alone/few")


def test_runs_that_were_interrupted_side_by_side_go_on_at_their_own_checkpoints(here, monkeypatch):
    """In the second turn, at the second step of the second lane: the first lane has done two, the third lane one."""
    base(here)
    names = ["few", "mlp", "free"]
    for name in names:
        run_experiment(settings_of(here, name, "alone"))
    original = one_run._Run._on_step

    def interrupts(run, step):
        if (step["turn"], step["step"]) == (1, 2) and run.folder.path.parents[1].name == "mlp":
            raise Ended
        original(run, step)

    monkeypatch.setattr(one_run._Run, "_on_step", interrupts)
    with pytest.raises(Ended):
        run_side_by_side(here, names, "cut")
    monkeypatch.setattr(one_run._Run, "_on_step", original)
    for name in names:
        kept = sorted((here / "cut" / name).glob("runs/*/rows/*"))
        assert [p.name for p in kept] == ["row_0.json", "row_1.json"]
    run_side_by_side(here, names[:2], "cut")
    run_experiment(settings_of(here, names[2], "cut"))
    for name in names:
        assert_same_numbers(here / "cut" / name, here / "alone" / name)


# ------------------------------------------------------------------------------------------------ sweeps

SPACE = {
    RATE: {"low": 1e-3, "high": 1e-1, "log": True},
    f"{REASONING}.soft_thoughts": [1, 2, 4],
    f"{REASONING}.projector": ["linear", "mlp"],
}


def go(*args) -> int:
    return main([str(a) for a in args])


def outcomes_of(folder) -> dict:
    return {r.number: (r.state, r.params, r.last.values) for r in searches(folder)[0].records()}


def test_a_sweep_side_by_side_finds_what_one_by_one_finds(here, capsys):
    path = write(here, sweep(space=SPACE, trials=3, seeds=[0, 1]))
    assert go(path, "name=one", "side_by_side=1") == 0
    assert "side by side" not in capsys.readouterr().out
    assert go(path, "name=four") == 0
    told = capsys.readouterr().out
    assert "4 trials side by side in a worker" in told and "trials 0, 1, 2 side by side" in told
    assert_sound(here / "sweeps/four", 3)
    assert outcomes_of(here / "sweeps/four") == outcomes_of(here / "sweeps/one")
    for number in range(3):
        assert_same_numbers(here / f"sweeps/four/trials/{number}", here / f"sweeps/one/trials/{number}")


def test_each_trial_side_by_side_ends_for_itself(here, monkeypatch):
    """One diverges, one is pruned behind its first experience, one is whole."""
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda _self, _study, trial: trial.params[RATE] == 10.0)
    data = sweep(space={RATE: [1e-6, 1e25, 10.0]}, sampler="grid", pruner="median", side_by_side=3)
    base = experiment()
    base["methods"][0]["reasoning"] = {"name": "softcot", "projector": "mlp"}  # two layers of such weights overflow
    assert go(write(here, data, base)) == 0
    found = {r.params[RATE]: r for r in searches(here / "sweeps/s")[0].records()}
    assert {rate: r.state for rate, r in found.items()} == {1e-6: "complete", 1e25: "failed", 10.0: "pruned"}
    assert "no longer a number" in found[1e25].error
    assert "no longer a number" in (here / f"sweeps/s/trials/{found[1e25].number}/error.txt").read_text()
    reported = {rate: sorted(r.last.intermediate_values) for rate, r in found.items()}
    assert reported == {1e-6: [1, 2], 1e25: [], 10.0: [1]}


def test_a_sweep_that_is_interrupted_gives_all_trials_back_and_goes_on(here, monkeypatch, capsys):
    path = write(here, sweep(space=SPACE, trials=3), experiment(train={"steps": 3, "checkpoint_every_steps": 1}))
    assert go(path, "name=whole") == 0
    original = one_run._Run._on_step

    def told_to_stop(run, step):
        original(run, step)
        if (step["turn"], step["step"]) == (1, 2) and "/trials/1/" in str(run.folder):
            os.kill(os.getpid(), signal.SIGTERM)
            # On a busy machine the main thread may hear of it much later.
            until(lambda: side_by_side._here.lanes.stopped_by, what="the signal in the main thread")

    monkeypatch.setattr(one_run._Run, "_on_step", told_to_stop)
    assert go(path, "name=cut") == 130
    assert states(here / "sweeps/cut") == dict.fromkeys(range(3), "interrupted")
    assert capsys.readouterr().out.count("given back") == 3
    kept = {p: p.stat().st_mtime_ns for number in range(3) for p in rows(here / "sweeps/cut", number)}
    assert len(kept) == 6  # of each trial the base's row and that of the first experience
    monkeypatch.setattr(one_run._Run, "_on_step", original)
    assert go(path, "name=cut") == 0
    assert_sound(here / "sweeps/cut", 3)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert outcomes_of(here / "sweeps/cut") == outcomes_of(here / "sweeps/whole")
    assert [len(r.attempts) for r in searches(here / "sweeps/cut")[0].records()] == [2] * 3
    for number in range(3):
        assert_same_numbers(here / f"sweeps/cut/trials/{number}", here / f"sweeps/whole/trials/{number}")


@pytest.mark.slow
def test_kill_9_of_a_worker_with_several_trials(here, monkeypatch):
    """All of them are taken up again, each at its own checkpoint."""
    path = write(here, sweep(space=SPACE, trials=3), held(experiment()))
    folder, hold = here / "sweeps/s", Hold(here, monkeypatch)
    process = spawn(path, cwd=here)
    try:
        until(
            lambda: all(len(rows(folder, number)) == 2 for number in range(3)),
            "the first experience of all",
            lambda: process.poll() is None,
        )
    finally:
        process.kill()
        process.wait()
        hold.release()
    kept = {p: p.stat().st_mtime_ns for number in range(3) for p in rows(folder, number)}
    assert go(path) == 0
    assert_sound(folder, 3)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert go(path, "name=whole", "side_by_side=1") == 0
    for number in range(3):
        assert_same_numbers(folder / f"trials/{number}", here / f"sweeps/whole/trials/{number}")


# ------------------------------------------------------------------------------------------------ which trials


def plan_of(here, *overrides, methods=("softcot",), **changes):
    return load_sweep(write(here, sweep(**changes), experiment(*methods)), overrides).plans()[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 4),  # random: nothing is learned from results
        ({"sampler": "grid", "space": {RATE: [0.1, 0.2]}}, 4),
        ({"sampler": "tpe"}, 1),
        ({"sampler": "tpe", "side_by_side": 3}, 3),
        ({"side_by_side": 6}, 6),
        ({"objectives": {"summary.learning_accuracy": "maximize"}}, 1),  # which is pruned by itself
        ({"objectives": {"summary.learning_accuracy": "maximize"}, "pruner": "none"}, 4),
        ({"space": {RATE: [0.1, 0.2], "train.global_batch_size": [2, 4]}}, 1),
        ({"space": {"methods.softcot.strategy": ["frozen_backbone", "lora"]}}, 1),
        ({"space": {"methods.softcot.strategy.name": ["frozen_backbone", "full_finetune"]}}, 1),
    ],
)
def test_how_many_trials_run_side_by_side(here, changes, expected):
    assert at_once(plan_of(here, **changes)) == expected


@pytest.mark.parametrize("method", ["full_coconut", "lora_nearest"])
def test_a_backbone_that_learns_has_nothing_to_share(here, method):
    space = {f"methods.{method}.strategy.learning_rate": [1e-3, 1e-2]}
    plan = plan_of(here, methods=(method,), space=space)
    assert at_once(plan) == 1 and "does not train in front of a frozen backbone" in plan.alone_because()


def test_trials_that_cannot_share_are_not_asked_to(here):
    with pytest.raises(UserError, match=r"side_by_side: these trials have nothing to share: they differ in train.steps"):
        plan_of(here, space={RATE: [0.1, 0.2], "train.steps": [1, 2]}, side_by_side=2)
    with pytest.raises(UserError, match="side_by_side"):
        plan_of(here, side_by_side=0)


def test_workers_leave_each_other_their_share(here):
    path = write(here, sweep(trials=5))
    assert go("create", path) == 0
    one, other = searches(here / "sweeps/s")[0], searches(here / "sweeps/s")[0]
    first = one.take_several(workers=2)
    assert [taken.number for taken in first] == [0, 1, 2]
    assert [taken.number for taken in other.take_several(workers=2)] == [3, 4]
    assert other.take_several(workers=2) == "wait"
    for taken in first:
        assert one.complete(taken, [0.5], {})
    assert one.take_several(workers=2) == "wait"
