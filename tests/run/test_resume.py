"""Killed anywhere and started again: finished work is kept, and every number is that of an uninterrupted run, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_fakes import (
    METHODS,
    assert_same_numbers,
    environment,
    finished,
    run_folders,
    small,
    start,
    write,
)

TRAINED = [name for name in METHODS if name != "base_direct"]
DURABLE_WRITE = "os:fsync"  # twice a file, once a line of a log: between two calls nothing on the disk changes
OPTIMISER_STEP = "cl_softcot.learning.loop:TrainingLoop._count_step"
JUDGED = "cl_softcot.answering.evaluate:_prediction"


# ----------------------------------------------------------------------------------------------- kill -9, exactly


# In the quick run one method that routes over several models and one with a plug-in's memory; the others in CI.
QUICK = ("softcot_oracle", "lora_replay")


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in METHODS])
def test_killed_again_and_again_equals_uninterrupted(method, tmp_path):
    """Every start is killed a little later than the one before, while it writes, until one comes to the end."""
    path = write(tmp_path, small(method))
    for attempt in range(30):
        ended = start(path, "output_dir=out", cwd=tmp_path, kill_at=(DURABLE_WRITE, 31 + 12 * attempt))
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended.text
    assert 1 <= attempt < 29
    assert_same_numbers(tmp_path / "out", finished(), [method])


@pytest.mark.parametrize(("what", "calls"), [(OPTIMISER_STEP, (3, 4, 5)), (JUDGED, (30, 20, 10))])
@pytest.mark.parametrize("method", ["lora_nearest", "lora_replay"])
def test_killed_while_learning_and_while_answering(method, what, calls, tmp_path):
    """Three times, each start getting a little farther: behind a checkpoint inside a turn, and in the middle of a row."""
    path = write(tmp_path, small(method))
    for n in calls:
        ended = start(path, "output_dir=out", cwd=tmp_path, kill_at=(what, n))
        assert ended.status == -signal.SIGKILL, ended.text
    assert start(path, "output_dir=out", cwd=tmp_path).status == 0
    assert_same_numbers(tmp_path / "out", finished(), [method])


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED)
def test_killed_at_any_write(method, tmp_path):
    """One interruption each; of every four methods, which write alike, each is cut at its share of every ninth write."""
    path = write(tmp_path, small(method))
    share = TRAINED.index(method) % 4
    writes = start(path, "output_dir=whole", cwd=tmp_path, kill_at=(DURABLE_WRITE, 0)).calls
    assert writes > 50
    for n in range(1 + 9 * share, writes, 36):
        ended = start(path, "output_dir=out", cwd=tmp_path, kill_at=(DURABLE_WRITE, n))
        assert ended.status == -signal.SIGKILL, ended.text
        ended = start(path, "output_dir=out", cwd=tmp_path)
        assert ended.status == 0, ended.text
        assert_same_numbers(tmp_path / "out", finished(), [method])
        shutil.rmtree(tmp_path / "out")


def test_without_checkpoints_inside_a_turn_the_numbers_are_the_same(tmp_path):
    path = write(tmp_path, small("softcot"))
    no = "train.checkpoint_every_steps=0"
    assert start(path, no, "output_dir=whole", cwd=tmp_path).status == 0
    assert start(path, no, "output_dir=out", cwd=tmp_path, kill_at=(OPTIMISER_STEP, 9)).status == -signal.SIGKILL
    assert start(path, no, "output_dir=out", cwd=tmp_path).status == 0
    assert_same_numbers(tmp_path / "out", tmp_path / "whole")


# ------------------------------------------------------------------------------------------------- what is kept


def test_finished_work_is_kept_and_not_done_again(tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished(), out)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted((out / "runs").rglob("*")) if p.is_file()}
    ended = start(write(tmp_path, small(*METHODS)), "output_dir=out", cwd=tmp_path, kill_at=(JUDGED, 1))
    assert ended.status == 0, ended.text  # nothing was answered
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted((out / "runs").rglob("*")) if p.is_file()}
    assert after == before
    assert (out / "table.txt").read_bytes() == (finished() / "table.txt").read_bytes()


def test_a_method_can_be_added_to_a_finished_folder(tmp_path):
    assert start(write(tmp_path, small("softcot")), "output_dir=out", cwd=tmp_path).status == 0
    kept = (run_folders(tmp_path / "out")["softcot"] / "result.json").read_bytes()
    assert start(write(tmp_path, small("softcot", "full_oracle")), "output_dir=out", cwd=tmp_path).status == 0
    assert (run_folders(tmp_path / "out")["softcot"] / "result.json").read_bytes() == kept
    assert_same_numbers(tmp_path / "out", finished(), ["softcot", "full_oracle"])
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "softcot" in table and "full_oracle" in table


def test_restart_starts_over(tmp_path):
    path = write(tmp_path, small("softcot"))
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=(OPTIMISER_STEP, 8)).status == -signal.SIGKILL
    other = ["train.steps=4", "output_dir=out"]
    assert start(path, *other, cwd=tmp_path).status == 2
    ended = start(path, *other, "--restart", cwd=tmp_path)
    assert ended.status == 0, ended.text
    found = json.loads((run_folders(tmp_path / "out")["softcot"] / "result.json").read_text())
    assert found["cost"]["optimiser_steps"] == 8


def test_restart_throws_nothing_away_that_this_command_did_not_write(tmp_path):
    """``output_dir=.`` where the default folder of all results lies."""
    precious = tmp_path / "runs" / "earlier" / "result.json"
    precious.parent.mkdir(parents=True)
    precious.write_text("{}")
    ended = start(write(tmp_path, small("softcot")), "output_dir=.", "--restart", cwd=tmp_path)
    assert ended.status == 2 and "nothing in it is thrown away" in ended.err
    assert precious.exists()


# --------------------------------------------------------------------------------------------- damage and change


def test_a_corrupt_newest_checkpoint_falls_back_and_says_so(tmp_path):
    path = write(tmp_path, small("lora_replay"))
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=(OPTIMISER_STEP, 12)).status == -signal.SIGKILL
    newest = sorted((run_folders(tmp_path / "out")["lora_replay"] / "checkpoints").glob("*.safetensors"))[-1]
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert "does not match its checksum" in ended.text and newest.stem in ended.text
    assert_same_numbers(tmp_path / "out", finished(), ["lora_replay"])


def test_no_whole_checkpoint_is_one_clear_message(tmp_path):
    path = write(tmp_path, small("softcot"))
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=(OPTIMISER_STEP, 8)).status == -signal.SIGKILL
    for checkpoint in (run_folders(tmp_path / "out")["softcot"] / "checkpoints").glob("*.json"):
        checkpoint.write_text("{")
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 1 and "none of the checkpoints can be used" in ended.text and "--restart" in ended.text
    assert "Traceback" not in ended.text


def test_a_missing_row_is_told_where_it_cannot_be_measured_any_more(tmp_path):
    """Inside the first turn the weights are no longer those of row 0."""
    path = write(tmp_path, small("softcot"))
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=(OPTIMISER_STEP, 4)).status == -signal.SIGKILL
    (run_folders(tmp_path / "out")["softcot"] / "rows" / "row_0.json").unlink()
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 1 and "row 0 is missing" in ended.text and "--restart" in ended.text


def test_changed_data_are_refused(tmp_path):
    """Rows that were added to a file are drawn too: the base's answers and earlier rows would be of other questions."""
    data = small("softcot")
    own = tmp_path / "first.jsonl"
    shutil.copy(data["tasks"][0]["path"], own)
    data["tasks"][0]["path"] = str(own)
    path = write(tmp_path, data)
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=(OPTIMISER_STEP, 2)).status == -signal.SIGKILL
    rows = own.read_text().splitlines(keepends=True)
    own.write_text("".join(rows[40:]))
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 2 and "other data" in ended.err and "first" in ended.err and "--restart" in ended.err


# ------------------------------------------------------------------------------- an end that was cut off, edited files


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished(), tmp_path / "out"))


def test_a_run_whose_log_was_cut_off_behind_its_result_is_finished_all_the_same(tmp_path):
    """By the next start, and by ``track``, each from any place behind the move of ``result.json``."""
    from cl_softcot.track.finishing import reconcile_alone

    out = copied(tmp_path)
    method, whole = "softcot", {}
    run = run_folders(out)[method]
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    known = _told(lines)
    last_row = max(i for i, line in enumerate(lines) if '"metrics"' in line and json.loads(line)["step"] == 2)
    for cut in range(last_row + 1, len(lines)):
        for torn in ("", lines[cut][:-7]):
            (run / "events.jsonl").write_text("".join(lines[:cut]) + torn)
            reconcile_alone(run)
            assert _told((run / "events.jsonl").read_text().splitlines()) == known, (cut, torn)
            whole[cut] = True
    assert len(whole) >= 5
    (run / "events.jsonl").write_text("".join(lines[: last_row + 1]))
    ended = start(write(tmp_path, small(method)), "output_dir=out", cwd=tmp_path, kill_at=(JUDGED, 1))
    assert ended.status == 0, ended.text  # nothing was answered
    assert _told((run / "events.jsonl").read_text().splitlines()) == known


def _told(lines: list[str]) -> tuple[dict, set, str]:
    """What a log says: every number, every artifact, and how it ends."""
    events = [json.loads(line) for line in lines]
    numbers = [((e["step"], k), v) for e in events if e["kind"] == "metrics" for k, v in e["data"].items()]
    assert len(dict(numbers)) == len(numbers)
    return dict(numbers), {e["data"] for e in events if e["kind"] == "artifact"}, events[-1]["data"]


def _edit(path: Path) -> None:
    """A digit of the file becomes another one."""
    text = path.read_text()
    i = text.rindex("0" if "0" in text else "1")
    path.write_text(text[:i] + "7" + text[i + 1 :])


@pytest.mark.parametrize(
    "file", ["result.json", "rows/row_2.json", "predictions/row_2.jsonl", "predictions/weights_alone_2.jsonl"]
)
def test_an_edited_file_is_told_and_measured_again(file, tmp_path):
    out = copied(tmp_path)
    _edit(run_folders(out)["softcot"] / file)
    ended = start(write(tmp_path, small("softcot", "lora_replay")), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0 and f"{file} was changed" in ended.text, ended.text
    assert_same_numbers(out, finished(), ["softcot", "lora_replay"])


def test_an_edited_row_that_cannot_be_measured_any_more_is_told_and_left_out(tmp_path):
    out = copied(tmp_path)
    _edit(run_folders(out)["softcot"] / "predictions" / "row_1.jsonl")
    ended = start(write(tmp_path, small("softcot", "lora_replay")), "output_dir=out", cwd=tmp_path)
    assert ended.status == 1 and "row_1.jsonl was changed" in ended.text and "delete the run's folder" in ended.text
    assert "Traceback" not in ended.text and "lora_replay" in (out / "table.txt").read_text()
    shutil.rmtree(run_folders(out)["softcot"])
    ended = start(write(tmp_path, small("softcot", "lora_replay")), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert_same_numbers(out, finished(), ["softcot", "lora_replay"])


BASE = ("base.json", "base_predictions.jsonl", "base_continuations.json")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("damage", ["lost", "torn", "edited"])
def test_what_was_measured_of_the_base_is_made_again(damage, known, tmp_path):
    """Where something is to be done; with checksums also where nothing is. ``known``: with checksums."""
    out = copied(tmp_path)
    shutil.rmtree(run_folders(out)["softcot"])
    for file in BASE:
        if damage == "edited" and not known:
            continue  # nothing could tell
        path = out / "shared" / file
        whole = path.read_bytes()
        if not known:
            (out / "shared" / "SHA256SUMS").unlink(missing_ok=True)
        _edit(path) if damage == "edited" else path.unlink() if damage == "lost" else path.write_bytes(whole[: len(whole) // 2])
        ended = start(write(tmp_path, small("softcot", "lora_replay")), "output_dir=out", cwd=tmp_path)
        assert ended.status == 0, ended.text
        assert path.read_bytes() == whole, file
        shutil.rmtree(run_folders(out)["softcot"]) if not known else None
    if known:
        assert_same_numbers(out, finished(), ["softcot", "lora_replay"])


def test_a_lost_record_of_the_base_does_not_let_other_data_in(tmp_path):
    out = copied(tmp_path)
    shutil.rmtree(run_folders(out)["softcot"])
    (out / "shared" / "base.json").unlink()
    data = small("softcot")
    own = tmp_path / "first.jsonl"
    own.write_text("".join(Path(data["tasks"][0]["path"]).read_text().splitlines(keepends=True)[40:]))
    data["tasks"][0]["path"] = str(own)
    ended = start(write(tmp_path, data), "output_dir=out", cwd=tmp_path)
    assert ended.status == 2 and "other data" in ended.err and "Traceback" not in ended.text


# ------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_is_one_clear_message_and_nothing_is_lost(tmp_path):
    """While the base is measured, in the middle of the run, at its result, and at the table."""
    path = write(tmp_path, small("softcot_oracle"))
    writes = start(path, "output_dir=whole", cwd=tmp_path, kill_at=(DURABLE_WRITE, 0)).calls
    for first in (1, writes // 2, writes - 12, writes - 1):
        ended = start(path, "output_dir=out", cwd=tmp_path, disk_full_at=first)
        assert ended.status in (1, 2) and "disk full" in ended.text, (first, ended.text)
        assert "Traceback" not in ended.text
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        shutil.copytree(tmp_path / "out", tmp_path / "kept")
        assert start(path, "output_dir=kept", cwd=tmp_path).status == 0
        assert_same_numbers(tmp_path / "kept", finished(), ["softcot_oracle"])
        shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = write(tmp_path, small("full_oracle"))
        ended = start(path, f"output_dir={disk}/out", cwd=tmp_path)
        assert ended.status in (1, 2) and "disk full" in ended.text, ended.text
        assert "Traceback" not in ended.text
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        ended = start(path, f"output_dir={disk}/out", cwd=tmp_path)
        assert ended.status == 0, ended.text
        assert_same_numbers(disk / "out", finished(), ["full_oracle"])
    finally:
        subprocess.run(["umount", disk], check=True)


# ------------------------------------------------------------------------------------------- real processes


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition) -> None:
    """However slow the machine is: what does not come at all is ended by pytest's own limit."""
    while not condition():
        time.sleep(0.05)


# Real processes, made-up work: each run says which process does it, and then "first" ends and the others go on for minutes.
MADE_UP = """
import os, pathlib, signal, sys, time, types
from dataclasses import dataclass

one_run = types.ModuleType("cl_softcot.run.one_run")  # in the parent and, since spawn reads this file again, in every worker


@dataclass(frozen=True)
class RunSpec:
    key: str


def run_one(config, spec, folder, shared, provenance, report):
    folder.mkdir(parents=True)
    (folder / "pid").write_text(str(os.getpid()))
    report({"phase": "working"})
    time.sleep(0 if spec.key == "first" else 3600)  # the test ends it


base = types.ModuleType("cl_softcot.run.base")
one_run.run_one, base.measure_base = run_one, lambda *_: None
sys.modules |= {module.__name__: module for module in (base, one_run)}
import cl_softcot.run

cl_softcot.run.base, cl_softcot.run.one_run = base, one_run

if __name__ == "__main__":
    from cl_softcot.run import __main__ as command, experiment

    # As in a terminal; a shell that runs the tests in the background has switched the signal off for its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Made(experiment.Orchestration):
        provenance = {}
        _refuse_other_settings = _start_mlflow = lambda self, *_: None
        _begin = _print = lambda self, *_: None
        _conclude = lambda self: []

    made = Made(None, [RunSpec(key) for key in ("first", "second", "third")], pathlib.Path("out"), 2, restart=False)
    command.run = lambda args: made.go()
    sys.exit(command.main(["made_up.yaml"]))
"""


@pytest.fixture
def at_work(tmp_path):
    """A parent and its two workers in the middle of their work."""
    (tmp_path / "made_up.py").write_text(MADE_UP)
    with open(tmp_path / "log", "ab") as log:
        process = subprocess.Popen([sys.executable, "made_up.py"], cwd=tmp_path, env=environment(), stdout=log, stderr=log)
    pids = [tmp_path / "out" / "runs" / key / "pid" for key in ("second", "third")]
    wait_for(lambda: all(p.exists() and p.read_text() for p in pids) or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "log").read_text()
    workers = [int(p.read_text()) for p in pids]
    yield process, workers, tmp_path / "log"
    process.kill()
    wait_for(lambda: not any(alive(pid) for pid in workers))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@needs_proc
def test_workers_die_with_a_killed_parent(at_work):
    process, workers, _ = at_work
    assert all(alive(pid) for pid in workers)
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in workers))


@needs_proc
def test_a_killed_worker_is_one_clear_message(at_work):
    process, workers, log = at_work
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait() == 1
    assert not any(alive(pid) for pid in workers)
    said = log.read_text()
    assert "error: a worker process died" in said and "Traceback" not in said


@needs_proc
def test_ctrl_c_stops_at_once(at_work):
    """In a terminal the workers get the signal too."""
    process, workers, log = at_work
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert not any(alive(pid) for pid in workers)
    said = log.read_text()
    assert "the same command goes on from here" in said and "Traceback" not in said
