"""Files survive what happens to files: kills, torn lines, full disks, two writers."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cl_softcot import files
from cl_softcot.errors import UserError, did_you_mean
from cl_softcot.files import (
    FolderLock,
    append_jsonl,
    append_jsonl_many,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    dump_json,
    read_json,
    read_jsonl,
    sha256_of,
    sweep_unfinished,
)

# --- errors ----------------------------------------------------------------------------------------


def test_user_error_says_where_what_and_the_way_out():
    assert str(UserError("it is empty", where="a.yaml:1:2", fix="Fill it.")) == "a.yaml:1:2: it is empty\n  Fill it."
    assert str(UserError("it is empty")) == "it is empty"


def test_user_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(UserError("what", where="here", fix="so")))
    assert (error.message, error.where, error.fix, str(error)) == ("what", "here", "so", "here: what\n  so")


def test_did_you_mean():
    assert did_you_mean("softcott", ["coconut", "softcot"]) == "; did you mean 'softcot'? Known: coconut, softcot"
    assert did_you_mean("CoT", ["cot", "pause"]) == "; did you mean 'cot'? Known: cot, pause"
    assert did_you_mean("xyz", ["cot"]) == "; known: cot"
    assert did_you_mean("xyz", []) == ""


# --- JSON ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: float
    tags: tuple[str, ...]


def test_json_has_no_nan_and_takes_what_results_consist_of():
    value = {
        "nan": math.nan,
        "inf": -math.inf,
        "numpy": np.float64("nan"),
        "array": np.array([[1.0, np.inf]]),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "point": Point(0.5, ("a", "b")),
        "path": Path("a/b"),
        "set": {"b", "a"},
        7: "key",
    }
    assert json.loads(dump_json(value)) == {
        "nan": None,
        "inf": None,
        "numpy": None,
        "array": [[1.0, None]],
        "count": 3,
        "flag": True,
        "point": {"x": 0.5, "tags": ["a", "b"]},
        "path": "a/b",
        "set": ["a", "b"],
        "7": "key",
    }


def test_json_takes_tensors():
    torch = pytest.importorskip("torch")
    assert json.loads(dump_json({"loss": torch.tensor(0.5), "row": torch.tensor([1, 2])})) == {"loss": 0.5, "row": [1, 2]}


@pytest.mark.parametrize("value", [object(), {("a", "b"): 1}, {True: 1}, b"bytes"])
def test_json_refuses_what_would_not_come_back(value):
    with pytest.raises(TypeError):
        dump_json(value)


def test_floats_come_back_to_the_bit(tmp_path):
    numbers = [0.1, 1 / 3, 1e-300, 123456789.123456789]
    atomic_write_json(tmp_path / "a.json", numbers)
    assert read_json(tmp_path / "a.json") == numbers


def test_read_json_tells_line_and_column(tmp_path):
    (tmp_path / "bad.json").write_text('{\n "a": oops\n}')
    with pytest.raises(UserError, match=r"bad\.json:2:7: not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"none\.json: there is no such file"):
        read_json(tmp_path / "none.json")


# --- atomic writes ---------------------------------------------------------------------------------


def test_atomic_write_makes_folders_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    atomic_write_json(path, {"x": math.nan, "ü": 1})
    atomic_write_text(path, "second\n")
    assert path.read_text() == "second\n"
    assert os.listdir(path.parent) == ["result.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, "others may read results"


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch, failing):
    path = tmp_path / "result.json"
    atomic_write_bytes(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(files, "open", lambda *_: full(), raising=False)
    else:
        monkeypatch.setattr(files.os, failing, full)
    with pytest.raises(UserError, match="disk full") as caught:
        atomic_write_bytes(path, b"new")
    assert caught.value.where == str(path) and "output_dir" in caught.value.fix
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_really_full_device_is_told():
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="disk full"), files.explained("/dev/full"):
        with open("/dev/full", "wb") as device:
            device.write(b"x")
            device.flush()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        atomic_write_text(tmp_path / "file" / "below.json", "x")


def test_other_errors_pass(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="Input/output"):
        atomic_write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == []


# --- JSON lines ------------------------------------------------------------------------------------


def test_lines_are_added_and_read(tmp_path):
    path = tmp_path / "deep" / "events.jsonl"
    append_jsonl(path, {"step": 1, "loss": math.nan})
    append_jsonl_many(path, [{"step": 2, "text": "a\u2028b\nc"}, {"step": 3}])
    append_jsonl_many(path, [])
    assert read_jsonl(path) == [{"step": 1, "loss": None}, {"step": 2, "text": "a\u2028b\nc"}, {"step": 3}]
    assert path.read_text().count("\n") == 3


def test_a_missing_file_of_lines(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl", missing_ok=True) == []
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("torn", ['{"step": 2, "te', '{"step": 2, "text": "\u00fc'.encode()[:-1], "12", "{", '{"a":1'])
def test_a_torn_last_line_is_left_out_and_then_cleaned_up(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    append_jsonl(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    if torn != "12":  # half a number reads as a number
        assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_complete_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    append_jsonl(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_torn_line_longer_than_a_block_is_cleaned_up(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"text": "' + "x" * 200_000)
    append_jsonl(path, {"step": 2})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_only_a_torn_line_is_cleaned_up(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"te')
    append_jsonl(path, {"step": 1})
    assert path.read_text() == '{"step": 1}\n'


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"events\.jsonl:2:2"):
        read_jsonl(path)


def test_a_disk_that_fills_up_while_appending_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    append_jsonl(path, {"step": 1})
    write = os.write
    calls = []

    def half_then_full(descriptor, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(files.os, "write", half_then_full)
    with pytest.raises(UserError, match="disk full"):
        append_jsonl(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n'


def test_many_writers_of_one_file_do_not_mix_lines(tmp_path):
    script = (
        "import sys; from cl_softcot.files import append_jsonl\n"
        "for i in range(20): append_jsonl(sys.argv[1], {'who': sys.argv[2], 'i': i, 'pad': 'x' * 3000})"
    )
    path = tmp_path / "events.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", script, path, str(w)]) for w in range(3)]
    assert [w.wait() for w in writers] == [0, 0, 0]
    lines = read_jsonl(path)
    assert sorted((line["who"], line["i"]) for line in lines) == sorted((str(w), i) for w in range(3) for i in range(20))


# --- checksums -------------------------------------------------------------------------------------


def test_sha256_of_bytes_and_files(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(b"abc") == sha256_of(tmp_path / "abc") == sha256_of(str(tmp_path / "abc")) == known
    with pytest.raises(UserError, match="no such file"):
        sha256_of(tmp_path / "none")


# --- the lock --------------------------------------------------------------------------------------

HOLD = """
import signal, sys
from cl_softcot.files import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    signal.pause()
"""


def hold(folder) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_two_runs_cannot_write_one_folder_and_a_killed_one_lets_go(tmp_path):
    other = hold(tmp_path / "runs")
    try:
        with pytest.raises(UserError, match=rf"another run is writing this folder \(pid {other.pid} on ") as caught:
            with FolderLock(tmp_path / "runs"):
                pass
        assert caught.value.where == str(tmp_path / "runs") and "output_dir" in caught.value.fix
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with FolderLock(tmp_path / "runs"):
        assert read_json(tmp_path / "runs" / ".lock")["pid"] == os.getpid()


def test_a_lock_is_given_back_and_can_be_taken_again(tmp_path):
    lock = FolderLock(tmp_path)
    for _ in range(2):
        with lock:
            with pytest.raises(UserError, match=rf"pid {os.getpid()} "), FolderLock(tmp_path):
                pass
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with lock:
        pass
    assert (tmp_path / ".lock").read_text() == ""


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with FolderLock(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_importing_the_package_is_light():
    script = (
        "import sys, cl_softcot, cl_softcot.errors, cl_softcot.files, cl_softcot.config\n"
        "print(sorted({'torch', 'transformers', 'avalanche', 'peft', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- what killed writers left ----------------------------------------------------------------------------

WRITER = """
import sys, time
from cl_softcot.files import atomic_write
def write(beside):
    beside.write_text("half")
    print(beside, flush=True)
    time.sleep(600)
atomic_write(sys.argv[1], write, own_folder=len(sys.argv) > 2)
"""


def writer(path, *own_folder):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), *own_folder], stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("own_folder", [[], ["yes"]])
@pytest.mark.parametrize("alone", [True, False])
def test_what_a_killed_writer_left_is_swept_and_what_a_live_one_writes_is_not(own_folder, alone, tmp_path):
    process, beside = writer(tmp_path / "runs" / "state.safetensors", *own_folder)
    try:
        assert beside.exists() and sweep_unfinished(tmp_path, alone=alone) == [] and beside.exists()
    finally:
        process.kill()
        process.wait()
    assert len(sweep_unfinished(tmp_path, alone=alone)) == 1
    assert os.listdir(tmp_path / "runs") == []


def test_of_others_age_decides_and_nothing_else_is_touched(tmp_path):
    old, new = ".a.json.0123abcd-77-{}.0123abcd.tmp".format, ".a.json.{}.0123abcd.tmp".format
    mine = [".tmpAb12Cd", "a.tmp", ".a.tmp", ".a.json.tmp", "a.json.12.0123abcd.tmp", ".a.json.x.0123abcd.tmp"]
    for name in (old(1), old(2), new(1), new(2), *mine):
        (tmp_path / name).write_text("")
    for name in (old(1), new(1)):
        os.utime(tmp_path / name, (0, 0))
    assert {path.name for path in sweep_unfinished(tmp_path)} == {old(1), new(1)}
    with open(tmp_path / ".tmpAb12Ce", "w"):  # safetensors' own, of a writer that lives
        assert {path.name for path in sweep_unfinished(tmp_path, alone=True)} == {new(2), ".tmpAb12Cd"}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {old(2), *mine[1:], ".tmpAb12Ce"}


def test_a_process_number_that_was_given_again_is_not_the_writer(tmp_path):
    process, beside = writer(tmp_path / "a")
    process.kill()
    process.wait()
    reused = tmp_path / beside.name.replace(f"-{process.pid}.", f"-{os.getpid()}.")
    beside.rename(reused)
    assert sweep_unfinished(tmp_path) == [reused]


def test_a_long_name_and_links(tmp_path):
    atomic_write_text(tmp_path / ("x" * 240), "whole")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".a.1.0123abcd.tmp").write_text("")
    os.utime(elsewhere / ".a.1.0123abcd.tmp", (0, 0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(elsewhere)
    assert sweep_unfinished(tmp_path / "out", alone=True) == [] and len(os.listdir(elsewhere)) == 1
