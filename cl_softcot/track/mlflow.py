"""Sends the event logs of runs to MLflow: later, again, or not at all, without ever losing or doubling a number.

The log on the disk is the truth, MLflow a view of it. A position file in the run folder remembers, per store,
what was sent. Where it is lost, or a sender died between sending and remembering, sending again changes
nothing: the run is found by a tag, the timestamps come from the log, and points that are there are skipped.
What was created is looked up by that tag, since the answer may have been lost and not the run; and since a
server's answers may be anybody's, what a finished run has there is read back once.

Runs are flat and tied together by tags (experiment, sequence, method, order, seed), since MLflow leaves nested
runs out of its charts. No function here raises because of MLflow: a `Sent` says what happened.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, read_json, sha256_of
from cl_softcot.results.checksums import Checksums
from cl_softcot.results.events import HEADLINE, read_events
from cl_softcot.results.folder import RunFolder
from cl_softcot.track.store import (
    SendingFailed,
    check_alive,
    client_of,
    default_uri,
    file_lock,
    first_line,
    no_answer,
    refusal,
    retrying,
    shown,
    sqlite_path,
    store_key,
    store_lock,
)

BATCH = 500  # MLflow takes 1000 metrics a call; half of that stays far below its limit of 1 MB
# Views of an experiment's runs, kept in tags of the experiment, which a link can name (they are MLflow's own
# "share" links). By itself MLflow shows ten runs, the newest first, no seeds together, and no numbers in its table.
_VIEW_TAG = "mlflow.sharedViewState."
RUNS_VIEW, METHODS_VIEW = "runs", "methods"
_IN_ORDER = {"runsHiddenMode": "SHOW_ALL", "orderByKey": "attributes.start_time", "orderByAsc": True}
_BY_METHOD = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag} for tag in ("method", "order")]}
_COLUMNS = {"selectedColumns": [f"metrics.`{name}`" for name in HEADLINE]}
_VIEWS: dict[str, dict[str, Any]] = {
    RUNS_VIEW: {**_IN_ORDER, **_COLUMNS},
    METHODS_VIEW: {**_IN_ORDER, **_COLUMNS, "groupBy": _BY_METHOD},
    # One with a name is listed in the page's own menu.
    "headline": {"name": "Headline numbers", "createdAt": 0, "updatedAt": 0, "state": json.dumps({**_IN_ORDER, **_COLUMNS})},
}
_EARLIER_VIEWS: dict[str, dict[str, Any]] = {RUNS_VIEW: _IN_ORDER, METHODS_VIEW: {**_IN_ORDER, "groupBy": _BY_METHOD}}
_NOTE_MARK = "<!-- cl_softcot: replaced at the end of every run -->"


@dataclass(frozen=True)
class Sent:
    """What became of one attempt to send a run.

    Attributes:
        message: one line for people; empty when all went well and there was nothing to say.
        sent: number of metric points.
    """

    ok: bool
    message: str = ""
    sent: int = 0
    uri: str = ""
    experiment_id: str | None = None
    run_id: str | None = None


def sync(run_folder: str | Path, uri: str | None = None, experiment: str | None = None) -> Sent:
    """Sends what the log of a run has and the store has not; any number of times, from any process.

    Args:
        uri: the store; None for the one that `mlflow ui` opens in this folder, or MLFLOW_TRACKING_URI.
        experiment: MLflow's experiment; None for the one that the run's tags name.
    """
    folder = Path(run_folder)
    try:
        events = read_events(folder)
    except UserError as error:
        return Sent(False, str(error))
    if not events:
        return Sent(False, f"{folder} has no event log, so there is nothing to send")
    try:
        Checksums(folder).check(RunFolder(folder).result)
    except UserError as error:
        return Sent(False, str(error))
    try:
        uri = uri or default_uri()
        with file_lock(RunFolder(folder).sending):  # a person may send while the run itself does
            check_alive(uri)
            with store_lock(uri):
                return _Sending(folder, uri, events, experiment).run()
    except SendingFailed as error:
        return Sent(False, str(error), uri=uri or "")
    except Exception as error:  # MLflow's own errors are of many kinds, and none may stop a run
        return Sent(False, refusal(error, uri), uri=uri or "")


class _Sending:
    """One attempt: finds or creates the run, then sends in the order of the log."""

    def __init__(self, folder: Path, uri: str, events: list[dict[str, Any]], experiment: str | None):
        self.folder, self.uri, self.events = folder, uri, events
        self.tags: dict[str, str] = {}
        self.params: dict[str, str] = {}
        for event in events:
            if event["kind"] in ("tags", "params"):
                (self.tags if event["kind"] == "tags" else self.params).update(event["data"])
        self.name = self.tags.get("mlflow.runName", folder.name)
        self.experiment = (
            experiment or self.tags.get("cl_softcot.mlflow_experiment") or self.tags.get("experiment") or "cl_softcot"
        )
        self.log_id = next((e["data"]["id"] for e in events if e["kind"] == "log"), sha256_of(str(folder).encode())[:12])
        self.client = client_of(uri)
        self.positions = _read_positions(folder)
        self.position = self.positions.setdefault(store_key(uri, self.experiment), {})
        self.replaced = 0

    @property
    def remote(self) -> bool:
        """Whether what answers is a server, or whatever stands in front of it."""
        return self.uri.startswith(("http://", "https://"))

    def run(self) -> Sent:
        experiment_id = retrying(self._experiment)
        existing = retrying(lambda: self._find_run(experiment_id))
        known: set[tuple[str, int, int]] = set()
        if existing is not None and (existing.info.run_name or "").startswith(f"{self.name} "):
            self.name = existing.info.run_name  # told apart from another when it was created
        if existing is None:
            self._start(experiment_id)
        elif self.position.get("run_id") != existing.info.run_id:
            # Found by its tag alone: how much of it arrived is known only there.
            known = self._known_points(existing)
            self.position.clear()
            self.position.update(experiment_id=experiment_id, run_id=existing.info.run_id, events=0, artifacts={})
        self.run_id = self.position["run_id"]
        sent = self._send_events(known)
        problem = self._send_artifacts() or self._read_back(experiment_id)
        self._save()
        notes = [problem] if problem else []
        if self.replaced:
            notes.append(f"{self.folder.name}: the run of an earlier start of this folder is in MLflow's trash now")
        return Sent(not problem, "; ".join(notes), sent, self.uri, experiment_id, self.run_id)

    def _experiment(self) -> str:
        found = self._known_experiment()
        if found is None:
            return self._create_experiment()
        if found.lifecycle_stage == "deleted":
            raise SendingFailed(
                f"MLflow's experiment {self.experiment!r} was deleted there; restore it with `mlflow experiments "
                f"restore -x {found.experiment_id}` or name another with tracking.experiment=NAME"
            )
        for name, state in _VIEWS.items():
            there = found.tags.get(_VIEW_TAG + name)
            if there in (None, json.dumps(_EARLIER_VIEWS.get(name))):  # one that a person has changed stays as it is
                self.client.set_experiment_tag(found.experiment_id, _VIEW_TAG + name, json.dumps(state))
        return found.experiment_id

    def _known_experiment(self) -> Any:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None and (found.name != self.experiment or not found.experiment_id):
            raise SendingFailed(no_answer(self.uri))
        return found

    def _create_experiment(self) -> str:
        """Its name is its key: where another was faster, or the answer was lost, it is there."""
        path = sqlite_path(self.uri)
        # Artifacts go beside the database; MLflow would put them where this process happens to run.
        place = None if path is None else (path.parent / "mlruns" / _folder_of(self.experiment)).as_uri()
        try:
            views = {_VIEW_TAG + name: json.dumps(state) for name, state in _VIEWS.items()}
            made = self.client.create_experiment(self.experiment, artifact_location=place, tags=views)
        except Exception as error:
            failure, made = error, ""
        else:
            failure = SendingFailed(no_answer(self.uri))
        if made:
            return made
        found = _or_none(self._known_experiment)
        if found is None:
            raise failure
        return found.experiment_id

    def _find_run(self, experiment_id: str) -> Any:
        """The run of this log; None if it is not there (any more)."""
        from mlflow.exceptions import MlflowException

        if self.position.get("run_id"):
            try:
                run = self._run_of_id(self.position["run_id"])
                if run.info.lifecycle_stage == "active" and run.data.tags.get("cl_softcot.log") == self.log_id:
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return self._the_one(experiment_id)

    def _run_of_id(self, run_id: str) -> Any:
        run = self.client.get_run(run_id)
        if run.info.run_id != run_id:
            raise SendingFailed(no_answer(self.uri))
        return run

    def _the_one(self, experiment_id: str, run_id: str | None = None) -> Any:
        """The run with this log's tag; None if there is none. A creation that was repeated because its answer was lost may have
        made several: ``run_id``, or the one that has most, stays, the others go to MLflow's trash."""
        found = list(self.client.search_runs([experiment_id], f"tags.`cl_softcot.log` = '{self.log_id}'"))
        if any(run.data.tags.get("cl_softcot.log") != self.log_id for run in found):
            raise SendingFailed(no_answer(self.uri))
        found.sort(key=lambda run: (run.info.run_id != run_id, -len(run.data.metrics), run.info.run_id))
        for run in found[1:]:
            self.client.delete_run(run.info.run_id)
        return found[0] if found else None

    def _start(self, experiment_id: str) -> None:
        self._trash_earlier_starts(experiment_id)
        self.name = self._told_apart(experiment_id)
        own = {"mlflow.runName": self.name, "cl_softcot.log": self.log_id, "cl_softcot.folder": self._place()}
        tags, begun = {**self.tags, **own}, self.events[0]["time"]
        create = partial(self.client.create_run, experiment_id, start_time=begun, tags=tags, run_name=self.name)
        self.position.clear()
        self.position.update(experiment_id=experiment_id, run_id=self._created(experiment_id, create), events=0, artifacts={})
        self._save()

    def _created(self, experiment_id: str, create: Callable[[], Any]) -> str:
        """The id of a run that is made now, or was made although that could not be told."""
        failure: Exception = SendingFailed(no_answer(self.uri))
        try:
            made = retrying(create).info.run_id
        except Exception as error:
            failure, made = error, ""
        if made and not self.remote:
            return made
        found = _or_none(lambda: self._the_one(experiment_id, made))  # the client, too, repeats a call that was not answered
        if found is None and not made:
            raise failure
        return found.info.run_id if found is not None else made

    def _trash_earlier_starts(self, experiment_id: str) -> None:
        """`--restart` emptied this very folder: its old numbers would stand in every chart beside the new ones."""
        identity = self.tags.get("cl_softcot.run")
        if not identity:
            return
        for run in self.client.search_runs([experiment_id], f"tags.`cl_softcot.run` = '{identity}'"):
            tags = run.data.tags
            if tags.get("cl_softcot.folder") == self._place() and tags.get("cl_softcot.log") != self.log_id:
                self.client.delete_run(run.info.run_id)  # kept in MLflow's trash, from which it can be restored
                self.replaced += 1

    def _told_apart(self, experiment_id: str) -> str:
        """The run's name, with what differs from a run of other settings that has the same one."""
        method = self.tags.get("method", "")
        if not re.fullmatch(r"[\w.+-]+", method):
            return self.name
        found = self.client.search_runs([experiment_id], f"tags.method = '{method}'", max_results=1000)
        taken = {run.info.run_name: run.data.params for run in found}
        if self.name not in taken:
            return self.name
        other, own = taken[self.name], {_name(key): str(value) for key, value in self.params.items()}
        keys = [key for key in own if own[key] != other.get(key) and not key.startswith(("versions.", "cost."))]
        name = (
            f"{self.name} · " + ", ".join(f"{key.removeprefix('train.')}={own[key]}" for key in keys[:3]) if keys else self.name
        )
        return next(n for n in (name[:200], *(f"{name[:200]} ({i})" for i in range(2, 10_000))) if n not in taken)

    def _place(self) -> str:
        return f"{socket.gethostname()}:{self.folder.resolve()}"

    def _known_points(self, run: Any) -> set[tuple[str, int, int]]:
        """(key, step, timestamp) of every point that the store has. SQL stores refuse doubles, file stores don't."""
        keys = list(run.data.metrics)
        return {
            (key, point.step, point.timestamp) for key in keys for point in self.client.get_metric_history(run.info.run_id, key)
        }

    def _send_events(self, known: set[tuple[str, int, int]]) -> int:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Any] = []
        sent, start = 0, self.position.get("events", 0)

        def flush(upto: int) -> None:
            nonlocal sent
            for i in range(0, len(metrics), BATCH):
                part = metrics[i : i + BATCH]
                retrying(partial(self.client.log_batch, self.run_id, metrics=part))
                sent += len(part)
            metrics.clear()
            self.position["events"] = upto
            self._save()

        for number, event in enumerate(self.events[start:], start=start):
            kind, data = event["kind"], event["data"]
            if kind == "metrics":
                points = _points(event)
                metrics += [Metric(*point) for point in points if (point[0], point[3], point[2]) not in known]
                if len(metrics) >= BATCH:
                    flush(number + 1)
            elif kind == "params":
                params = [Param(_name(k), str(v)[:6000]) for k, v in data.items()]
                for i in range(0, len(params), 100):
                    part = params[i : i + 100]
                    retrying(partial(self.client.log_batch, self.run_id, params=part))
            elif kind == "tags":
                named = {**data, "mlflow.runName": self.name} if "mlflow.runName" in data else data
                tags = [RunTag(str(k), str(v)[:5000]) for k, v in named.items()]
                retrying(partial(self.client.log_batch, self.run_id, tags=tags))
            elif kind == "status":
                self._send_status(data, event["time"])
        flush(len(self.events))
        return sent

    def _send_status(self, status: str, time_ms: int) -> None:
        if status == "RUNNING":
            retrying(lambda: self.client.update_run(self.run_id, status=status))
        else:
            retrying(lambda: self.client.set_terminated(self.run_id, status=status, end_time=time_ms))

    def _send_artifacts(self) -> str:
        """Uploads files that are new or have changed. Their failure must not hold back the numbers."""
        sums = self.position.setdefault("artifacts", {})
        for path in dict.fromkeys(e["data"] for e in self.events if e["kind"] == "artifact"):
            local = RunFolder(self.folder).inside(path)  # a log from elsewhere may name any file
            if local is None:
                continue
            checksum = sha256_of(local)
            if sums.get(path) == checksum:
                continue
            try:
                self.client.log_artifact(self.run_id, str(local), _parent(Path(path).parent.as_posix()))
            except Exception as error:
                return f"MLflow at {shown(self.uri)} took the numbers but not {path}: {first_line(error)}"
            sums[path] = checksum
        return ""

    def _read_back(self, experiment_id: str) -> str:
        """What a finished run has on a server is what it was sent; what is missing is sent again. In between may be who answers
        everything with ``{}``, which is also MLflow's own answer to numbers.

        Returns:
            What is wrong, for people; empty: nothing.
        """
        status = next((e["data"] for e in reversed(self.events) if e["kind"] == "status"), "RUNNING")
        if not self.remote or status == "RUNNING" or self.position.get("read_back") == len(self.events):
            return ""
        missing = ""
        for _ in range(2):
            run = self._the_one(experiment_id, self.run_id)
            if run is None or run.info.run_id != self.run_id:
                raise SendingFailed(no_answer(self.uri))
            known = self._known_points(run)
            missing = self._missing(run, known, status)
            if not missing:
                self.position["read_back"] = len(self.events)
                return ""
            self.position["events"] = 0
            self._send_events(known)
            problem = self._send_artifacts()
            if problem:
                return problem
        return f"MLflow at {shown(self.uri)} does not have what it was sent ({missing})"

    def _missing(self, run: Any, known: set[tuple[str, int, int]], status: str) -> str:
        """What the run of this log does not have, in a few words; files that are missing are to be sent again."""
        sent = {(key, step, time) for e in self.events if e["kind"] == "metrics" for key, _, time, step in _points(e)}
        params = {_name(key) for e in self.events if e["kind"] == "params" for key in e["data"]}
        sums = self.position.setdefault("artifacts", {})
        parents = {Path(path).parent.as_posix() for path in sums}
        there = {file.path for parent in parents for file in self.client.list_artifacts(run.info.run_id, _parent(parent))}
        files = [path for path in sums if path not in there]
        for path in files:
            del sums[path]
        found = {
            "points": len(sent - known),
            "settings": len(params - run.data.params.keys()),
            "tags": len(self.tags.keys() - run.data.tags.keys()),
            "files": len(files),
        }
        words = [f"{n} {what}" for what, n in found.items() if n]
        return ", ".join([*words, *(["its status"] if run.info.status != status else [])])

    def _save(self) -> None:
        atomic_write_json(RunFolder(self.folder).sent, self.positions)


def _read_positions(folder: Path) -> dict[str, dict[str, Any]]:
    """A damaged or missing position file only means that the store is asked what it has."""
    try:
        positions = read_json(RunFolder(folder).sent)
    except UserError:
        return {}
    return positions if isinstance(positions, dict) and all(isinstance(v, dict) for v in positions.values()) else {}


def _points(event: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """(key, value, time, step) of what is sent of a metrics event."""
    named = ((_name(key), value) for key, value in event["data"].items())
    return [(key, value, event["time"], event["step"]) for key, value in named if value is not None]


def _parent(folder: str) -> str | None:
    """A folder of artifacts as MLflow wants it."""
    return None if folder == "." else folder


def _or_none(look: Callable[[], Any]) -> Any:
    """What a look-up behind a failure finds; None where it fails as well."""
    try:
        return look()
    except Exception:
        return None


def _folder_of(experiment: str) -> str:
    """The name of a folder in ``mlruns`` for what an experiment is called, whatever that is: never a path."""
    name = quote(experiment, safe=" ")
    inside = name.strip(" .")
    if inside == name and 0 < len(name) <= 120:
        return name
    return f"{inside[:80]}-{sha256_of(experiment.encode())[:12]}".lstrip("-")


def _name(key: str) -> str:
    """A key that MLflow accepts: letters, digits and `_-. :/`, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def send_note(markdown: str, experiment_id: str, uri: str | None = None) -> Sent:
    """Shows `markdown` on the page of an MLflow experiment, unless a person has written a note there."""
    try:
        uri = uri or default_uri()
        check_alive(uri)
        with store_lock(uri):
            client = client_of(uri)
            found = client.get_experiment(experiment_id)
            if found.experiment_id != experiment_id:
                raise SendingFailed(no_answer(uri))
            old = found.tags.get("mlflow.note.content", "")
            if old and _NOTE_MARK not in old:
                return Sent(True)
            text = f"{markdown}\n{_NOTE_MARK}"
            if text != old:
                retrying(lambda: client.set_experiment_tag(experiment_id, "mlflow.note.content", text[:19_000]))
        return Sent(True, uri=uri, experiment_id=experiment_id)
    except SendingFailed as error:
        return Sent(False, str(error), uri=uri or "")
    except Exception as error:
        return Sent(False, refusal(error, uri), uri=uri or "")


def chart_address(uri: str, experiment_id: str, view: str = RUNS_VIEW) -> str:
    """The exact address of the page on which an experiment's charts are (MLflow opens elsewhere by itself).

    `view`: RUNS_VIEW shows every run in its method's colour, METHODS_VIEW the means over a method's runs.
    """
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={view}"
    return f"{shown(server)}/#/experiments/{experiment_id}/runs?{query}"


def how_to_look(uri: str, experiment_id: str, view: str = RUNS_VIEW) -> str:
    """What a person does to see the charts: the command for a local store, and the address."""
    address = chart_address(uri, experiment_id, view)
    table = f"\nTable: {address.replace('compareRunsMode=CHART&', '')}"
    if uri.startswith(("http://", "https://")):
        return f"Charts: {address}{table}"
    try:
        is_default = "MLFLOW_TRACKING_URI" not in os.environ and store_key(default_uri()) == store_key(uri)
    except Exception:
        is_default = False
    command = "mlflow ui" if is_default else f"mlflow ui --backend-store-uri '{shown(uri)}'"
    return f"Charts: run `{command}`{' here' if is_default else ''}, then open {address}{table}"
