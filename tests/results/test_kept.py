"""Kept results: packed and unpacked without a loss, read like run folders, and taken over by a later start."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from report_fakes import write_study
from run_fakes import assert_same_numbers, finished, run_folders, small, start, write

from cl_softcot.errors import UserError
from cl_softcot.law.points import points_from
from cl_softcot.results import kept
from cl_softcot.results.events import read_events
from cl_softcot.results.folder import PACKED, PACKED_SWEEP
from cl_softcot.results.keeping import keep, keep_sweep, main, unpack, write_lines
from cl_softcot.results.outcomes import scores_of_run
from cl_softcot.results.reading import load_results
from cl_softcot.results.reading import run_folders as folders_of
from cl_softcot.track.conclusion import read_outcomes, sentence
from cl_softcot.track.console import table_text

JUDGED = "cl_softcot.answering.evaluate:_prediction"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("made") / "study")


@pytest.fixture
def packed(study, tmp_path):
    return keep(study, tmp_path / "kept")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------------- packed and unpacked


def test_a_study_is_a_few_files_and_the_same_bytes_again(study, packed, tmp_path):
    first = contents(packed)
    assert sorted(map(str, first)) == ["config.yaml", "experiment.json", "runs.jsonl.gz"]
    assert contents(keep(study, tmp_path / "kept")) == first  # over itself
    assert contents(keep(study, tmp_path / "elsewhere")) == first


def test_unpacked_it_is_what_it_was(study, packed, tmp_path):
    again = unpack(packed, tmp_path / "again")
    runs = sorted((study / "runs").iterdir())
    assert sorted(run.name for run in (again / "runs").iterdir()) == [run.name for run in runs]
    for run in runs:
        assert (again / "runs" / run.name / "result.json").read_bytes() == (run / "result.json").read_bytes()
        assert kept.outcomes(again / "runs" / run.name) == kept.outcomes(run) is not None
    assert (again / "config.yaml").read_bytes() == (study / "config.yaml").read_bytes()
    assert (keep(again, tmp_path / "twice") / PACKED).read_bytes() == (packed / PACKED).read_bytes()
    with pytest.raises(UserError, match="not empty"):
        unpack(packed, again)


def test_packed_runs_are_read_like_run_folders(study, packed):
    there, here = load_results(study), load_results(packed)
    names = lambda results: [(result.folder.name, result.as_dict()) for result in results]  # noqa: E731
    assert names(here) == names(there) and len(here) > 10
    assert points_from(packed) == points_from(study)
    assert table_text(here) == table_text(there) and sentence(here) == sentence(there)
    for run in folders_of(packed):
        assert not run.exists() and kept.result_sha256(run) == kept.result_sha256(study / "runs" / run.name)
        assert scores_of_run(kept.record(run)) == scores_of_run(kept.record(study / "runs" / run.name)) != {}
        assert read_outcomes(run, 1) == read_outcomes(study / "runs" / run.name, 1) != {}
        assert load_results(run)[0].method == run.name.split(".")[0]
    assert folders_of(packed.parent) == folders_of(packed)  # a folder of kept studies
    assert kept.answers(folders_of(packed)[0], 99) is None


def test_a_run_folder_on_disk_comes_first(packed):
    name = folders_of(packed)[0].name
    kept_result = kept.result(packed / "runs" / name)
    (packed / "runs" / name).mkdir(parents=True)
    (packed / "runs" / name / "result.json").write_text(json.dumps({**kept_result, "split": "valid"}))
    assert [r.split for r in load_results(packed)].count("valid") == 1


# By name: compressed bytes hold the time, and every process that runs tests has to give them the same names.
DAMAGES = {
    "empty": lambda whole: b"",
    "no gzip": lambda whole: b"no gzip",
    "no json": lambda whole: gzip.compress(b"no json\n"),
    "other version": lambda whole: gzip.compress(b'{"kept": 2}\n'),
    "cut": lambda whole: whole[:-30],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told(packed, damage):
    path = packed / PACKED
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError, match=r"runs\.jsonl\.gz"):
        load_results(packed)


def test_a_sweep_and_its_page_without_pictures(tmp_path):
    folder = tmp_path / "sweep"
    for name, value in (("a/winner.json", {"winners": []}), ("a/trials/0/trial.json", {"number": 0, "values": {"x": 0.1}})):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    (folder / "sweep.yaml").write_text("name: sweep\n")
    (folder / "sweep.json").write_text("{}\n")
    (folder / "report.html").write_text('<p><img alt="" src="data:image/png;base64,AAAA"></p><td>0.1</td>')
    place = keep_sweep(folder, tmp_path / "kept")
    assert sorted(path.name for path in place.iterdir()) == ["sweep.json", "sweep.jsonl.gz", "sweep.yaml"]
    assert kept.sweep_files(place) == {
        "a/trials/0/trial.json": {"number": 0, "values": {"x": 0.1}},
        "a/winner.json": {"winners": []},
    }
    assert kept.read_lines(place / PACKED_SWEEP)[-1] == {"file": "report.html", "text": "<p></p><td>0.1</td>"}
    again = unpack(place, tmp_path / "again")
    assert json.loads((again / "a" / "winner.json").read_text()) == {"winners": []}
    assert (again / "report.html").read_text() == "<p></p><td>0.1</td>"


# ------------------------------------------------------------------------------------------------------------- unfinished


def test_what_has_finished_is_kept_and_what_is_missing_is_named(study, tmp_path, capsys):
    folder = shutil.copytree(study, tmp_path / "study")
    runs = sorted((folder / "runs").iterdir())
    (runs[0] / "result.json").unlink()  # begun
    shutil.rmtree(runs[1])  # not begun
    assert main(["keep", str(folder), "--to", str(tmp_path / "kept")]) == 0
    found = kept.read(tmp_path / "kept" / "study")
    assert found.unfinished == [runs[0].name, runs[1].name] and list(found.runs) == [run.name for run in runs[2:]]
    assert f"not finished: {runs[0].name}\n  not finished: {runs[1].name}\n" in capsys.readouterr().out


def test_keeping_loses_no_kept_run_unasked(study, packed, tmp_path, capsys):
    folder = shutil.copytree(study, tmp_path / "study")
    run = sorted((folder / "runs").iterdir())[0]
    shutil.rmtree(run)
    before = contents(packed)
    command = ["keep", str(folder), "--to", str(packed.parent)]
    assert main(command) == 2 and contents(packed) == before
    told = capsys.readouterr().err
    assert run.name in told and "--kept" in told and "--replace" in told
    assert main([*command, "--replace"]) == 0 and run.name not in kept.read(packed).runs


def test_runs_that_were_asked_other_questions_are_not_packed_together(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "study")
    path = next((folder / "runs").glob("full_cot*")) / "predictions"
    for row in path.iterdir():
        row.write_text(row.read_text().replace("deduce/test/0", "deduce/test/x"))
    with pytest.raises(UserError, match="not asked the same questions"):
        keep(folder, tmp_path / "kept")


# --------------------------------------------------------------------------------------------------- taken over by a run

METHODS = ("base_direct", "full_coconut", "softcot")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Two of three methods, as they are kept when the machine is about to go."""
    place = tmp_path_factory.mktemp("half")
    folder = shutil.copytree(finished(), place / "out")
    for run in (folder / "runs").iterdir():
        if run.name.split(".")[0] not in METHODS[:2]:
            shutil.rmtree(run)
    return keep(folder, place / "kept")


def test_a_later_start_takes_kept_runs_as_finished(half, tmp_path):
    path = write(tmp_path, small(*METHODS))
    ended = start(path, "output_dir=out", "--kept", str(half), cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert f"2 runs are taken over from {half}; 1 are to be done" in ended.text
    out = tmp_path / "out"
    assert_same_numbers(out, finished(), ["softcot"])  # as if nothing had been between
    for method in METHODS[:2]:
        run, before = run_folders(out)[method], run_folders(finished())[method]
        assert (run / "result.json").read_bytes() == (before / "result.json").read_bytes()
        assert not (run / "predictions").exists() and kept.outcomes(run) == kept.outcomes(before)
        metrics = lambda folder: [  # noqa: E731
            (e["step"], e["data"]) for e in read_events(folder) if e["kind"] == "metrics"
        ]
        assert metrics(run) == metrics(before)
        assert [e["data"] for e in read_events(run) if e["kind"] == "status"] == ["FINISHED"]
    whole = keep(out, tmp_path / "kept")  # and again: nothing of the outcomes is lost on the way
    again = kept.read(whole)
    assert not again.unfinished and all(line["outcomes"] for line in again.runs.values())
    assert {name: again.runs[name] for name in kept.read(half).runs} == kept.read(half).runs
    ended = start(path, "output_dir=out", cwd=tmp_path, kill_at=(JUDGED, 1))
    assert ended.status == 0, ended.text  # nothing was answered: all runs are finished


def test_all_runs_from_kept_results_and_then_one_more_method(half, tmp_path):
    """The base's record comes with them; its answers, which a new method needs, are made."""
    assert start(write(tmp_path, small(*METHODS[:2])), "output_dir=out", "--kept", str(half), cwd=tmp_path).status == 0
    assert (tmp_path / "out" / "shared" / "base.json").read_bytes() == (finished() / "shared" / "base.json").read_bytes()
    ended = start(write(tmp_path, small(*METHODS)), "output_dir=out", cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert_same_numbers(tmp_path / "out", finished(), ["softcot"])


def test_a_begun_run_gives_way_to_the_kept_one(half, tmp_path):
    path = write(tmp_path, small("full_coconut"))
    ended = start(path, "output_dir=out", cwd=tmp_path, kill_at=("cl_softcot.learning.loop:TrainingLoop._count_step", 9))
    assert ended.status < 0 and (run_folders(tmp_path / "out")["full_coconut"] / "predictions").exists()
    assert start(path, "output_dir=out", "--kept", str(half), cwd=tmp_path).status == 0
    run = run_folders(tmp_path / "out")["full_coconut"]
    assert not (run / "predictions").exists()
    assert kept.outcomes(run) == kept.outcomes(run_folders(finished())["full_coconut"])


def test_runs_of_other_settings_are_not_taken(half, tmp_path):
    path = write(tmp_path, small("base_direct", "full_coconut"))
    ended = start(path, "output_dir=out", "train.steps=4", "--kept", str(half), cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert f"0 runs are taken over from {half}; 2 of other settings are not; 2 are to be done" in ended.text


def test_kept_runs_on_other_data_are_refused(half, tmp_path):
    """The files of a task may change under the same name: settings cannot tell, the record of the base does."""
    place = shutil.copytree(half, tmp_path / "kept")
    head, *lines = kept.read_lines(place / PACKED)
    head["base"] = {**head["base"], "task first": "0" * 64}
    write_lines(place / PACKED, [head, *lines])
    ended = start(write(tmp_path, small(*METHODS)), "output_dir=out", "--kept", str(place), cwd=tmp_path)
    assert ended.status == 2 and "other data" in ended.text and "task first" in ended.text


def test_a_folder_without_kept_runs_is_told(tmp_path):
    ended = start(write(tmp_path, small("softcot")), "output_dir=out", "--kept", str(tmp_path), cwd=tmp_path)
    assert ended.status == 2 and "runs.jsonl.gz" in ended.text


def test_of_unfinished_kept_results_beside_the_experiment_is_told(half, tmp_path):
    path = write(tmp_path, small("base_direct"))
    place = shutil.copytree(half, tmp_path / "results" / path.stem)
    ended = start(path, "output_dir=out", cwd=tmp_path)
    assert ended.status == 0 and ("--kept" in ended.text) == bool(kept.read(place).unfinished)
