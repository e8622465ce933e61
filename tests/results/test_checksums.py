"""Files that were changed after a run wrote them are refused; a writer killed at any moment raises no false alarm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from run_fakes import finished, run_folders

from cl_softcot.errors import UserError
from cl_softcot.results import checksums, kept
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.reading import load_results


class Killed(BaseException):
    pass


def written(folder: Path, text: str = "one") -> Path:
    path = folder / "rows" / "row_0.json"
    Checksums(folder).write_text(path, text)
    return path


@pytest.mark.parametrize("before", [None, "one"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_writer_killed_before_or_behind_the_checksum_raises_no_alarm(before, call, tmp_path, monkeypatch):
    path = written(tmp_path, before) if before else tmp_path / "rows" / "row_0.json"
    real, calls = checksums.atomic_write_text, []

    def dying(where, text):
        calls.append(where)
        if len(calls) == call:
            raise Killed
        real(where, text)

    monkeypatch.setattr(checksums, "atomic_write_text", dying)
    with pytest.raises(Killed):
        written(tmp_path, "two")
    monkeypatch.undo()
    assert [p.name for p in calls] == ["SHA256SUMS", "row_0.json"][:call]
    assert path.exists() == bool(before) and not Checksums(tmp_path).changed(path)
    Checksums(tmp_path).check(path)
    written(tmp_path, "two")
    assert path.read_text() == "two" and Checksums(tmp_path).all_changed() == []
    path.write_text("one")  # what stood there before counts no longer
    assert Checksums(tmp_path).all_changed() == [path]


@pytest.mark.parametrize("edit", ["tow", "", "two\n", "two ", "TWO", "\0wo"])
def test_any_change_is_found_and_named(edit, tmp_path):
    path = written(tmp_path, "two")
    path.write_text(edit)
    with pytest.raises(UserError, match="row_0.json.*changed after the run wrote it") as told:
        Checksums(tmp_path).check(path)
    assert "measured again" in str(told.value)


def test_what_nothing_is_known_of_is_taken_as_it_is(tmp_path):
    path = written(tmp_path)
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert Checksums(tmp_path).read_json(other) == {}
    sums = Checksums(tmp_path).path
    sums.write_bytes(b"\xff torn\n" + sums.read_bytes()[:-40])
    path.write_text("edited")
    assert not Checksums(tmp_path).knows(path) and Checksums(tmp_path).all_changed() == []
    sums.unlink()
    assert Checksums(tmp_path).all_changed() == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_file_is_what_sha256sum_reads(tmp_path):
    run = run_folders(finished())["lora_replay"]
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=run, capture_output=True, text=True)
    assert done.returncode == 0 and "result.json: OK" in done.stdout and "predictions/row_1.jsonl: OK" in done.stdout


@pytest.fixture
def study(tmp_path):
    shutil.copytree(finished(), tmp_path / "out", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "out"


def test_an_edited_result_or_prediction_is_refused_by_readers(study, capsys):
    from cl_softcot.track.__main__ import main as track

    run = run_folders(study)["lora_replay"]
    assert len(load_results(study)) > 1
    result = json.loads((run / "result.json").read_text())
    result["summary"]["acc"] = 1.0
    before = (run / "result.json").read_bytes()
    (run / "result.json").write_text(json.dumps(result))
    for read in (load_results, kept.record):
        with pytest.raises(UserError, match="lora_replay.*result.json.*changed"):
            read(study if read is load_results else run)
    store = f"sqlite:///{study.parent}/no.db"
    assert track([str(run), "--uri", store]) == 1 and "result.json" in capsys.readouterr().err
    (run / "result.json").write_bytes(before)
    answers = run / "predictions" / "row_2.jsonl"
    answers.write_text(answers.read_text().replace('"wrong"', '"right"', 1))
    for read in (lambda: kept.answers(run, 2), lambda: kept.outcomes(run)):
        with pytest.raises(UserError, match="row_2.jsonl.*changed"):
            read()
    assert track([str(run), "--uri", store]) == 1 and "row_2.jsonl" in capsys.readouterr().err
    assert kept.answers(run, 1) and not os.path.exists(f"{study.parent}/no.db")
    (run / "SHA256SUMS").unlink()  # a folder of an earlier version
    assert kept.answers(run, 2)
