"""``run_experiment``: what the command does, for programs."""

from __future__ import annotations

import json

import pytest
from run_fakes import assert_same_numbers, finished, local_task, run_folders, small, start, write

from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import RunsFailed, StopRun, UserError
from cl_softcot.files import FolderLock, read_jsonl
from cl_softcot.results.events import read_events
from cl_softcot.run.api import run_experiment


def config_of(folder, *methods, **changes):
    return load_experiment(write(folder, small(*methods, **changes))).config


def status_of(folder) -> str:
    return [e["data"] for e in read_events(folder) if e["kind"] == "status"][-1]


def test_it_gives_the_numbers_of_the_command_and_shows_nothing(tmp_path, capfd):
    rows = []
    config = config_of(tmp_path, "softcot", "lora_nearest")
    found = run_experiment(
        config, folder=tmp_path / "out", on_row=lambda spec, i, _: rows.append((spec.key, i)), tags={"sweep": "s", "trial": 7}
    )
    assert [r.method for r in found] == ["softcot", "lora_nearest"]
    assert rows == [(f"{m}.given.seed0", i) for m in ("softcot", "lora_nearest") for i in range(3)]
    assert_same_numbers(tmp_path / "out", finished(), ["softcot", "lora_nearest"])
    assert capfd.readouterr().out == ""
    tags = [e["data"] for e in read_events(run_folders(tmp_path / "out")["softcot"]) if e["kind"] == "tags"][0]
    assert tags["sweep"] == "s" and tags["trial"] == "7" and tags["method"] == "softcot"


def test_long_streams_can_be_measured_in_part(tmp_path):
    """``between`` and ``every`` leave out what they say, and change nothing of what is still measured."""
    stream = {"tasks": [local_task("first"), local_task("second"), local_task("third", "first"), local_task("fourth", "second")]}
    [whole] = run_experiment(config_of(tmp_path, "softcot", **stream), folder=tmp_path / "whole")
    config = config_of(tmp_path, "softcot", **stream, evaluate={"between": 3, "every": 3})
    [part] = run_experiment(config, folder=tmp_path / "part")
    answered = []
    for i in range(5):
        rows = read_jsonl(run_folders(tmp_path / "part")["softcot"] / "predictions" / f"row_{i}.jsonl")
        answered.append([sum(p["task"] == task for p in rows) for task in (*part.tasks, "kept")])
    assert answered == [[8, 8, 8, 8, 6], [8, 8, 3, 3, 0], [3, 8, 8, 3, 0], [3, 3, 8, 8, 6], [8, 8, 8, 8, 6]]
    for i, row in enumerate(whole.accuracy.matrix):
        for j, value in enumerate(row):
            assert answered[i][j] < 8 or part.accuracy.matrix[i][j] == value
    for i in (0, 3, 4):
        assert part.retention.as_used[i] == whole.retention.as_used[i]
        assert part.drift.as_used[i] == whole.drift.as_used[i] != {}
    assert [part.retention.weights_alone[i] for i in (1, 2)] == [None, None]
    assert [part.drift.weights_alone[i] for i in (1, 2)] == [{}, {}]
    for name in ("acc", "bwt/gem", "fwt/gem", "learning_accuracy"):
        assert part.summary[name] == whole.summary[name]


def test_partial_results_grow_by_a_row(tmp_path):
    partials = []
    config = config_of(tmp_path, "softcot")
    [result] = run_experiment(config, folder=tmp_path / "out", on_row=lambda _, i, partial: partials.append(partial))
    for i, partial in enumerate(partials):
        assert partial.accuracy.matrix == result.accuracy.matrix[: i + 1]
        assert partial.drift.as_used == result.drift.as_used[: i + 1]
        assert partial.retention.as_used == result.retention.as_used[: i + 1]


def test_again_nothing_is_done_and_the_results_are_there(tmp_path, monkeypatch):
    config = config_of(tmp_path, "softcot")
    first = run_experiment(config, folder=tmp_path / "out")
    monkeypatch.setattr("cl_softcot.run.one_run.run_one", None)
    assert run_experiment(config, folder=tmp_path / "out", on_row=lambda *_: pytest.fail("a row")) == first


def test_a_stopped_run_keeps_its_state_and_goes_on(tmp_path):
    config, out = config_of(tmp_path, "softcot", "lora_replay"), tmp_path / "out"

    def stop(spec, i, _):
        if spec.method == "softcot" and i == 1:
            raise StopRun("pruned")

    found = run_experiment(config, folder=out, on_row=stop)
    assert [r.method for r in found] == ["lora_replay"]
    folder = run_folders(out)["softcot"]
    assert status_of(folder) == "KILLED" and (folder / "rows" / "row_1.json").exists()
    assert not (folder / "result.json").exists() and not (folder / "error.txt").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["failed"] == {} and summary["stopped"] == {"softcot.given.seed0": "pruned"}

    seen = []
    found = run_experiment(config, folder=out, on_row=lambda spec, i, _: seen.append((spec.method, i)))
    assert seen == [("softcot", 0), ("softcot", 1), ("softcot", 2)]  # the kept rows too: a pruner needs them
    assert len(found) == 2 and status_of(folder) == "FINISHED"
    assert_same_numbers(out, finished(), ["softcot", "lora_replay"])


def test_a_failed_run_is_raised_after_the_others_and_its_story_is_kept(tmp_path, monkeypatch):
    def boom(self, turn):
        raise ZeroDivisionError("in after")

    monkeypatch.setattr("strategies.lora.Lora.after", boom)
    config, out = config_of(tmp_path, "lora_replay", "softcot"), tmp_path / "out"
    with pytest.raises(RunsFailed, match="lora_replay.given.seed0 failed: ZeroDivisionError: in after") as caught:
        run_experiment(config, folder=out)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert list(caught.value.failed) == ["lora_replay.given.seed0"]
    folders = run_folders(out)
    assert "boom" in (folders["lora_replay"] / "error.txt").read_text() and status_of(folders["lora_replay"]) == "FAILED"
    assert (folders["softcot"] / "result.json").exists()
    monkeypatch.undo()
    run_experiment(config, folder=out)
    assert_same_numbers(out, finished(), ["lora_replay", "softcot"])


def test_it_goes_on_with_what_the_command_began(tmp_path):
    path, out = write(tmp_path, small("softcot")), tmp_path / "out"
    kill = ("cl_softcot.learning.loop:TrainingLoop._count_step", 8)
    assert start(path, "output_dir=out", cwd=tmp_path, kill_at=kill).status < 0
    run_experiment(load_experiment(path).config, folder=out)
    assert_same_numbers(out, finished(), ["softcot"])
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 0 and "was finished before" in ended.text


def test_mistakes_are_raised(tmp_path):
    config, out = config_of(tmp_path, "softcot"), tmp_path / "out"
    with FolderLock(out), pytest.raises(UserError, match="another run is writing"):
        run_experiment(config, folder=out)
    with pytest.raises(ValueError, match="jobs"):
        run_experiment(config, folder=out, jobs=2, on_row=lambda *_: None)
    run_experiment(config, folder=out)
    other = config_of(tmp_path, "softcot", train={"steps": 4})
    with pytest.raises(UserError, match="other settings"):
        run_experiment(other, folder=out)
    [result] = run_experiment(other, folder=out, restart=True)
    assert result.cost.optimiser_steps == 8
