"""The event log, MLflow, the terminal and the figures, on made-up results of a realistic shape."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, atomic_write_text, dump_json
from cl_softcot.results import events as event_log
from cl_softcot.results import kept
from cl_softcot.results.events import EventLog, read_events
from cl_softcot.results.record import SCHEMA, PartialRecord, RunRecord
from cl_softcot.track import sender as track_sender
from cl_softcot.track import store as track_store

TASKS = ["dates", "graph", "facts", "lists"]
FAMILIES = ["dates", "graph", "facts", "lists", "deduction", "arithmetic", "tracking"]
BASE = {"dates": 0.96, "graph": 0.55, "facts": 0.30, "lists": 0.62}
BASE_FAMILIES = dict(zip(FAMILIES, (0.97, 0.95, 0.96, 0.94, 0.96, 0.95, 0.92), strict=True))

# name: (strategy, learned, forgetting of an earlier task a turn, loss of retention a turn, drift, parameters)
METHODS = {
    "zero_shot_cot": ("zero_shot", 0.0, 0.0, 0.0, 0.0, 0),
    "full_coconut": ("full_finetune", 0.88, 0.14, 0.16, 1.4, 893_312),
    "full_cot": ("full_finetune", 0.93, 0.10, 0.11, 0.8, 893_312),
    "lora_coconut": ("lora", 0.84, 0.06, 0.07, 0.35, 98_304),
    "softcot": ("frozen_backbone", 0.66, 0.01, 0.004, 0.02, 12_416),
    "softcot_per_task_oracle": ("frozen_backbone", 0.67, 0.0, 0.0, 0.0, 49_664),
}
MORE = [
    "zero_shot_direct", "full_direct", "full_pause", "lora_cot", "softcot_free_vectors", "softcot_random_assistant",
    "lora_per_task_oracle", "full_coconut_no_curriculum", "full_coconut_c0", "full_coconut_replay",
]  # fmt: skip


# --- results of a realistic shape -----------------------------------------------------------------------


def make_run(folder: Path, method: str, seed: int = 0, order: str = "given", *, n: int = 300, views: bool = True):
    """Writes one finished run (result, predictions, event log) into `folder` and returns its result."""
    strategy, learned, forgets, loses, drifts, parameters = METHODS.get(method) or _settings_of(method)
    tasks = TASKS if order == "given" else TASKS[::-1]
    rng = np.random.default_rng([seed, sum(map(ord, method)), sum(map(ord, order))])
    # Whether an example is right before: the same test examples and the same base for every method and seed.
    base_rng = np.random.default_rng(7)
    base = {("task", t): base_rng.random(n) < BASE[t] for t in TASKS}
    base |= {("retention", f): base_rng.random(n // 3) < BASE_FAMILIES[f] for f in FAMILIES}
    outcomes = [dict(base)]
    shift = rng.normal(0, 0.015)
    for turn, task in enumerate(tasks, start=1):
        row = dict(outcomes[-1])
        for key, right in row.items():
            if strategy == "zero_shot":
                continue
            if key == ("task", task):
                row[key] = rng.random(n) < min(max(learned, BASE[task]) + shift, 1.0)
            elif key[0] == "retention":
                row[key] = right & (rng.random(len(right)) >= max(loses + shift / 4, 0) * (loses > 0))
            elif key[1] in tasks[:turn]:
                row[key] = right & (rng.random(len(right)) >= max(forgets + shift / 4, 0) * (forgets > 0))
        outcomes.append(row)
    result = _result(method, strategy, tasks, outcomes, seed, order, drifts, parameters, rng)
    folder.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(outcomes):
        _write_predictions(folder, i, row)
    _log(folder, result, views)
    atomic_write_json(folder / "result.json", result.as_dict())
    return result


def _settings_of(method: str):
    like = next((m for m in ("full_coconut", "lora_coconut", "softcot") if method.startswith(m[:4])), "zero_shot_cot")
    return METHODS[like]


def _result(method, strategy, tasks, outcomes, seed, order, drifts, parameters, rng):
    matrix = [[float(row["task", t].mean()) for t in tasks] for row in outcomes]
    T, R = len(tasks), np.array(matrix)
    n = len(outcomes[0]["task", tasks[0]])
    half = 1.96 * np.sqrt(np.clip(R * (1 - R), 0.001, None) / n)

    def retention(row):
        scores = {f: float(row["retention", f].mean()) for f in FAMILIES}
        everything = float(np.mean(list(scores.values())))
        return {
            "families": scores,
            "n": {f: len(row["retention", f]) for f in FAMILIES},
            "all": everything,
            "all_interval": [everything - 0.015, min(everything + 0.015, 1)],
            "same_family": float(np.mean([scores[f] for f in TASKS])),
            "unrelated": float(np.mean([scores[f] for f in FAMILIES if f not in TASKS])),
        }

    def drift(i, scale):
        values = {}
        for name in ["general", *tasks]:
            grown = scale * i / T * float(rng.uniform(0.9, 1.1)) * (1 if name == "general" else 1.3)
            values |= {f"forward_kl/{name}": grown, f"reverse_kl/{name}": 0.7 * grown}
        return values

    frozen = strategy != "full_finetune"
    return RunRecord.model_validate({
        "schema": SCHEMA, "experiment": "sequence_a", "method": method, "order": order, "seed": seed, "tasks": list(tasks),
        "reasoning": {"name": method.split("_")[-1]}, "strategy": {"name": strategy},
        "per_task": {"routing": "oracle", "unseen": "base"} if "per_task" in method else None,
        "accuracy": {
            "matrix": matrix, "n": [n] * T,
          "intervals": np.stack([np.maximum(R - half, 0), np.minimum(R + half, 1)], axis=-1).tolist(),
            "unanswered": [[3] * T for _ in R], "untrained": [x * 0.8 for x in matrix[0]],
        },
        "summary": {
            "acc": float(R[-1].mean()), "acc_interval": [float(R[-1].mean()) - 0.02, float(R[-1].mean()) + 0.02],
            "bwt/gem": float(np.mean([R[-1, j] - R[j + 1, j] for j in range(T - 1)])),
            "fwt/gem": float(np.mean([R[i, i] - R[0, i] for i in range(1, T)])),
            "forgetting/chaudhry": float(np.mean([R[1:-1, j].max() - R[-1, j] for j in range(T - 1)])),
            "learning_accuracy": float(np.mean([R[j + 1, j] for j in range(T)])),
        },
        "retention": {
            "families": FAMILIES, "same_family": TASKS,
            "as_used": [retention(row) for row in outcomes],
            "weights_alone": [retention(outcomes[0] if frozen else row) for row in outcomes],
        },
        "drift": {
            "as_used": [drift(i, drifts) for i in range(T + 1)],
            "weights_alone": [drift(i, 0.0 if frozen else drifts) for i in range(T + 1)],
        },
        "cost": {
            "trained_parameters": parameters, "tokens_per_answer": 21.4 if "cot" in method else 4.2,
            "forward_passes_per_answer": 23.0, "train_seconds": 31.2 if parameters else 0.0,
            "evaluate_seconds": 22.6 + float(rng.random()), "peak_memory_mb": 1450.0, "optimiser_steps": 480 if parameters else 0,
        },
        "frozen": {"backbone_sha256_before": "ab", "backbone_sha256_after": "ab", "unchanged": frozen},
        "config_fingerprint": "f" * 64,
    })  # fmt: skip


def _write_predictions(folder: Path, i: int, row) -> None:
    lines = []
    for (kind, name), right in row.items():
        for k, ok in enumerate(right):
            text = f"dan sees {k} ; then {k + 1} ; answer {'yes' if ok else 'no'}"
            lines.append({
                "set": kind, "task": name, "id": f"{name}-{k}", "question": f"if {k} then what of <{name}> ?", "gold": "yes",
                "answer": "yes" if ok else "no", "outcome": "right" if ok else "wrong", "text": text, "tokens": 9,
            })  # fmt: skip
    atomic_write_text(folder / "predictions" / f"row_{i}.jsonl", "".join(dump_json(line) + "\n" for line in lines))


def _log(folder: Path, result, views: bool) -> None:
    from cl_softcot.results.colors import palette
    from cl_softcot.track import figures, predictions

    log = EventLog(folder)
    method, order, seed = result.method, result.order, result.seed
    log.tags(
        event_log.run_tags(
            experiment=result.experiment, method=method, order=order, seed=seed, tasks=result.tasks,
            identity=event_log.run_identity(result.config_fingerprint, method, order, seed),
            color=palette([*METHODS, *MORE])[method], strategy=result.strategy_name,
        )
    )  # fmt: skip
    log.params({"train": {"steps": 120, "examples": 1000}, "strategy": result.strategy.as_dict(), "tasks": result.tasks})
    log.status("RUNNING")
    for i in range(len(result.tasks) + 1):
        log.metrics(i, event_log.row_metrics(result, i))
    log.metrics(0, event_log.final_metrics(result))
    if views:
        for path in [*figures.draw_run(result, folder / "figures"), *predictions.write_predictions(folder, result)]:
            log.artifact(path.relative_to(folder))
        log.tags(predictions.TABLE_TAGS)
    log.status("FINISHED")


def make_experiment(folder: Path, methods=tuple(METHODS), seeds=(0,), orders=("given",), **settings):
    """An experiment's folder with runs of these methods; returns their results in the order of the methods."""
    from cl_softcot.results.reading import load_results, order_like

    for method in methods:
        for order in orders:
            for seed in seeds:
                make_run(folder / "runs" / f"{method}.{order}.seed{seed}", method, seed, order, **settings)
    return order_like(load_results(folder), methods)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """One finished run; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("run") / "full_cot.given.seed0"
    make_run(folder, "full_cot", n=60)
    return folder


@pytest.fixture
def run(run_folder, tmp_path):
    import shutil

    return Path(shutil.copytree(run_folder, tmp_path / "full_cot.given.seed0"))


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make."""

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    track_store.client_of(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store, tmp_path):
    """The address of a fresh store."""
    import shutil

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


# --- the event log ---------------------------------------------------------------------------------------


def test_a_resumed_run_may_repeat_itself(tmp_path):
    for _ in range(2):
        log = EventLog(tmp_path)
        log.params({"train": {"steps": 3}, "tasks": ["a", "b"]})
        log.tags({"method": "m"})
        log.metrics(1, {"accuracy/a": 0.5, "nan": math.nan, "none": None}, time_ms=7)
        log.metrics(1, {"accuracy/a": 0.5, "accuracy/b": 0.25}, time_ms=8)
        log.artifact("figures/a.png")
        log.status("FINISHED")
    events = read_events(tmp_path)
    assert [e["kind"] for e in events] == ["log", "params", "tags", "metrics", "metrics", "artifact", "status"]
    assert events[1]["data"] == {"train.steps": "3", "tasks": "a, b"}
    assert events[3] == {"time": 7, "kind": "metrics", "step": 1, "data": {"accuracy/a": 0.5}}
    assert events[4]["data"] == {"accuracy/b": 0.25}


def test_a_torn_last_line_is_written_again(tmp_path):
    log = EventLog(tmp_path)
    log.metrics(0, {"a": 1.0})
    log.metrics(1, {"a": 2.0})
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    EventLog(tmp_path).metrics(1, {"a": 2.0})
    assert [(e["step"], e["data"]) for e in read_events(tmp_path) if e["kind"] == "metrics"] == [(0, {"a": 1.0}), (1, {"a": 2.0})]


def test_the_log_refuses_what_makes_no_sense(tmp_path):
    log = EventLog(tmp_path)
    with pytest.raises(ValueError, match="relative"):
        log.artifact("../secret")
    with pytest.raises(ValueError, match="FINISHED"):
        log.status("done")
    (tmp_path / "events.jsonl").write_text('{"kind": "log"}\n[1]\n')
    with pytest.raises(UserError, match=r"events\.jsonl:1"):
        read_events(tmp_path)


def test_names_of_metrics(run):
    result = kept.record(run)
    first, last = event_log.row_metrics(result, 0), event_log.row_metrics(result, 4)
    assert first["accuracy/dates"] == result.accuracy.matrix[0][0]
    assert "accuracy/mean of learned tasks" not in first and "accuracy/mean of learned tasks" in last
    assert last["drift/forward_kl general"] == result.drift.as_used[4]["forward_kl/general"]
    assert first["weights alone/drift reverse_kl graph"] == 0.0
    assert last["retention/family tracking"] == result.retention.as_used[4].families["tracking"]
    assert event_log.row_metrics(PartialRecord.model_validate({"tasks": TASKS, "accuracy": {"matrix": []}}), 3) == {}
    final = event_log.final_metrics(result)
    assert final["final/bwt gem"] == result.summary["bwt/gem"]
    assert final["final/retention as used"] == last["retention/all"]
    assert final["resources/trained_parameters"] == 893_312
    assert all(name.count("/") == 1 for name in [*last, *final]), "a second slash opens another section in MLflow"


# --- MLflow ----------------------------------------------------------------------------------------------


def points(uri, experiment="sequence_a"):
    """Every metric point of an experiment, by run name."""

    client = track_store.client_of(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {
        run.info.run_name: sorted(
            (key, p.step, p.timestamp, p.value)
            for key in run.data.metrics
            for p in client.get_metric_history(run.info.run_id, key)
        )
        for run in found
    }


def test_sending_twice_changes_nothing(run, store):
    from cl_softcot.track import mlflow

    report = mlflow.sync(run, store)
    assert report.ok and report.message == "", report
    first = points(store)
    logged = sum(len(e["data"]) for e in read_events(run) if e["kind"] == "metrics")
    assert list(first) == ["full_cot · seed 0"]
    assert len(first["full_cot · seed 0"]) == logged == report.sent
    assert mlflow.sync(run, store).sent == 0
    (run / "mlflow.json").unlink()  # the position is lost, or the folder was copied without it
    assert mlflow.sync(run, store).ok
    positions = json.loads((run / "mlflow.json").read_text())
    for position in positions.values():  # killed between sending and remembering
        position["events"] = 3
    atomic_write_json(run / "mlflow.json", positions)
    assert mlflow.sync(run, store).ok
    atomic_write_text(run / "mlflow.json", "{ torn")
    assert mlflow.sync(run, store).ok
    assert points(store) == first


def test_what_stands_in_mlflow(run, store, tmp_path):
    from cl_softcot.track import mlflow

    report = mlflow.sync(run, store)
    client = track_store.client_of(store)
    sent = client.get_run(report.run_id)
    assert sent.info.status == "FINISHED" and sent.info.end_time >= sent.info.start_time
    assert sent.data.params["strategy.name"] == "full_finetune"
    tags = sent.data.tags
    assert tags["method"] == "full_cot" and tags["seed"] == "0" and tags["sequence"] == "dates > graph > facts > lists"
    assert tags["mlflow.runColor"] == "#D55E00" and "mlflow.parentRunId" not in tags
    names = {a.path for a in client.list_artifacts(report.run_id)} | {
        a.path for a in client.list_artifacts(report.run_id, "figures")
    }
    assert {"predictions.html", "predictions.json", "figures/accuracy_matrix.png", "figures/drift.png"} <= names
    assert (tmp_path / "mlruns").is_dir(), "artifacts belong beside the database"
    address = mlflow.chart_address(store, report.experiment_id)
    assert address.startswith(f"http://127.0.0.1:5000/#/experiments/{report.experiment_id}/runs?workflowType=machine_learning")
    assert "compareRunsMode=CHART" in address
    experiment = client.get_experiment(report.experiment_id)
    view = address.rpartition("=")[2]
    assert json.loads(experiment.tags[f"mlflow.sharedViewState.{view}"])["runsHiddenMode"] == "SHOW_ALL"


def test_later_events_and_changed_files_follow(run, store):
    from cl_softcot.track import mlflow

    report = mlflow.sync(run, store)
    log = EventLog(run)
    log.metrics(9, {"accuracy/dates": 0.5})
    log.status("RUNNING")
    (run / "figures" / "drift.png").write_bytes(b"new")
    assert mlflow.sync(run, store).sent == 1
    client = track_store.client_of(store)
    assert client.get_run(report.run_id).info.status == "RUNNING"
    place = Path(client.download_artifacts(report.run_id, "figures/drift.png"))
    assert place.read_bytes() == b"new"


def test_a_run_deleted_there_or_started_over_here(run, store):
    import shutil

    from cl_softcot.track import mlflow

    client = track_store.client_of(store)
    first = mlflow.sync(run, store)
    client.delete_run(first.run_id)
    second = mlflow.sync(run, store)  # a person wants it back
    assert second.ok and second.run_id != first.run_id and second.sent == first.sent
    before = points(store)
    shutil.rmtree(run)
    make_run(run, "full_cot", n=60, views=False)  # --restart: the same run in the same folder, with a new log
    third = mlflow.sync(run, store)
    assert third.ok and "trash" in third.message
    assert list(points(store)) == list(before) and len(points(store)["full_cot · seed 0"]) == third.sent
    client.delete_experiment(third.experiment_id)
    report = mlflow.sync(run, store)
    assert not report.ok and "mlflow experiments restore" in report.message


class Faulty:
    """MLflow's client behind a proxy: ``faults`` maps a call's name to what becomes of it; of the others nothing is changed."""

    def __init__(self, client, faults):
        self._client, self._faults = client, faults

    def __getattr__(self, name):
        call = getattr(self._client, name)
        return self._faults[name](call) if name in self._faults else call


def _lost(call):
    """The answer, and not the work."""

    def made(*args, **kwargs):
        call(*args, **kwargs)
        raise TimeoutError("Read timed out.")

    return made


def _repeated(call):
    """MLflow's client repeats a call whose answer was lost, creations included."""

    def made(*args, **kwargs):
        call(*args, **kwargs)
        return call(*args, **kwargs)

    return made


def _empty_run(call):
    from types import SimpleNamespace

    def made(*args, **kwargs):
        call(*args, **kwargs)
        return SimpleNamespace(info=SimpleNamespace(run_id=""))

    return made


def _never(_call):
    def made(*args, **kwargs):
        raise ConnectionError("Connection refused")

    return made


def _answers(value):
    return lambda _call: lambda *args, **kwargs: value


@pytest.fixture
def behind(monkeypatch):
    """Puts a proxy in front of a store, which thereby counts as a server."""
    from cl_softcot.track import mlflow

    def put(**faults):
        monkeypatch.setattr(mlflow, "client_of", lambda uri: Faulty(track_store.client_of(uri), faults))
        monkeypatch.setattr(mlflow._Sending, "remote", True)
        return mlflow

    return put


def assert_whole(run, store):
    """One run, finished, with every point of the log and its files."""
    client = track_store.client_of(store)
    found = client.search_runs([client.get_experiment_by_name("sequence_a").experiment_id])
    assert [r.info.status for r in found] == ["FINISHED"]
    logged = [(k, e["step"], e["time"], v) for e in read_events(run) if e["kind"] == "metrics" for k, v in e["data"].items()]
    assert list(points(store).values()) == [sorted(logged)]
    assert {a.path for a in client.list_artifacts(found[0].info.run_id)} >= {"predictions.html", "predictions.json"}


CREATIONS = {
    "run: answer lost": {"create_run": _lost},
    "run: made twice": {"create_run": _repeated},
    "run: made twice, answer lost": {"create_run": lambda call: _lost(_repeated(call))},
    "run: empty answer": {"create_run": _empty_run},
    "run: not made": {"create_run": _never},
    "experiment: answer lost": {"create_experiment": _lost},
    "experiment: empty answer": {"create_experiment": lambda call: lambda *a, **k: call(*a, **k) and ""},
    "experiment: not made": {"create_experiment": _never},
    "both: answers lost": {"create_run": _lost, "create_experiment": _lost},
}


@pytest.mark.parametrize("fault", CREATIONS)
def test_a_creation_is_made_once_whatever_becomes_of_its_answer(fault, run, store, behind):
    report = behind(**CREATIONS[fault]).sync(run, store)
    assert report.ok == ("not made" not in fault), report
    assert behind().sync(run, store).ok
    assert_whole(run, store)


def test_a_search_that_says_nothing_makes_no_second_run_for_good(run, store, behind):
    assert behind().sync(run, store).ok
    (run / "mlflow.json").unlink()
    report = behind(search_runs=_answers([])).sync(run, store)
    assert not report.ok and "none of MLflow's" in report.message
    assert behind().sync(run, store).ok
    assert_whole(run, store)


@pytest.mark.parametrize("call", ["log_batch", "set_terminated", "log_artifact"])
def test_what_a_server_only_said_it_took_is_told_and_sent_again(call, run, store, behind):
    """``{}`` is MLflow's own answer to numbers, and of whoever answers ``{}`` to everything."""
    report = behind(**{call: _answers(None)}).sync(run, store)
    assert not report.ok and "does not have what it was sent" in report.message
    assert behind().sync(run, store).ok
    assert_whole(run, store)
    sent = behind(get_metric_history=_never).sync(run, store)
    assert sent.ok and sent.sent == 0  # read back once


@pytest.mark.parametrize(
    "faults",
    [
        {"get_experiment_by_name": lambda _: lambda *a: json.loads("<html>log in</html>")},
        {"get_experiment_by_name": lambda _: lambda *a: b"\xff\xfe".decode()},
        {"get_experiment_by_name": lambda _: lambda *a: [].keys()},
        {"get_experiment_by_name": lambda _: lambda *a: __import__("types").SimpleNamespace(name="", experiment_id="")},
        {"create_run": lambda _: lambda *a, **k: json.loads('{"run": {"info"')},
        {"search_runs": lambda _: lambda *a, **k: [__import__("types").SimpleNamespace(data={})]},
    ],
)
def test_an_answer_that_is_none_of_mlflows_is_told(faults, run, store, behind):
    report = behind(**faults).sync(run, store)
    assert not report.ok and "none of MLflow's" in report.message and "\n" not in report.message
    assert behind().sync(run, store).ok
    assert_whole(run, store)


@pytest.mark.slow
def test_three_processes_on_a_fresh_store(run_folder, tmp_path):
    import shutil

    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    workers = []
    for i in range(3):
        make = tmp_path / f"run{i}"
        shutil.copytree(run_folder, make)
        lines = (make / "events.jsonl").read_text().splitlines()
        lines[0] = json.dumps({"time": 1, "kind": "log", "data": {"schema": 1, "id": f"log{i}"}})
        (make / "events.jsonl").write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "cl_softcot.track", str(make), "--uri", uri]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()))
    output = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], output
    assert not any("alembic" in text or "INFO" in text for text in output), output

    client = track_store.client_of(uri)
    assert len(client.search_runs([client.get_experiment_by_name("sequence_a").experiment_id])) == 3


def _environment(**more):
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **more}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def hanging_server():
    """Takes connections and never answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(8)
        yield f"http://127.0.0.1:{s.getsockname()[1]}"


@pytest.fixture
def strange_server():
    """A web server that is not MLflow."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome to nginx</html>")

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_store_that_cannot_be_reached_is_told_quickly(run, hanging_server, strange_server, tmp_path):
    from cl_softcot.track import mlflow

    (tmp_path / "junk.db").write_bytes(b"not a database at all" * 100)
    (tmp_path / "a_file").write_text("")
    cases = {
        f"http://127.0.0.1:{free_port()}": "does not answer",
        f"http://name:secret@127.0.0.1:{free_port()}": "does not answer",
        hanging_server: "does not answer",
        strange_server: "refused",
        "http://no-such-host.invalid:5000": "does not answer",
        "htp://localhost:5000": "refused",
        f"sqlite:///{tmp_path}/junk.db": "cannot be opened",
        f"sqlite:///{tmp_path}/a_file/mlflow.db": "cannot be opened",
    }
    for uri, told in cases.items():
        start = time.monotonic()
        report = mlflow.sync(run, uri)
        assert not report.ok and told in report.message, (uri, report)
        assert "\n" not in report.message and "secret" not in report.message and len(report.message) < 350, report.message
        assert time.monotonic() - start < 100, f"{uri}: MLflow's own retries take minutes"
    assert not (run / "mlflow.json").exists()


def test_the_sender_never_blocks_the_work(run, hanging_server):

    told = []
    sender = track_sender.MLflowSender(hanging_server, say=told.append, pause=0.0)
    for _ in range(100):
        sender.poke(run)
    assert not told  # none of them waited for the answer that does not come
    while not told:
        time.sleep(0.05)
    assert sender.close(timeout=1.0) == [run] or sender._thread.is_alive()
    assert len(told) <= 1 and all("safe in its folder" in text for text in told)
    assert "python -m cl_softcot.track" in track_sender.later([run])


def test_the_sender_sends_what_comes_and_the_rest_at_the_end(run, store):

    sender = track_sender.MLflowSender(store, pause=0.0)
    sender.poke(run)
    while sender.last is None:
        time.sleep(0.1)
    assert sender.last.ok
    EventLog(run).metrics(9, {"accuracy/dates": 0.5})
    sender.poke(run)
    assert sender.close(timeout=600) == []
    assert any(step == 9 for _, step, _, _ in points(store)["full_cot · seed 0"])


def test_the_sender_goes_on_when_the_store_comes_back(run, store, tmp_path, monkeypatch):

    good = tmp_path / "mlflow.db"
    hidden = good.rename(tmp_path / "hidden.db")
    good.mkdir()  # what stands there is no database
    told = []
    sender = track_sender.MLflowSender(store, say=told.append, pause=0.0)
    sender.poke(run)
    while not told:
        time.sleep(0.05)
    assert "cannot be opened" in told[0]
    good.rmdir()
    hidden.rename(good)
    assert sender.close(timeout=600) == []
    assert told[1:] == ["MLflow takes numbers again."]
    assert "full_cot · seed 0" in points(store)


def test_track_sends_later_and_says_where_to_look(tmp_path, store, capsys, monkeypatch):
    from cl_softcot.track import __main__ as track

    folder = tmp_path / "experiment"
    make_experiment(folder, ["zero_shot_cot", "softcot"], n=60, views=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert track.main([str(folder)]) == 1
    assert "does not answer" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert track.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "mlflow ui --backend-store-uri" in out and "compareRunsMode=CHART" in out
    first = points(store)
    assert track.main([str(folder), str(folder / "runs" / "softcot.given.seed0")]) == 0
    assert points(store) == first and len(first) == 2

    client = track_store.client_of(store)
    note = client.get_experiment_by_name("sequence_a").tags["mlflow.note.content"]
    assert "| softcot |" in note and "Retention as used" in note
    assert track.main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_track_help_imports_little():
    command = [sys.executable, "-X", "importtime", "-m", "cl_softcot.track", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0 and "RUN_FOLDER" in done.stdout
    assert "mlflow" not in done.stderr and "numpy" not in done.stderr and "rich" not in done.stderr


# --- the terminal ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    return make_experiment(tmp_path_factory.mktemp("sixteen"), [*METHODS, *MORE], n=60, views=False)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    methods = ["zero_shot_cot", "full_cot", "softcot_per_task_oracle"]
    return make_experiment(tmp_path_factory.mktemp("several"), methods, seeds=(0, 1, 2), n=60, views=False)


@pytest.mark.parametrize("width", [200, 100, 80])
def test_the_table_fits(sixteen, several, width):
    from cl_softcot.track.console import final_table

    for results in (sixteen, several):
        lines = final_table(results, width=width, failed={"broken": "loss is NaN"}).plain.splitlines()
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        for method in {r.method for r in results}:
            assert f"● {method}" in text
        assert "broken  failed" in text
        row = next(line for line in lines[3:] if "zero_shot_cot" in line or "0+2" in line)
        assert row


def test_numbers_of_the_table(sixteen, several):
    from cl_softcot.track.console import final_table, table_markdown

    rows = {line.split()[1]: line.split()[2:] for line in final_table(sixteen).plain.splitlines()[4:]}
    run = next(r for r in sixteen if r.method == "full_cot")
    assert rows["full_cot"][1] == f"{run.summary['acc']:.3f}" and rows["full_cot"][6] == "893k"
    assert rows["zero_shot_cot"][0] == "–", "what learned nothing has no learned number"
    assert rows["softcot_per_task_oracle"][2:4] == ["0", "0"], "an exact zero is told apart from a rounded one"
    runs = [r.summary["acc"] for r in several if r.method == "full_cot"]
    told = f"{np.mean(runs):.3f} ±{np.std(runs, ddof=1):.3f}".replace("±0", "±")
    assert told in final_table(several).plain and told in table_markdown(several)
    assert " 3 " in final_table(several).plain


def test_outside_a_terminal_nothing_is_cut(sixteen):
    import io

    from cl_softcot.track.console import print_results, table_text

    console = Console(file=io.StringIO())
    print_results(sixteen, console=console)
    text = console.file.getvalue()
    assert text.strip() == table_text(sixteen).strip()
    assert "full_coconut_no_curriculum" in text and "\x1b" not in text and "…" not in text


def test_the_base_has_a_row_where_no_method_is_the_base(several):
    from cl_softcot.track.console import final_table

    assert "base, zero-shot CoT" in final_table([r for r in several if r.method == "full_cot"]).plain
    assert "base, zero-shot CoT" not in final_table(several).plain


def test_one_task_and_missing_numbers():
    from cl_softcot.track.conclusion import sentence
    from cl_softcot.track.console import final_table, table_markdown

    bare = RunRecord.model_validate({
        "method": "m", "tasks": ["a"], "seed": 0, "strategy": {"name": "lora"},
        "accuracy": {"matrix": [[0.5], [0.9]], "n": [300]},
        "summary": {"acc": 0.9, "bwt/gem": None}, "cost": {"trained_parameters": 10},
    })  # fmt: skip
    assert "–" in final_table([bare]).plain and "| m |" in table_markdown([bare])
    told = sentence([bare])
    assert "above it: m +0.40" in told and "counts only" in told and "Earlier tasks" not in told


def test_progress_in_plain_lines():
    import io

    from cl_softcot.track.console import ProgressDisplay

    console = Console(file=io.StringIO(), width=200)
    with ProgressDisplay(["a", "b", "c"], console=console) as display:
        display.update({"run": "c", "phase": "kept"})
        display.update({"run": "a", "phase": "learning dates", "done": 0, "total": 120})
        for done in range(120):
            display.update({"run": "a", "phase": "learning dates", "done": done, "total": 120, "fraction": done / 240})
        display.update({"run": "a", "phase": "finished"})
        display.update({"run": "b", "phase": "failed", "text": "loss is NaN at step 3"})
        display.update({"text": "MLflow does not answer"})
    text = console.file.getvalue()
    assert text.count("learning dates") == 1 and "c was finished before" in text and "left)" in text
    assert "b failed: loss is NaN at step 3" in text and "MLflow does not answer" in text


def test_progress_with_bars_and_a_queue():
    import io
    import queue

    from cl_softcot.track.console import ProgressDisplay

    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    messages = queue.Queue()
    with ProgressDisplay(["full_coconut_no_curriculum", "b"], console=console) as display:
        display.listen(messages)
        messages.put({"run": "b", "phase": "answering [row 1]", "done": 3, "total": 10, "fraction": 0.4})
        messages.put({"run": "b", "phase": "answering [row 2]", "done": 1, "total": 10, "fraction": 0.5})
        messages.put({"run": "full_coconut_no_curriculum", "phase": "failed", "text": "disk [full]"})
    text = console.file.getvalue()
    assert "answering [row 2]" in text and "disk [full]" in text and "1/10" in text


# --- what the numbers support ----------------------------------------------------------------------------


def test_differences_are_claimed_only_where_they_are_shown(several):
    from cl_softcot.track.conclusion import sentence

    lines = {line.split(" (")[0]: line for line in sentence(several, full=True).splitlines()}
    kept = lines["Retention as used, families that the stream never touches"]
    assert "below it: full_cot −0." in kept and "every outcome as the base's: softcot_per_task_oracle" in kept
    forgot = lines["Earlier tasks at the end, against right after their turn"]
    assert "forgotten: full_cot −0." in forgot and "every outcome as it was: softcot_per_task_oracle" in forgot
    note = sentence(several).splitlines()[-1]
    assert "Bonferroni" in note and "paired" in note and "spread over runs" in note
    assert "zero_shot" not in sentence(several), "what trains nothing is the base, not a method to compare with it"


def test_a_single_run_says_that_another_seed_may_differ(sixteen):
    from cl_softcot.track.conclusion import sentence

    text = sentence(sixteen)
    assert "do not cover another seed" in text and "14 methods of a line" in text
    assert "between:" in text and "between:" not in sentence(sixteen, full=True)


def test_a_handful_of_changed_answers_shows_nothing():
    from cl_softcot.track import conclusion

    rng = np.random.default_rng(0)
    before = np.ones(300, dtype=int)
    after = before.copy()
    after[:5] = 0  # McNemar's exact p is .0625
    change = conclusion._paired(before, after, rng)
    low, high = np.quantile(change.draws, [0.025, 0.975])
    assert low < 0 <= high and not change.identical


@pytest.mark.parametrize("runs", [1, 3])
def test_intervals_hold_what_they_promise(runs):
    """Without any true change, about one interval in twenty may claim one, and not more."""
    from cl_softcot.track import conclusion

    rng = np.random.default_rng(1)
    claims, trials = 0, 100
    for trial in range(trials):
        results = []
        for _ in range(runs):
            before = rng.random((2, 150)) < 0.7
            flip = rng.random((2, 150))  # the same chance of losing and winning over all examples
            after = np.where(before, flip >= 0.06, flip < 0.14)
            results.append(
                {
                    "tasks": ["a"],
                    "accuracy": {"matrix": [[1], [1]], "n": [150]},
                    "pairs": [(b.astype(int), a.astype(int)) for b, a in zip(before, after, strict=True)],
                }
            )
        change = _change_of_pairs(conclusion, results, trial)
        claims += change.sign != 0
    assert claims <= 10, claims


def _change_of_pairs(conclusion, results, seed):
    original = conclusion._stratum_change
    conclusion._stratum_change = lambda run, stratum, rng: conclusion._paired(*run["pairs"][stratum[1]], rng)
    try:
        return conclusion._change("m", results, lambda run: [("task", 0, "a", 1), ("task", 1, "a", 1)], 0.05, seed)
    finally:
        conclusion._stratum_change = original


def test_colours_are_stable_and_distinct():
    from cl_softcot.results.colors import palette

    some, all_ = palette(METHODS), palette([*METHODS, *MORE])
    assert all(all_[m] == some[m] for m in METHODS)
    assert len(set(palette([f"m{i}" for i in range(40)]).values())) == 40


# --- figures and pages -----------------------------------------------------------------------------------


def test_figures_are_drawn_and_repeatable(run, several, tmp_path):
    from cl_softcot.track import figures

    result = kept.record(run)
    drawn = figures.draw_run(result, tmp_path / "a") + figures.draw_experiment(several, tmp_path / "a")
    again = figures.draw_run(result, tmp_path / "b") + figures.draw_experiment(several, tmp_path / "b")
    assert [p.name for p in drawn] == ["accuracy_matrix.png", "accuracy.png", "drift.png", "comparison.png"]
    for one, two in zip(drawn, again, strict=True):
        assert one.read_bytes() == two.read_bytes() and len(one.read_bytes()) > 10_000
    data = result.as_dict()
    del data["drift"], data["retention"]
    data["accuracy"]["matrix"] = data["accuracy"]["matrix"][:2]  # a run that is not finished
    assert len(figures.draw_run(RunRecord.model_validate(data), tmp_path / "c")) == 2


def test_the_page_of_predictions(run):
    page, table = (run / "predictions.html").read_text(), json.loads((run / "predictions.json").read_text())
    assert "&lt;dates&gt;" in page and "<dates>" not in page
    assert "retention: tracking" in page and table["columns"][0] == "task"
    assert {len(row) for row in table["data"]} == {len(table["columns"])}
    first = table["data"][0]
    assert first[4] == "right" and first[6] == "wrong", "what was lost comes first"
