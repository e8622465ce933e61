"""Checkpoints are whole or do not count."""

import errno
import json
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from cl_softcot.errors import UserError
from cl_softcot.learning import checkpoint


def some_tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "a": torch.full((2, 3), value),
        "b/c": torch.arange(4),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_as_it_was(tmp_path):
    state = {"turn": 1, "losses": [0.1, 1 / 3], "none": None, "nested": {"x": [1, 2]}}
    checkpoint.save(tmp_path, "turn_1", some_tensors(), state)
    found = checkpoint.load_latest(tmp_path)
    assert found.name == "turn_1" and found.state == state and found.skipped == ()
    assert found.tensors.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)


def test_tied_and_strided_tensors_are_kept(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    checkpoint.save(tmp_path, "x", {"embedding": weight, "head": weight, "view": weight[1:], "t": weight.T}, {})
    tensors = checkpoint.load_latest(tmp_path).tensors
    assert torch.equal(tensors["head"], weight) and torch.equal(tensors["embedding"], weight)
    assert torch.equal(tensors["view"], weight[1:]) and torch.equal(tensors["t"], weight.T)


def test_the_last_two_are_kept_and_other_files_left_alone(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    for i in range(4):
        checkpoint.save(tmp_path, f"turn_{i}", some_tensors(i), {"i": i})
    assert files(tmp_path) == [
        "000003-turn_2.json",
        "000003-turn_2.safetensors",
        "000004-turn_3.json",
        "000004-turn_3.safetensors",
        "mine.safetensors",
    ]
    assert checkpoint.load_latest(tmp_path).state == {"i": 3}


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.load_latest(tmp_path / "absent") is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def change_the_state(path):
    path.write_text(path.read_text().replace('"i": 2', '"i": 9'))


DAMAGE = {
    "tensors torn": (truncate, ".safetensors"),
    "tensors corrupt": (flip_a_bit, ".safetensors"),
    "tensors missing": (lambda path: path.unlink(), ".safetensors"),
    "json torn": (truncate, ".json"),
    "json empty": (lambda path: path.write_bytes(b""), ".json"),
    "json not an object": (lambda path: path.write_text("[]"), ".json"),
    "state changed": (change_the_state, ".json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_falls_back_and_is_reported(tmp_path, damage):
    for i in (1, 2):
        checkpoint.save(tmp_path, f"turn_{i}", some_tensors(i), {"i": i})
    do, suffix = DAMAGE[damage]
    do(tmp_path / f"000002-turn_2{suffix}")
    found = checkpoint.load_latest(tmp_path)
    assert found.state == {"i": 1} and torch.equal(found.tensors["a"], some_tensors(1)["a"])
    assert len(found.skipped) == 1 and "000002-turn_2.json cannot be used" in found.skipped[0]
    # The damaged one no longer counts: two whole ones stand after the next two saves.
    checkpoint.save(tmp_path, "turn_2", some_tensors(2), {"i": 2})
    assert [json.loads(p.read_text())["state"]["i"] for p in sorted(tmp_path.glob("*.json"))] == [1, 2]
    assert checkpoint.load_latest(tmp_path).skipped == ()


def test_halves_of_two_checkpoints_do_not_make_one(tmp_path):
    for i in (1, 2):
        checkpoint.save(tmp_path, "same", some_tensors(i), {"i": i})
    (tmp_path / "000002-same.safetensors").write_bytes((tmp_path / "000001-same.safetensors").read_bytes())
    assert checkpoint.load_latest(tmp_path).state == {"i": 1}


def test_tensors_without_their_json_do_not_count(tmp_path):
    checkpoint.save(tmp_path, "turn_1", some_tensors(1), {"i": 1})
    checkpoint.save(tmp_path, "turn_2", some_tensors(2), {"i": 2})
    (tmp_path / "000002-turn_2.json").unlink()  # as a kill between the two writes leaves it
    found = checkpoint.load_latest(tmp_path)
    assert found.state == {"i": 1} and found.skipped == ()
    checkpoint.save(tmp_path, "turn_3", some_tensors(3), {"i": 3})
    assert "000002-turn_2.safetensors" not in files(tmp_path)


def test_none_whole_is_an_error_with_the_way_out(tmp_path):
    checkpoint.save(tmp_path, "turn_1", some_tensors(), {})
    flip_a_bit(tmp_path / "000001-turn_1.safetensors")
    with pytest.raises(UserError, match="none of the checkpoints can be used(.|\n)*--restart"):
        checkpoint.load_latest(tmp_path)


def test_another_format_is_not_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    checkpoint.save(tmp_path, "turn_1", some_tensors(), {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 2, this version reads 1"):
        checkpoint.load_latest(tmp_path)
    assert (tmp_path / "000001-turn_1.json").exists()


@pytest.mark.parametrize("nth_write", [1, 2])
def test_full_disk_leaves_earlier_checkpoints_intact(tmp_path, monkeypatch, nth_write):
    for i in (1, 2):
        checkpoint.save(tmp_path, f"turn_{i}", some_tensors(i), {"i": i})
    before = files(tmp_path)
    writes, fsync = [0], os.fsync

    def full(descriptor):
        writes[0] += 1
        if writes[0] == 2 * nth_write - 1:  # each write syncs the file, then its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk full"):
        checkpoint.save(tmp_path, "turn_3", some_tensors(3), {"i": 3})
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert checkpoint.load_latest(tmp_path).state == {"i": 2}


@pytest.mark.parametrize("state", [{"x": float("nan")}, {"x": torch.ones(1)}, {"x": {1, 2}}])
def test_state_that_would_come_back_different_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match="must be JSON data"):
        checkpoint.save(tmp_path, "x", {}, state)
    assert files(tmp_path) == []


def test_a_name_cannot_leave_the_folder(tmp_path):
    with pytest.raises(ValueError, match="name"):
        checkpoint.save(tmp_path, "../x", {}, {})


def test_kill_while_saving_leaves_a_whole_one(tmp_path):
    """Kills a process in the middle of its fourth save, at some of the file system calls that it makes."""
    script = textwrap.dedent(
        """
        import os, signal, sys, torch
        from cl_softcot.learning import checkpoint
        folder, call = sys.argv[1], int(sys.argv[2])
        for i in range(3):
            checkpoint.save(folder, f"turn_{i}", {"a": torch.full((50,), float(i))}, {"i": i})
        calls = [0]
        def dying(real):
            def wrapped(*args, **kwargs):
                if calls[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls[0] += 1
                return real(*args, **kwargs)
            return wrapped
        os.fsync, os.replace, os.unlink = dying(os.fsync), dying(os.replace), dying(os.unlink)
        checkpoint.save(folder, "turn_3", {"a": torch.full((50,), 3.0)}, {"i": 3})
        """
    )
    # The tensors are written and not yet in place; the JSON likewise; the old ones are being removed.
    for call, expected in ((1, 2), (4, 2), (6, 3)):
        folder = tmp_path / str(call)
        done = subprocess.run([sys.executable, "-c", script, str(folder), str(call)], capture_output=True)
        assert done.returncode == -9, done.stderr.decode()
        found = checkpoint.load_latest(folder)
        assert found.state == {"i": expected} and found.skipped == ()
        assert torch.equal(found.tensors["a"], torch.full((50,), float(expected)))


def test_rng_goes_on_where_it_was(tmp_path):
    def draw():
        return (
            torch.rand(3).tolist(),
            torch.randn(3).tolist(),
            np.random.randn(3).tolist(),
            random.gauss(0, 1),
        )

    random.gauss(0, 1), np.random.randn()  # leaves the second half of a pair behind in both
    captured = checkpoint.capture_rng()
    expected = draw()
    checkpoint.save(tmp_path, "rng", captured["tensors"], captured["state"])
    draw()
    found = checkpoint.load_latest(tmp_path)
    checkpoint.restore_rng({"tensors": found.tensors, "state": found.state})
    assert draw() == expected
