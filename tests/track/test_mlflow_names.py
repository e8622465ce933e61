"""In MLflow runs of other settings have other names, constants are no charts, and no experiment's name is a path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_track import empty_store, store  # noqa: F401

from cl_softcot.results import events
from cl_softcot.results.events import EventLog, run_tags
from cl_softcot.track import mlflow
from cl_softcot.track import store as track_store


def _tags(folder=None, identity="one"):
    return run_tags(
        experiment="study",
        method="cot",
        order="given",
        seed=0,
        tasks=["a", "b"],
        identity=identity,
        color="#000000",
        folder=folder,
    )


def _run(folder: Path, identity: str, steps: int) -> Path:
    log = EventLog(folder)
    log.params({"method": "cot", "train": {"steps": steps}, "versions.torch": str(steps)})
    log.tags(_tags(identity=identity))
    log.metrics(0, {"accuracy/a": 0.5})
    return folder


def test_the_name_says_the_folder_where_that_is_another():
    assert _tags()["mlflow.runName"] == _tags(Path("runs/study"))["mlflow.runName"] == "cot · seed 0"
    assert _tags(Path("runs/slower"))["mlflow.runName"] == "cot · seed 0 · slower"
    assert _tags(Path("sweeps/rates/trials/3"))["mlflow.runName"] == "cot · seed 0 · trials 3"


def test_runs_of_other_settings_have_other_names(tmp_path, store):  # noqa: F811
    runs = [_run(tmp_path / str(i), f"settings {i}", steps) for i, steps in enumerate((8, 4, 4))]
    ids = [mlflow.sync(run, store).run_id for run in runs]
    client = track_store.client_of(store)
    names = lambda: [client.get_run(i).info.run_name for i in ids]  # noqa: E731
    told = ["cot · seed 0", "cot · seed 0 · steps=4", "cot · seed 0 · steps=4 (2)"]
    assert names() == told
    for run in runs:  # what is sent again finds its run, and leaves its name alone
        (run / "mlflow.json").unlink()
        EventLog(run).tags({"mlflow.note.content": "more"})
        assert mlflow.sync(run, store).run_id in ids
    assert names() == told


def test_the_table_of_runs_shows_the_headline_numbers(tmp_path, store):  # noqa: F811
    report = mlflow.sync(_run(tmp_path / "a", "x", 8), store)
    client = track_store.client_of(store)
    tag = lambda name: client.get_experiment(report.experiment_id).tags[f"mlflow.sharedViewState.{name}"]  # noqa: E731
    wanted = [f"metrics.`{name}`" for name in events.HEADLINE]
    assert json.loads(tag("runs"))["selectedColumns"] == json.loads(tag("methods"))["selectedColumns"] == wanted
    assert json.loads(json.loads(tag("headline"))["state"])["selectedColumns"] == wanted
    before = json.dumps(mlflow._IN_ORDER)  # as an earlier version left it, and as a person did
    client.set_experiment_tag(report.experiment_id, "mlflow.sharedViewState.runs", before)
    client.set_experiment_tag(report.experiment_id, "mlflow.sharedViewState.methods", '{"mine": 1}')
    mlflow.sync(_run(tmp_path / "b", "y", 4), store)
    assert json.loads(tag("runs"))["selectedColumns"] == wanted and tag("methods") == '{"mine": 1}'


@pytest.mark.parametrize(
    "name", ["..", ".", " ", "../..", "a/../../b", "/etc", "a\0b", ".hidden", "é" * 300, "x" * 400, "a\nb", "..%2f", "a\\..\\b"]
)
def test_no_name_of_an_experiment_is_a_path(name):
    place = mlflow._folder_of(name)
    assert "/" not in place and "\0" not in place and place.strip(" .") == place and 0 < len(place) < 200


def test_names_of_earlier_stores_stay():
    for name in ("smoke", "sequence a", "sweep rates", "a.b"):
        assert "%20" not in mlflow._folder_of(name) and mlflow._folder_of(name) == name
