"""Metrics of an experiment's own: a function anywhere on the path, from the experiment to every place where numbers stand."""

from __future__ import annotations

import sys

import pytest
from report_fakes import write_study
from run_fakes import result, small, start, write

from cl_softcot.config.fingerprint import fingerprint, run_fingerprint
from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.metrics.own import find_metrics
from cl_softcot.metrics.routing import routing_accuracy
from cl_softcot.report.__main__ import main as report
from cl_softcot.results import load_results
from cl_softcot.results.events import final_metrics, read_events
from cl_softcot.results.headline import method_numbers
from cl_softcot.results.own_metrics import with_metrics
from cl_softcot.track.console import table_text

SOURCE = """
from cl_softcot.metrics import Meaning, metric


@metric("min_j R[T,j]", "ours", "fraction", "higher is better")
def worst_task(matrix):
    return float(matrix[-1].min())


def steps_a_task(record):
    return record.cost.optimiser_steps / len(record.tasks) if record.trained else None


steps_a_task.meaning = Meaning("optimiser steps / T", "ours", "count", "lower is better")


@metric("another", "ours", "fraction", "higher is better", name="acc")
def taken(matrix):
    return 0.0


@metric("0 / 0", "ours", "fraction", "higher is better")
def broken(matrix):
    return 0 / 0


@metric("text", "ours", "fraction", "higher is better")
def wordy(matrix):
    return "much"


@metric("nan", "ours", "fraction", "higher is better")
def undefined(matrix):
    return float("nan")


def meaningless(matrix):
    return 0.0


constant = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, in the folder where commands run."""
    (tmp_path / "my_numbers.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_numbers", None)


BOTH = ["my_numbers:worst_task", "my_numbers:steps_a_task"]


def test_in_an_experiment_it_stands_everywhere(mine):
    path = write(mine, small("lora_nearest", "base_direct", evaluate={"metrics": BOTH}))
    ended = start(path, "output_dir=out", cwd=mine)
    assert ended.status == 0, ended.text
    data = result(mine / "out", "lora_nearest")
    worst = min(data["accuracy"]["matrix"][-1])
    assert data["summary"]["worst_task"] == worst and data["summary"]["steps_a_task"] == 6.0
    assert data["metrics"]["worst_task"] == {
        "formula": "min_j R[T,j]", "source": "ours", "unit": "fraction", "direction": "higher is better",
        "function": "my_numbers:worst_task",
    }  # fmt: skip
    assert result(mine / "out", "base_direct")["summary"]["steps_a_task"] is None
    results = load_results(mine / "out")
    table = (mine / "out" / "table.txt").read_text()
    assert "worst task" in table and "min_j R[T,j] (fraction, higher is better; ours)" in table.replace("\n  ", " ")
    assert "routed" in table
    frame = results.to_dataframe()
    assert frame[(frame.measure == "summary/worst_task") & (frame.method == "lora_nearest")].value.tolist() == [worst]
    logged = {key: v for e in read_events(results[1].folder) if e["kind"] == "metrics" for key, v in e["data"].items()}
    assert logged["final/worst_task"] == worst and logged["final/steps_a_task"] == 6.0
    assert report([str(mine / "out"), "--no-mlflow"]) == 0
    page = (mine / "out" / "report" / "report.md").read_text()
    assert "worst_task ↑" in page and "steps_a_task ↓" in page and "routed right ↑" in page


@pytest.mark.slow
def test_finished_runs_get_it_too(mine, capsys):
    study = write_study(mine / "study")
    assert report([str(study), "--no-mlflow", "--output", "plain"]) == 0
    assert "worst_task" not in (mine / "plain" / "report.md").read_text()
    assert report([str(study), "--no-mlflow", "--metric", BOTH[0]]) == 0
    page = (study / "report" / "report.md").read_text()
    assert "worst_task ↑" in page and "min_j R[T,j]" in page
    [record, *_] = load_results(study)
    more = with_metrics(record, find_metrics(BOTH))
    assert more.summary["worst_task"] == min(record.accuracy.matrix[-1]) and "worst_task" not in record.summary
    assert with_metrics(more, find_metrics(BOTH)) is more
    assert final_metrics(more)["final/worst_task"] == more.summary["worst_task"]
    assert method_numbers([more])["summary/worst_task"].mean == more.summary["worst_task"]
    assert "worst task" in table_text([more]) and "worst task" not in table_text([record])
    assert report([str(study), "--no-mlflow", "--metric", "my_numbers:nothing"]) == 2
    assert "has no function 'nothing'" in capsys.readouterr().err


def test_it_changes_no_fingerprint(mine):
    without, with_ = (
        load_experiment(write(mine, small("softcot", **more), f"{name}.yaml")).config
        for name, more in (("same", {}), ("other", {"evaluate": {"metrics": BOTH}}))
    )
    with_ = with_.model_copy(update={"name": without.name, "output_dir": without.output_dir})
    assert fingerprint(without) == fingerprint(with_)
    assert run_fingerprint(without, "softcot", "given", 0) == run_fingerprint(with_, "softcot", "given", 0)


def test_undefined_numbers_are_none(mine):
    [record, *_] = load_results(write_study(mine / "study"))
    assert with_metrics(record, find_metrics(["my_numbers:undefined"])).summary["undefined"] is None


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("worst_task", "does not name a metric"),
        ("no_module:worst_task", "no module 'no_module'"),
        ("my_numbers:worst_tusk", "has no function 'worst_tusk'; did you mean 'worst_task'"),
        ("my_numbers:constant", "cannot be called"),
        ("my_numbers:meaningless", "does not say what it means"),
        ("my_numbers:taken", "called 'acc', which already has a meaning"),
    ],
)
def test_mistakes_are_told_before_anything_runs(mine, path, told):
    with pytest.raises(UserError, match=told):
        find_metrics([path])
    ended = start(write(mine, small("softcot", evaluate={"metrics": [path]})), "--dry-run", cwd=mine)
    assert ended.status == 2 and "evaluate.metrics" in ended.text and "Traceback" not in ended.text


@pytest.mark.parametrize(("name", "told"), [("broken", "fails on .*ZeroDivisionError"), ("wordy", "gave str")])
def test_a_function_that_gives_no_number_is_told(mine, name, told):
    [record, *_] = load_results(write_study(mine / "study"))
    with pytest.raises(UserError, match=told):
        with_metrics(record, find_metrics([f"my_numbers:{name}"]))


def test_routing_accuracy_counts_questions_of_learned_and_of_other_tasks():
    routing = {"a": {"a": 0.75, "base": 0.25}, "b": {"base": 0.5, "a": 0.5}, "retention/c": {"a": 1.0}}
    assert routing_accuracy(routing, ["a", "b"], [8, 4], learned=1) == (6 + 2) / 12
    assert routing_accuracy(routing, ["a", "b"], [8, 4], learned=2) == 6 / 12
    assert routing_accuracy(None, ["a", "b"], [8, 4], learned=0) is None
