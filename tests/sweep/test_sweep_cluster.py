"""Sweeps on a real PostgreSQL and a real one-node Slurm: what a cluster does to them, and that nothing is lost.

The tests install and start both where they may (Debian, root), and are skipped with the reason elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import postgres_server
import pytest
import slurm_node
from held import FILE
from sweep_fakes import (
    Hold,
    alive,
    assert_sound,
    command,
    experiment,
    held,
    mid_trial,
    rows,
    running,
    searches,
    spawn,
    states,
    until,
    write,
)
from sweep_fakes import (
    one_at_a_time as sweep,
)

from cl_softcot.sweep import alive as heartbeats
from cl_softcot.sweep.__main__ import main
from cl_softcot.sweep.trials import Counts
from cl_softcot.sweep.worker import run_trial

TOO_MANY, TOO_LARGE = 100_000, 10**10  # examples of a file that holds 240; rows of a matrix that no memory holds
pytestmark = pytest.mark.slow


@pytest.fixture
def database(monkeypatch):
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (extra: postgres)")
    missing = postgres_server.install()
    if missing:
        pytest.skip(missing)
    server = postgres_server.Postgres()
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    yield server
    server.close()


@pytest.fixture
def slurm():
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed (extra: slurm)")
    missing = slurm_node.start()
    if missing:
        pytest.skip(missing)
    slurm_node.cancel_all()
    yield
    slurm_node.cancel_all()
    until(lambda: not slurm_node.squeue(), "an empty queue")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hold(here, monkeypatch):
    held_at = Hold(here, monkeypatch)
    yield held_at
    held_at.release()  # also of a test that failed: nothing waits for ever


def on(database, **more) -> dict:
    return {"kind": "postgresql", "url": database.url, "heartbeat_seconds": 1.0, "grace_seconds": 6.0, **more}


def told(folder: Path) -> str:
    """All that was said, for a failed assertion."""
    logs = [*folder.glob("*.log"), *folder.glob("sweeps/*/logs/*.log"), *folder.glob("sweeps/*/logs/slurm/*_log.*")]
    return "\n".join(f"== {path}\n{path.read_text()[-2500:]}" for path in logs)


def holders_of(secret: str, folder: Path) -> list[Path]:
    """The files that hold a text."""
    return [p for p in folder.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


# ------------------------------------------------------------------------------------------------ PostgreSQL


@pytest.mark.postgres
def test_a_database_that_is_restarted_while_workers_are_killed(here, database, hold):
    base = held(experiment(tracking={"mlflow": True}))
    path = write(here, sweep(trials=6, storage=on(database), launcher={"name": "local", "workers": 2}), base)
    folder, uri = here / "sweeps/s", f"sqlite:///{here}/mlflow.db"
    process = spawn(path, cwd=here, MLFLOW_TRACKING_URI=uri)

    def lives() -> bool:
        return process.poll() is None

    def comes_to_its_end(trial: int) -> None:
        """Which it has to tell when the database is there again."""
        hold.release()
        until(lambda: len(rows(folder, trial)) == 3, "its last row", lives)
        hold.again()

    kept = {}
    for event in range(4):
        trial, pid = mid_trial(folder, lives)
        if event % 2:
            kept |= {p: p.stat().st_mtime_ns for p in rows(folder, trial)}
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not alive(pid))
        else:
            database.restart(meanwhile=lambda trial=trial: comes_to_its_end(trial))
    hold.release()
    assert process.wait() == 0, told(here)
    assert_sound(folder, 6)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept  # resumed behind the last finished experience
    attempts = [len(r.attempts) for r in searches(folder)[0].records()]
    assert sum(attempts) == 6 + 2 and max(attempts) in (2, 3)  # both kills may meet one trial
    assert not holders_of(postgres_server.PASSWORD, here)
    assert (here / "mlflow.db").exists()


@pytest.mark.postgres
def test_the_whole_address_in_the_environment_stays_there(here, database, monkeypatch, capsys):
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("SWEEP_STORAGE", database.url.replace("sweeper@", f"sweeper:{postgres_server.PASSWORD}@"))
    storage = {"kind": "postgresql", "url_env": "SWEEP_STORAGE"}
    path = write(here, sweep(trials=2, storage=storage, space={"train.examples": [8, TOO_MANY]}, sampler="grid"))
    assert main([str(path)]) == 0
    said = capsys.readouterr()
    assert postgres_server.PASSWORD not in said.out + said.err and "sweeper:***@127.0.0.1" in said.out
    monkeypatch.setenv("SWEEP_STORAGE", database.url.replace("sweeper@", "sweeper:wrong-one@"))
    assert main([str(path)]) == 2
    said = capsys.readouterr()
    assert "the storage cannot be reached" in said.err and "Traceback" not in said.err
    assert "wrong-one" not in said.out + said.err
    assert not holders_of(postgres_server.PASSWORD, here) and not holders_of("wrong-one", here)


@pytest.mark.postgres
def test_many_sweeps_on_a_fresh_database_at_once(here, database):
    """Optuna's creation of tables and studies crashes two of three of these."""
    path = write(here, sweep(storage=on(database)))
    starts = [spawn("create", path, f"name=s{i % 2}", cwd=here, log=f"{i}.log") for i in range(4)]
    assert [p.wait() for p in starts] == [0] * 4, told(here)
    assert [search.plan.study_name for i in range(2) for search in searches(here / f"sweeps/s{i}")] == ["s0", "s1"]


@pytest.mark.postgres
def test_a_name_that_another_folder_has_taken_in_the_database(here, database, capsys):
    path = str(write(here, sweep(storage=on(database))))
    assert main(["create", path]) == 0
    assert main(["create", path, "output_dir=sweeps/elsewhere"]) == 2
    assert "the storage holds another sweep called 's'" in capsys.readouterr().err


@pytest.mark.postgres
def test_a_worker_of_another_machine_is_judged_by_its_silence(here, database, hold, monkeypatch):
    """And one that was only paused finds, when it wakes, that its trial is another's: it tells nothing and writes nothing."""
    path = write(here, sweep(trials=1, storage=on(database)), held(experiment()))
    folder = here / "sweeps/s"
    process = spawn(path, cwd=here)
    trial, pid = mid_trial(folder, lambda: process.poll() is None)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(heartbeats, "machine_name", lambda: "another one")
    search = searches(folder)[0]
    assert search.take() == "wait"
    started = time.monotonic()
    taken = until(lambda: (got := search.take()) != "wait" and got, "the paused worker's trial")
    assert time.monotonic() - started > 4.0  # not before its time
    assert (taken.number, taken.attempt) == (trial, 2)
    os.kill(pid, signal.SIGCONT)  # it waits at the hold until it hears that its trial is another's
    monkeypatch.delenv(FILE)  # which holds this process no more
    run_trial(search, taken, print)
    assert process.wait() == 0, told(here)
    assert "another worker took it over" in (here / "spawned.log").read_text()
    monkeypatch.undo()
    os.chdir(here)
    for key, value in database.environment.items():
        monkeypatch.setenv(key, value)
    assert_sound(folder, 1)


# ------------------------------------------------------------------------------------------------ Slurm

SLURM = {"name": "slurm", "workers": 2, "gpus": 1, "memory_gb": 2, "time_minutes": 30, "signal_seconds": 20, "partition": "main"}


@pytest.mark.slurm
def test_slurm_jobs_that_are_requeued_and_warned(here, slurm, hold, capsys):
    """A warning before the end (as at time-out and preemption), and a requeue without one."""
    storage = {"kind": "journal", "heartbeat_seconds": 1.0, "grace_seconds": 6.0}
    setup = ["echo gpus=$CUDA_VISIBLE_DEVICES"]
    path = write(here, sweep(trials=4, storage=storage, launcher={**SLURM, "setup": setup}), held(experiment()))
    folder = here / "sweeps/s"
    started = command(path, cwd=here)
    assert started.returncode == 0, started.stderr
    assert "python -m cl_softcot.sweep status sweeps/s --watch" in started.stdout
    jobs = json.loads((folder / "logs/slurm_jobs.json").read_text())
    assert len(jobs) == 2 and set(slurm_node.squeue()) == set(jobs)
    again = command(path, cwd=here)  # the same command again: nothing is submitted twice
    assert again.returncode == 0 and set(slurm_node.squeue()) == set(jobs)
    trial, _ = mid_trial(folder, slurm_node.squeue)
    kept = {p: p.stat().st_mtime_ns for p in rows(folder, trial)}
    assert subprocess.run(["scancel", "--signal=USR2", *jobs]).returncode == 0
    until(lambda: "given back" in told(here), "a trial was given back", slurm_node.squeue)
    trial, _ = mid_trial(folder, slurm_node.squeue)
    kept |= {p: p.stat().st_mtime_ns for p in rows(folder, trial)}
    requeue = ["scontrol", "requeue", jobs[0]]  # refused while it waits for its place, as after a warning
    until(lambda: subprocess.run(requeue, capture_output=True).returncode == 0, "a job ran again", slurm_node.squeue)
    hold.release()
    until(lambda: not slurm_node.squeue(), "the end of the jobs")
    assert_sound(folder, 4)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert any(len(r.attempts) > 1 for r in searches(folder)[0].records())
    assert (folder / "report.html").exists() and (folder / "winner.json").exists()  # by the last worker
    assert re.search(r"gpus=[0-3]\b", told(here))
    assert main(["status", "sweeps/s"]) == 0
    looked = capsys.readouterr().out
    assert "4/4 complete" in looked and "the sweep is over" in looked and "jobs:" not in looked


@pytest.mark.slurm
def test_the_plain_script_does_the_same_without_submitit(here, slurm, hold, capsys):
    storage = {"kind": "journal", "heartbeat_seconds": 1.0, "grace_seconds": 6.0}
    path = write(here, sweep(trials=3, storage=storage, launcher=SLURM), held(experiment()))
    assert main([str(path), "--dry-run"]) == 0 and not (here / "sweeps").exists()
    (here / "s.sbatch").write_text(capsys.readouterr().out)
    assert main(["create", str(path)]) == 0
    assert subprocess.run(["sbatch", "s.sbatch"], cwd=here, capture_output=True).returncode == 0
    mid_trial(here / "sweeps/s", slurm_node.squeue)
    subprocess.run(["scancel", "--signal=USR2", *slurm_node.squeue()])
    until(lambda: "stopped by SIGUSR2" in told(here), "a worker was warned", slurm_node.squeue)
    hold.release()
    until(lambda: not slurm_node.squeue(), "the end of the jobs")
    assert_sound(here / "sweeps/s", 3)


# ------------------------------------------------------------------------------------------------ chaos


@pytest.mark.slurm
@pytest.mark.postgres
def test_chaos(here, slurm, database, hold):
    """All that a cluster does, in one sweep: at the end every trial is whole or has failed for a reason of its own, none is lost.

    Trials that raise and run out of memory, a tracker that is away, two commands at once; and into the middle of trials: a killed
    worker, a restart of the database, a warning, a requeue, and a preemption.
    """
    space = {"methods.softcot.reasoning.hidden": [4, 8, TOO_LARGE], "train.examples": [8, 9, TOO_MANY]}
    launcher = {**SLURM, "workers": 3}
    data = sweep(sampler="grid", retries=10, space=space, storage=on(database), launcher=launcher)
    wanted = 4  # of nine
    base = held(experiment(tracking={"mlflow": True}))
    base["methods"][0]["reasoning"] = {"name": "softcot", "projector": "mlp"}
    path = write(here, data, base)
    folder = here / "sweeps/s"
    gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody listens there
    both = [spawn(path, cwd=here, log=f"start_{i}.log", **gone) for i in range(2)]
    assert [p.wait() for p in both] == [0, 0], told(here)
    chaos = _Chaos(here, folder, database, gone)
    events = [chaos.kill, chaos.restart_database, chaos.warn, chaos.requeue, chaos.preempt]
    random.Random(0).shuffle(events)
    for event in events:
        event()
    hold.release()
    while Counts.of(searches(folder)[0].records()).complete < wanted or slurm_node.squeue():
        if not slurm_node.squeue():  # every job was killed: the command again tops up
            assert command(path, cwd=here, **gone).returncode == 0
        time.sleep(1)
    assert_sound(folder, wanted)
    assert {p: p.stat().st_mtime_ns for p in chaos.kept} == chaos.kept
    found = searches(folder)[0].records()
    assert sum(len(r.attempts) > 1 for r in found) >= 2, chaos.log
    failed = [r for r in found if r.state == "failed"]
    assert len(failed) == 5
    for record in failed:
        assert TOO_MANY in record.params.values() or TOO_LARGE in record.params.values(), record.error
        assert "Traceback" in (folder / "trials" / str(record.number) / "error.txt").read_text()
    assert not holders_of(postgres_server.PASSWORD, here)


class _Chaos:
    """Events, each in the middle of a trial. ``kept``: rows that were measured before one, and must not be measured again."""

    def __init__(self, here: Path, folder: Path, database: postgres_server.Postgres, gone: dict[str, str]):
        self.here, self.folder, self.database, self.gone = here, folder, database, gone
        self.kept: dict[Path, int] = {}
        self.log: list[str] = []

    def _middle(self, event: str) -> tuple[int, int]:
        try:
            trial, pid = mid_trial(self.folder, slurm_node.squeue)
        except AssertionError:
            raise AssertionError(
                f"before {event}, behind {self.log}: {states(self.folder)} {slurm_node.squeue()}\n{told(self.here)}"
            ) from None
        self.kept |= {p: p.stat().st_mtime_ns for n in running(self.folder) for p in rows(self.folder, n)}
        self.log.append(f"{event} (trial {trial})")
        return trial, pid

    def kill(self) -> None:
        _, pid = self._middle("kill -9")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
        # A killed worker's job has failed and is not requeued: the command again submits another.
        until(lambda: command("s.yaml", cwd=self.here, **self.gone).returncode == 0, "another job")

    def restart_database(self) -> None:
        self._middle("database restarted")
        self.database.restart(meanwhile=lambda: time.sleep(3))  # several heartbeats long, none of which comes through

    def warn(self) -> None:
        _, pid = self._middle("out of time")
        subprocess.run(["scancel", "--signal=USR2", self._job_of(pid)], check=True)
        until(lambda: not alive(pid), "the warned worker's end")

    def requeue(self) -> None:
        _, pid = self._middle("requeued")
        subprocess.run(["scontrol", "requeue", self._job_of(pid)], check=True)
        until(lambda: not alive(pid), "the requeued worker's end")

    def preempt(self) -> None:
        self._middle("preempted")
        workers = [pid for pid in running(self.folder).values()]
        wrap = [
            "sbatch",
            "--parsable",
            "--partition=high",
            "--gres=gpu:4",
            "--mem=100",
            "--time=1",
            "--wrap=sleep 3",
            "--output=/dev/null",
        ]
        subprocess.run(wrap, check=True, capture_output=True)
        until(lambda: not any(alive(pid) for pid in workers), "the preempted workers' end")

    def _job_of(self, pid: int) -> str:
        environ = dict(e.split("=", 1) for e in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in e)
        return (
            f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
            if "SLURM_ARRAY_JOB_ID" in environ
            else environ["SLURM_JOB_ID"]
        )
