"""Sweeps that run: in this process, in several, interrupted, topped up, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from run_fakes import assert_same_numbers
from sweep_fakes import (
    RATE,
    Hold,
    assert_sound,
    experiment,
    held,
    mid_trial,
    rows,
    running,
    searches,
    spawn,
    states,
    trial_results,
    until,
    write,
)
from sweep_fakes import (
    one_at_a_time as sweep,
)

from cl_softcot.results.events import read_events
from cl_softcot.run import __main__ as run_command
from cl_softcot.run import api
from cl_softcot.sweep import alive
from cl_softcot.sweep.__main__ import main
from cl_softcot.sweep.worker import Interrupted
from cl_softcot.track import figures


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder. The figures of single runs take most of a small trial's time and are not what is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "draw_run", lambda *_: [])
    monkeypatch.setattr(figures, "draw_experiment", lambda *_: None)
    return tmp_path


@pytest.fixture
def hold(here, monkeypatch):
    held_at = Hold(here, monkeypatch)
    yield held_at
    held_at.release()  # also of a test that failed: nothing waits for ever


def go(*args) -> int:
    return main([str(a) for a in args])


# ------------------------------------------------------------------------------------------------ the whole way


def test_a_sweep_from_its_file_to_its_report(here, capsys):
    assert go(write(here, sweep(seeds=[0, 1]))) == 0
    folder, told = here / "sweeps/s", capsys.readouterr().out
    assert_sound(folder, 3)
    results = trial_results(folder)
    assert all([r.seed for r in runs] == [0, 1] and {r.split for r in runs} == {"valid"} for runs in results.values())
    winner = json.loads((folder / "winner.json").read_text())
    values = {r.number: r.last.values[0] for r in searches(folder)[0].records()}
    chosen = winner["winners"][0]
    assert values[chosen["number"]] == max(values.values()) == chosen["validation"]["summary.acc"]
    assert winner["saw_the_future"] is True and winner["tested"] == [chosen["number"]]
    tested = [json.loads(p.read_text()) for p in sorted((folder / "test").glob("*/runs/*/result.json"))]
    assert {r["split"] for r in tested} == {"test"} and len(tested) == 2
    assert chosen["test"]["summary.acc"] == pytest.approx(sum(r["summary"]["acc"] for r in tested) / 2)
    page = (folder / "report.html").read_text()
    assert chosen["command"].split(" output_dir")[0].replace("'", "&#x27;").replace('"', "&quot;") in page
    assert page.count("data:image/png") >= 3 and "The tuner saw the future" in page and "http" not in page.split("<pre>")[0]
    for number, value in values.items():
        assert f"trial {number}: summary.acc {value:.4g}" in told


def test_a_trial_is_exactly_what_its_command_runs(here, capsys):
    assert go(write(here, sweep(trials=1))) == 0
    said = re.search(r"  (python -m cl_softcot\.run .*trials/0)$", capsys.readouterr().out, re.M).group(1)
    arguments = shlex.split(said)[3:]
    assert arguments[-1] == "output_dir=sweeps/s/trials/0"
    assert run_command.main([*arguments[:-1], "output_dir=again", "--jobs", "1"]) == 0
    assert_same_numbers(here / "again", here / "sweeps/s/trials/0")
    assert json.loads((here / "sweeps/s/trials/0/trial.json").read_text())["command"] == said


def test_runs_carry_the_sweep_in_their_tags(here):
    assert go(write(here, sweep(trials=1))) == 0
    tags = {}
    for event in read_events(next((here / "sweeps/s/trials/0/runs").iterdir())):
        if event["kind"] == "tags":
            tags |= event["data"]
    assert tags["sweep"] == "s" and tags["trial"] == "0" and tags["cl_softcot.mlflow_experiment"] == "sweep s"


@pytest.mark.slow
def test_mlflow_has_a_run_a_trial_and_the_report(here, monkeypatch):
    from mlflow import MlflowClient

    uri = f"sqlite:///{here}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert go(write(here, sweep(trials=2), experiment(tracking={"mlflow": True}))) == 0
    client = MlflowClient(uri)
    place = client.get_experiment_by_name("sweep s").experiment_id
    runs = client.search_runs([place], "tags.sweep = 's'")
    roles = sorted((r.data.tags.get("sweep_role", "trial"), r.data.tags.get("trial", "")) for r in runs)
    winner = json.loads((here / "sweeps/s/winner.json").read_text())["winners"][0]
    assert roles == [("report", ""), ("test", str(winner["number"])), ("trial", "0"), ("trial", "1")]
    report = next(r for r in runs if r.data.tags.get("sweep_role") == "report")
    assert [f.path for f in client.list_artifacts(report.info.run_id)] == ["report.html"]
    assert report.data.metrics["best/best"] == winner["validation"]["summary.acc"]


def test_the_same_command_again_tops_up_and_repeats_nothing(here):
    path = write(here)
    assert go(path) == 0
    folder = here / "sweeps/s"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}
    first = {r.number: (r.params, r.last.values) for r in searches(folder)[0].records()}
    assert go(path) == 0
    assert states(folder) == dict.fromkeys(range(3), "complete")
    assert go(path, "trials=5") == 0
    assert_sound(folder, 5)
    after = {r.number: (r.params, r.last.values) for r in searches(folder)[0].records()}
    assert {n: after[n] for n in first} == first
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(trial_results(folder)) == 5


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("random", marks=pytest.mark.slow)])
def test_an_interrupted_sweep_proposes_and_finds_what_an_uninterrupted_one_does(here, monkeypatch, sampler):
    settings = {"trials": 4, "sampler": {"name": sampler, "startup_trials": 2, "seed": 3}}
    assert go(write(here, sweep(**settings)), "name=whole") == 0
    original, calls = api.run_experiment, [0]

    def interrupted(config, *, on_row=None, **options):
        def stops(spec, i, partial):
            on_row(spec, i, partial)
            calls[0] += 1
            if calls[0] == 5:  # in the second trial, behind its first experience
                raise Interrupted(signal.SIGTERM)

        return original(config, on_row=stops, **options)

    monkeypatch.setattr(api, "run_experiment", interrupted)
    assert go(here / "s.yaml", "name=cut") == 130
    assert states(here / "sweeps/cut") == {0: "complete", 1: "interrupted"}
    kept = {p: p.stat().st_mtime_ns for p in rows(here / "sweeps/cut", 1)}
    assert len(kept) == 2  # the base's row and that of the first experience
    monkeypatch.undo()
    os.chdir(here)
    assert go(here / "s.yaml", "name=cut") == 0
    assert_sound(here / "sweeps/cut", 4)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    whole, cut = ([(r.params, r.last.values) for r in searches(here / f"sweeps/{n}")[0].records()] for n in ("whole", "cut"))
    assert whole == cut
    assert [len(r.attempts) for r in searches(here / "sweeps/cut")[0].records()] == [1, 2, 1, 1]


def test_a_grid_is_every_combination_once(here):
    space = {RATE: [0.01, 0.1], "methods.softcot.reasoning.soft_thoughts": {"low": 1, "high": 2}}
    assert go(write(here, sweep(space=space, sampler="grid", trials=1))) == 0
    found = searches(here / "sweeps/s")[0].records()
    assert sorted(tuple(r.params.values()) for r in found) == [(0.01, 1), (0.01, 2), (0.1, 1), (0.1, 2)]
    assert_sound(here / "sweeps/s", 4)


def test_each_method_is_searched_for_itself(here):
    data = sweep(for_each=["softcot", "full_coconut"], space={"methods.{method}.strategy.learning_rate": [0.01, 0.1]}, trials=2)
    assert go(write(here, data, experiment("softcot", "full_coconut")), "sampler=grid") == 0
    for search in searches(here / "sweeps/s"):
        assert [r.state for r in search.records()] == ["complete"] * 2
        winner = json.loads((search.plan.folder / "winner.json").read_text())["winners"][0]
        assert f'methods_only=["{search.plan.method}"]' in winner["command"]
    page = (here / "sweeps/s/report.html").read_text()
    assert "s.softcot" in page and "s.full_coconut" in page


@pytest.mark.slow
def test_several_objectives_give_a_front_whose_trials_are_all_tested(here):
    wanted = {"drift.as_used.forward_kl/first": "minimize", "cost.trained_parameters": "minimize"}
    space = {RATE: [1e-4, 1.0], "methods.softcot.reasoning.projector": ["linear", "mlp"]}
    assert go(write(here, sweep(objectives=wanted, space=space, sampler="grid"))) == 0
    found = searches(here / "sweeps/s")[0].records()
    front = {w["number"] for w in json.loads((here / "sweeps/s/winner.json").read_text())["winners"]}
    for r in found:
        beaten = any(
            all(a <= b for a, b in zip(o.last.values, r.last.values, strict=True)) and o.last.values != r.last.values
            for o in found
        )
        assert (r.number in front) == (not beaten)
    assert {int(p.name) for p in (here / "sweeps/s/test").iterdir()} == front
    assert "Pareto front" in (here / "sweeps/s/report.html").read_text()


def test_constraints_rule_out_the_best(here):
    """More parameters than allowed: such a trial is complete, and never the winner."""
    space = {"methods.softcot.reasoning.projector": ["linear", "mlp"]}
    wanted = {"cost.trained_parameters": "maximize"}
    assert go(write(here, sweep(objectives=wanted, space=space, sampler="grid"))) == 0
    sizes = {r.params["methods.softcot.reasoning.projector"]: r.last.values[0] for r in searches(here / "sweeps/s")[0].records()}
    assert sizes["mlp"] > sizes["linear"]
    bound = {"cost.trained_parameters": {"at_most": float(sizes["linear"])}}
    assert go(write(here, sweep(objectives=wanted, space=space, sampler="grid", constraints=bound)), "name=bounded") == 0
    winner = json.loads((here / "sweeps/bounded/winner.json").read_text())["winners"][0]
    assert winner["params"] == {"methods.softcot.reasoning.projector": "linear"}
    assert_sound(here / "sweeps/bounded", 2)


def test_a_hopeless_trial_is_pruned_and_does_not_count(here):
    """Drift grows with the rate: behind two tame trials the wild one is given up after its first experience."""
    data = sweep(
        objectives={"drift.as_used.forward_kl/first": "minimize"}, space={RATE: [1e-6, 1e-5, 10.0]}, sampler="grid",
        pruner={"name": "median", "startup_trials": 2, "after": 1},
    )  # fmt: skip
    base = experiment()
    base["tasks"].append({**base["tasks"][0], "name": "third"})
    assert go(write(here, data, base)) == 0
    found = {r.params[RATE]: r for r in searches(here / "sweeps/s")[0].records()}
    assert [found[rate].state for rate in (1e-6, 1e-5)] == ["complete"] * 2
    steps = {rate: sorted(r.last.intermediate_values) for rate, r in found.items()}
    assert steps[1e-6] == [1, 2, 3]
    if found[10.0].state == "pruned":
        assert steps[10.0] in ([1], [1, 2]) and len(rows(here / "sweeps/s", found[10.0].number)) == len(steps[10.0]) + 1
    assert found[10.0].state == "pruned"


TOO_MANY = 100_000  # examples, of a file that holds 240


def test_failures_are_listed_with_their_logs_and_replaced(here, capsys):
    """Other trials take a failed one's place, until enough completed."""
    data = sweep(space={"train.examples": [8, TOO_MANY]}, sampler={"name": "random", "seed": 1}, most_trials=30)
    assert go(write(here, data)) == 0
    folder = here / "sweeps/s"
    assert_sound(folder, 3)
    failed = [r for r in searches(folder)[0].records() if r.state == "failed"]
    assert failed and all(r.params == {"train.examples": TOO_MANY} and len(r.attempts) == 1 for r in failed)
    capsys.readouterr()
    assert go("status", folder) == 0
    told = capsys.readouterr().out
    for record in failed:
        path = f"sweeps/s/trials/{record.number}/error.txt"
        assert path in told.replace(str(here) + "/", "") and "Traceback" in (here / path).read_text()
        assert f"trials/{record.number}/error.txt" in (folder / "report.html").read_text()


def test_a_sweep_in_which_everything_fails_stops_early(here, capsys):
    assert go(write(here, sweep(space={"train.examples": [TOO_MANY, TOO_MANY + 1]}, trials=20, first_failures=3))) == 1
    told = capsys.readouterr().err
    assert "3 trials failed and none completed" in told and "error.txt" in told
    assert states(here / "sweeps/s") == dict.fromkeys(range(3), "failed")


def test_memory_that_runs_out_is_a_failure_like_any_other(here):
    """A projector of a terabyte: torch cannot allocate it."""
    space = {"methods.softcot.reasoning.hidden": [8, 10**10]}
    base = experiment()
    base["methods"][0]["reasoning"] = {"name": "softcot", "projector": "mlp"}
    assert go(write(here, sweep(space=space, sampler="grid"), base)) == 0
    found = {r.params["methods.softcot.reasoning.hidden"]: r for r in searches(here / "sweeps/s")[0].records()}
    assert found[8].state == "complete" and found[10**10].state == "failed"
    assert "memory" in found[10**10].error or "memory" in (here / f"sweeps/s/trials/{found[10**10].number}/error.txt").read_text()


# ------------------------------------------------------------------------------------------------ other sweeps


def test_a_folder_holds_one_sweep(here, capsys):
    path = write(here, sweep(trials=1))
    assert go(path) == 0
    assert go(path, "set={train.steps: 3}") == 2
    told = capsys.readouterr().err
    assert "this folder holds a sweep with other settings" in told and "name=OTHER" in told
    assert states(here / "sweeps/s") == {0: "complete"}


def test_a_storage_that_holds_another_sweep_of_that_name_is_left_alone(here, capsys):
    """A journal moved between folders stands for a database that two people share."""
    path = write(here, sweep(trials=1, storage="journal"))
    assert go(path) == 0
    (here / "sweeps/other").mkdir()
    (here / "sweeps/other/sweep.journal").write_bytes((here / "sweeps/s/sweep.journal").read_bytes())
    assert go(path, "output_dir=sweeps/other") == 2
    assert "the storage holds another sweep called 's'" in capsys.readouterr().err
    assert not (here / "sweeps/other/trials").exists()


def test_an_experiment_that_was_changed_is_noticed_by_late_workers(here, capsys):
    path = write(here, sweep(trials=1))
    assert go("create", path) == 0
    write(here, sweep(trials=1), experiment(train={"steps": 3}))
    assert go("worker", "sweeps/s") == 2
    assert "the experiment was changed since the sweep was started" in capsys.readouterr().err
    assert states(here / "sweeps/s") == {}


# ------------------------------------------------------------------------------------------------ who lives


def test_silence_is_counted_by_looking_and_never_while_nobody_could_look(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(alive.time, "monotonic", lambda: now[0])

    class Trial:
        number = 0

        def __init__(self, n):
            self.user_attrs = {"beat": {"n": n, "machine": "elsewhere", "pid": 1, "started": "1"}}

    watch = alive.Watch(heartbeat=10, grace=60)
    watch.look([Trial(1)])
    now[0] = 10_000.0  # the database was away for hours: one look counts for two heartbeats at most
    watch.look([Trial(1)])
    assert not watch.is_dead(Trial(1))
    for _ in range(5):
        now[0] += 10
        watch.look([Trial(1)])
    assert watch.is_dead(Trial(1))
    watch.look([Trial(2)])  # it has beaten after all
    assert not watch.is_dead(Trial(2))


def test_a_worker_of_this_machine_is_dead_when_its_process_is_gone():
    watch = alive.Watch(heartbeat=10, grace=60)

    class Trial:
        number = 0
        user_attrs = {"beat": alive.beat(0)}

    assert not watch.is_dead(Trial)
    other = os.fork()
    if other == 0:
        os._exit(0)
    Trial.user_attrs = {"beat": {**alive.beat(0), "pid": other, "started": "1"}}
    assert watch.is_dead(Trial)  # a zombie, and it was started at another time
    os.waitpid(other, 0)
    Trial.user_attrs = {"beat": {**alive.beat(0), "started": "1"}}  # its number was given to another process
    assert watch.is_dead(Trial)


def test_a_trial_that_kills_its_workers_is_given_up(here):
    """So often interrupted that it must be its own fault."""
    path = write(here, sweep(trials=1, retries=1, most_trials=2))
    assert go("create", path) == 0
    search = searches(here / "sweeps/s")[0]
    for attempt in (1, 2):
        taken = search.take()
        assert (taken.number, taken.attempt) == (0, attempt)
        assert search.release(taken)
    record = search.records()[0]
    assert record.state == "failed" and record.error == "interrupted 2 times"
    again = search.take()
    assert again.number == 2 and again.params != record.params  # Optuna's numbers count attempts


def test_a_worker_that_was_taken_for_dead_does_not_tell_a_second_time(here):
    path = write(here, sweep(trials=1))
    assert go("create", path) == 0
    slow, quick = searches(here / "sweeps/s")[0], searches(here / "sweeps/s")[0]
    taken = slow.take()
    quick.release(taken)  # what a watcher does that heard nothing of it
    again = quick.take()
    assert (again.number, again.attempt, again.params) == (taken.number, 2, taken.params)
    assert slow.complete(taken, [0.9], {"c": 1.0}) is False
    assert quick.complete(again, [0.5], {"c": 1.0}) is True
    assert quick.complete(again, [0.5], {"c": 1.0}) is True  # the answer to the first was lost
    assert slow.complete(taken, [0.9], {"c": 1.0}) is False
    assert [r.last.values for r in quick.records()] == [[0.5]]


def test_no_more_than_asked_for_are_started(here):
    path = write(here, sweep(trials=2))
    assert go("create", path) == 0
    search = searches(here / "sweeps/s")[0]
    first, second = search.take(), search.take()
    assert search.take() == "wait"
    search.complete(first, [0.1], {})
    assert search.take() == "wait"
    search.fail(second, "it broke")
    third = search.take()
    assert third.number == 2
    search.complete(third, [0.2], {})
    assert search.take() == "done"


# ------------------------------------------------------------------------------------------------ the journal


def test_a_torn_line_does_not_break_the_journal(here):
    path = write(here, sweep(trials=1, storage="journal"))
    assert go(path) == 0
    journal = here / "sweeps/s/sweep.journal"
    with open(journal, "ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","stu')  # its writer was killed
    assert states(here / "sweeps/s") == {0: "complete"}
    assert go(path, "trials=2") == 0
    assert_sound(here / "sweeps/s", 2)
    for line in journal.read_bytes().splitlines():
        json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_kill_9_in_mid_trial(here, hold, storage):
    """The next start takes the trial up where it was, though nothing told that its worker died."""
    data = sweep(storage={"kind": storage, "heartbeat_seconds": 0.5, "grace_seconds": 3.0}, trials=2)
    path = write(here, data, held(experiment()))
    folder = here / "sweeps/s"
    process = spawn(path, cwd=here)
    try:
        until(lambda: len(rows(folder, 0)) >= 2, "the first experience", lambda: process.poll() is None)
    finally:
        process.kill()
        process.wait()
        hold.release()
    kept = {p: p.stat().st_mtime_ns for p in rows(folder, 0)}
    assert states(folder) == {0: "running"} and not running(folder)
    assert go(path) == 0
    assert_sound(folder, 2)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert [len(r.attempts) for r in searches(folder)[0].records()] == [2, 1]


# ------------------------------------------------------------------------------------------------ several processes


@pytest.mark.slow
def test_one_start_beside_another(here):
    """Both make the sweep at the same moment, and both work; nothing is lost, doubled, or more than was asked for."""
    path = write(here, sweep(trials=6))
    both = [spawn(path, cwd=here, log=f"{i}.log") for i in range(3)]
    assert [p.wait() for p in both] == [0, 0, 0], [(here / f"{i}.log").read_text()[-2000:] for i in range(3)]
    assert_sound(here / "sweeps/s", 6)
    assert states(here / "sweeps/s") == dict.fromkeys(range(6), "complete")
    assert len(list((here / "sweeps/s/test").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_local_workers_of_which_one_is_killed(here, hold, storage):
    data = sweep(trials=4, storage={"kind": storage, "heartbeat_seconds": 0.5, "grace_seconds": 3.0})
    path = write(here, data, held(experiment()))
    folder = here / "sweeps/s"
    process = spawn(path, "launcher={name: local, workers: 2}", cwd=here)
    _, victim = mid_trial(folder, lambda: process.poll() is None)
    assert victim != process.pid
    os.kill(victim, signal.SIGKILL)
    hold.release()
    assert process.wait() == 0, (here / "spawned.log").read_text()[-3000:]
    assert "was killed by signal 9; started again" in (here / "spawned.log").read_text()
    assert_sound(folder, 4)
    assert any(len(r.attempts) == 2 for r in searches(folder)[0].records())


@pytest.mark.slow
def test_workers_go_when_they_are_told_to_and_with_their_parent(here, hold):
    """Two that work at the same time, each on a trial of its own."""
    path = write(here, sweep(trials=4), held(experiment()))
    folder = here / "sweeps/s"

    def two_at_work(process):
        return until(
            lambda: len(running(folder)) == 2 and list(running(folder).values()), "two trials", lambda: process.poll() is None
        )

    process = spawn(path, "launcher={name: local, workers: 2}", cwd=here)
    pids = two_at_work(process)
    assert len(set(pids)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert set(states(folder).values()) == {"interrupted"}  # given back, not left running
    process = spawn(path, "launcher={name: local, workers: 2}", cwd=here)
    pids = two_at_work(process)
    process.kill()
    process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of the workers")
