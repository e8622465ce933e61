"""Sends the event logs of runs to MLflow: later, again, or not at all, without ever losing or doubling a number.

The log on the disk is the truth, MLflow a view of it. A position file in the run folder remembers, per store,
what was sent. Where it is lost, or a sender died between sending and remembering, sending again changes
nothing: the run is found by a tag, the timestamps come from the log, and points that are there are skipped.

Runs are flat and tied together by tags (experiment, sequence, method, order, seed), since MLflow leaves nested
runs out of its charts. No function here raises because of MLflow: a `Report` says what happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, read_json, sha256_of, waiting_lock
from cl_softcot.trackers.event_log import read_events

POSITION_FILE = "mlflow.json"
BATCH = 500  # MLflow takes 1000 metrics a call; half of that stays far below its limit of 1 MB
PROBE_SECONDS = 3.0
LOCK_SECONDS = 600.0  # MLflow makes a new database in seconds, but in minutes on a machine that is busy
# By default one call to a dead server blocks for four minutes. What a user sets wins.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves this machine that was not asked for
    "MLFLOW_DISABLE_AGENT_HINT": "true",
}
# Views of an experiment's runs, kept in tags of the experiment, which a link can name (they are MLflow's own
# "share" links). By itself MLflow shows ten runs, the newest first, and no seeds together.
_VIEW_TAG = "mlflow.sharedViewState."
RUNS_VIEW, METHODS_VIEW = "runs", "methods"
_IN_ORDER = {"runsHiddenMode": "SHOW_ALL", "orderByKey": "attributes.start_time", "orderByAsc": True}
_BY_METHOD = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": tag} for tag in ("method", "order")]}
_VIEWS = {RUNS_VIEW: _IN_ORDER, METHODS_VIEW: {**_IN_ORDER, "groupBy": _BY_METHOD}}
_NOTE_MARK = "<!-- cl_softcot: replaced at the end of every run -->"


@dataclass(frozen=True)
class Report:
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


class _Failed(Exception):
    """Something about MLflow that a person should read; becomes a `Report`."""


# --- sending one run -------------------------------------------------------------------------------------


def sync(run_folder: str | Path, uri: str | None = None, experiment: str | None = None) -> Report:
    """Sends what the log of a run has and the store has not; any number of times, from any process.

    Args:
        uri: the store; None for the one that `mlflow ui` opens in this folder, or MLFLOW_TRACKING_URI.
        experiment: MLflow's experiment; None for the one that the run's tags name.
    """
    folder = Path(run_folder)
    try:
        events = read_events(folder)
    except UserError as error:
        return Report(False, str(error))
    if not events:
        return Report(False, f"{folder} has no event log, so there is nothing to send")
    try:
        uri = uri or default_uri()
        with _file_lock(folder / ".mlflow.lock"):  # a person may send while the run itself does
            _check_alive(uri)
            with _store_lock(uri):
                return _Sending(folder, uri, events, experiment).run()
    except _Failed as error:
        return Report(False, str(error), uri=uri or "")
    except Exception as error:  # MLflow's own errors are of many kinds, and none may stop a run
        return Report(False, f"MLflow at {shown(uri)} refused: {_first_line(error)}", uri=uri or "")


class _Sending:
    """One attempt: finds or creates the run, then sends in the order of the log."""

    def __init__(self, folder: Path, uri: str, events: list[dict[str, Any]], experiment: str | None):
        self.folder, self.uri, self.events = folder, uri, events
        self.tags: dict[str, str] = {}
        for event in events:
            if event["kind"] == "tags":
                self.tags.update(event["data"])
        self.experiment = (
            experiment or self.tags.get("cl_softcot.mlflow_experiment") or self.tags.get("experiment") or "cl_softcot"
        )
        self.log_id = next((e["data"]["id"] for e in events if e["kind"] == "log"), sha256_of(str(folder).encode())[:12])
        self.client = _client(uri)
        self.positions = _read_positions(folder)
        self.position = self.positions.setdefault(_store_key(uri, self.experiment), {})
        self.replaced = 0

    def run(self) -> Report:
        experiment_id = _retrying(self._experiment)
        existing = _retrying(lambda: self._find_run(experiment_id))
        known: set[tuple[str, int, int]] = set()
        if existing is None:
            self._start(experiment_id)
        elif self.position.get("run_id") != existing.info.run_id:
            # Found by its tag alone: how much of it arrived is known only there.
            known = self._known_points(existing)
            self.position.clear()
            self.position.update(experiment_id=experiment_id, run_id=existing.info.run_id, events=0, artifacts={})
        self.run_id = self.position["run_id"]
        sent = self._send_events(known)
        problem = self._send_artifacts()
        self._save()
        notes = [problem] if problem else []
        if self.replaced:
            notes.append(f"{self.folder.name}: the run of an earlier start of this folder is in MLflow's trash now")
        return Report(not problem, "; ".join(notes), sent, self.uri, experiment_id, self.run_id)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return self._create_experiment()
        if found.lifecycle_stage == "deleted":
            raise _Failed(
                f"MLflow's experiment {self.experiment!r} was deleted there; restore it with `mlflow experiments "
                f"restore -x {found.experiment_id}` or name another with tracking.experiment=NAME"
            )
        for name, state in _VIEWS.items():
            if _VIEW_TAG + name not in found.tags:  # a view that a person has changed stays as it is
                self.client.set_experiment_tag(found.experiment_id, _VIEW_TAG + name, json.dumps(state))
        return found.experiment_id

    def _create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        path = _sqlite_path(self.uri)
        # Artifacts go beside the database; MLflow would put them where this process happens to run.
        place = None if path is None else (path.parent / "mlruns" / quote(self.experiment, safe=" ")).as_uri()
        try:
            views = {_VIEW_TAG + name: json.dumps(state) for name, state in _VIEWS.items()}
            return self.client.create_experiment(self.experiment, artifact_location=place, tags=views)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.client.get_experiment_by_name(self.experiment).experiment_id  # another was faster

    def _find_run(self, experiment_id: str) -> Any:
        """The run of this log; None if it is not there (any more)."""
        from mlflow.exceptions import MlflowException

        if self.position.get("run_id"):
            try:
                run = self.client.get_run(self.position["run_id"])
                if run.info.lifecycle_stage == "active" and run.data.tags.get("cl_softcot.log") == self.log_id:
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self.client.search_runs([experiment_id], f"tags.`cl_softcot.log` = '{self.log_id}'", max_results=1)
        return found[0] if found else None

    def _start(self, experiment_id: str) -> None:
        self._trash_earlier_starts(experiment_id)
        tags = {**self.tags, "cl_softcot.log": self.log_id, "cl_softcot.folder": self._place()}
        name = tags.get("mlflow.runName", self.folder.name)
        run = _retrying(
            lambda: self.client.create_run(experiment_id, start_time=self.events[0]["time"], tags=tags, run_name=name)
        )
        self.position.clear()
        self.position.update(experiment_id=experiment_id, run_id=run.info.run_id, events=0, artifacts={})
        self._save()

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
                _retrying(lambda part=part: self.client.log_batch(self.run_id, metrics=part))
                sent += len(part)
            metrics.clear()
            self.position["events"] = upto
            self._save()

        for number, event in enumerate(self.events[start:], start=start):
            kind, data = event["kind"], event["data"]
            if kind == "metrics":
                metrics += [
                    Metric(key, value, event["time"], event["step"])
                    for key, value in ((_name(k), v) for k, v in data.items())
                    if value is not None and (key, event["step"], event["time"]) not in known
                ]
                if len(metrics) >= BATCH:
                    flush(number + 1)
            elif kind == "params":
                params = [Param(_name(k), str(v)[:6000]) for k, v in data.items()]
                for i in range(0, len(params), 100):
                    part = params[i : i + 100]
                    _retrying(lambda part=part: self.client.log_batch(self.run_id, params=part))
            elif kind == "tags":
                tags = [RunTag(str(k), str(v)[:5000]) for k, v in data.items()]
                _retrying(lambda tags=tags: self.client.log_batch(self.run_id, tags=tags))
            elif kind == "status":
                self._send_status(data, event["time"])
        flush(len(self.events))
        return sent

    def _send_status(self, status: str, time_ms: int) -> None:
        if status == "RUNNING":
            _retrying(lambda: self.client.update_run(self.run_id, status=status))
        else:
            _retrying(lambda: self.client.set_terminated(self.run_id, status=status, end_time=time_ms))

    def _send_artifacts(self) -> str:
        """Uploads files that are new or have changed. Their failure must not hold back the numbers."""
        sums = self.position.setdefault("artifacts", {})
        for path in dict.fromkeys(e["data"] for e in self.events if e["kind"] == "artifact"):
            local = self.folder / path
            if not local.is_file():
                continue
            checksum = sha256_of(local)
            if sums.get(path) == checksum:
                continue
            parent = Path(path).parent.as_posix()
            try:
                self.client.log_artifact(self.run_id, str(local), None if parent == "." else parent)
            except Exception as error:
                return f"MLflow at {shown(self.uri)} took the numbers but not {path}: {_first_line(error)}"
            sums[path] = checksum
        return ""

    def _save(self) -> None:
        atomic_write_json(self.folder / POSITION_FILE, self.positions)


def _read_positions(folder: Path) -> dict[str, dict[str, Any]]:
    """A damaged or missing position file only means that the store is asked what it has."""
    try:
        positions = read_json(folder / POSITION_FILE)
    except UserError:
        return {}
    return positions if isinstance(positions, dict) and all(isinstance(v, dict) for v in positions.values()) else {}


def _name(key: str) -> str:
    """A key that MLflow accepts: letters, digits and `_-. :/`, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def send_note(markdown: str, experiment_id: str, uri: str | None = None) -> Report:
    """Shows `markdown` on the page of an MLflow experiment, unless a person has written a note there."""
    try:
        uri = uri or default_uri()
        _check_alive(uri)
        with _store_lock(uri):
            client = _client(uri)
            old = client.get_experiment(experiment_id).tags.get("mlflow.note.content", "")
            if old and _NOTE_MARK not in old:
                return Report(True)
            text = f"{markdown}\n{_NOTE_MARK}"
            if text != old:
                _retrying(lambda: client.set_experiment_tag(experiment_id, "mlflow.note.content", text[:19_000]))
        return Report(True, uri=uri, experiment_id=experiment_id)
    except _Failed as error:
        return Report(False, str(error), uri=uri or "")
    except Exception as error:
        return Report(False, f"MLflow at {shown(uri)} refused: {_first_line(error)}", uri=uri or "")


# --- the store -------------------------------------------------------------------------------------------


def default_uri() -> str:
    """The store that `mlflow ui` opens without arguments in this folder, unless MLFLOW_TRACKING_URI names one."""
    return _mlflow().get_tracking_uri()


def shown(uri: str | None) -> str:
    """The address without user name and password, for messages."""
    parts = urlsplit(uri or "its default store")
    if "@" not in parts.netloc:
        return uri or "its default store"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


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
    if uri.startswith(("http://", "https://")):
        return f"Charts: {address}"
    try:
        is_default = "MLFLOW_TRACKING_URI" not in os.environ and _store_key(default_uri()) == _store_key(uri)
    except Exception:
        is_default = False
    command = "mlflow ui" if is_default else f"mlflow ui --backend-store-uri '{shown(uri)}'"
    return f"Charts: run `{command}`{' here' if is_default else ''}, then open {address}"


def _mlflow() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Its tracebacks and migration notes would run across the progress bars. After the import, which sets levels.
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return mlflow


def _client(uri: str) -> Any:
    return _mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)


def _sqlite_path(uri: str) -> Path | None:
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(match[1])).absolute() if match and match[1] else None


def _store_key(uri: str, experiment: str | None = None) -> str:
    path = _sqlite_path(uri)
    store = f"sqlite:///{path}" if path else shown(uri).rstrip("/")
    return store if experiment is None else f"{store} {experiment}"


def _check_alive(uri: str) -> None:
    """Finds out in seconds, not minutes, that a store cannot be reached.

    Raises:
        _Failed: with a message for people.
    """
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            return  # something answers; what it makes of us is the client's business
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):
                raise _Failed(f"MLflow at {shown(uri)} does not answer ({_first_line(error.reason)})") from None
        except TimeoutError:
            raise _Failed(f"MLflow at {shown(uri)} does not answer (nothing came for {PROBE_SECONDS:g} s)") from None
        except Exception as error:
            raise _Failed(f"MLflow at {shown(uri)} does not answer ({_first_line(error)})") from None
    path = _sqlite_path(uri)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=PROBE_SECONDS)
            try:
                connection.execute("PRAGMA schema_version")
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                return  # by another writer, for whom the lock of the store waits
            raise _Failed(f"MLflow's database {path} cannot be opened ({_first_line(error)})") from None


@contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    """One writer at a time on a local database: SQLite takes no more, and two that create its tables crash."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with _file_lock(Path(tempfile.gettempdir()) / f"cl_softcot-{os.getuid()}-{digest}.lock"):
        yield


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Waits until nobody else sends."""
    with ExitStack() as stack:
        try:
            stack.enter_context(waiting_lock(path, LOCK_SECONDS))
        except UserError as error:
            raise _Failed(str(error)) from None
        yield


def _retrying(call: Callable[[], Any], attempts: int = 5) -> Any:
    """Repeats a call that met a locked database (`mlflow ui` reads while we write)."""
    for attempt in range(attempts):
        try:
            return call()
        except Exception as error:
            if "locked" not in str(error).lower() or attempt == attempts - 1:
                raise
            time.sleep(0.2 * 2**attempt)


def _first_line(error: object) -> str:
    """What an error says, in one line of bearable length."""
    text = str(error).strip() or type(error).__name__
    reason = re.search(r"\[Errno -?\d+\] ([^')]+)", text)  # the end of urllib3's long stories
    line = reason[1] if reason else text.splitlines()[0]
    return line if len(line) <= 200 else line[:197] + "..."


# --- in the background -----------------------------------------------------------------------------------


@dataclass
class _State:
    waiting: dict[Path, None] = field(default_factory=dict)  # an ordered set
    reports: dict[Path, Report] = field(default_factory=dict)


class MLflowSender:
    """Sends in a thread while the work goes on; a dead or slow server costs the work nothing.

    `poke(run_folder)` says that its log has grown. After a failure the sender waits longer and longer, tells
    it once, and goes on trying; `close` makes one last attempt within its time.

    Args:
        uri: see `sync`.
        experiment: see `sync`.
        say: gets each message for people, e.g. `ProgressDisplay.say`.
    """

    def __init__(
        self,
        uri: str | None = None,
        experiment: str | None = None,
        *,
        say: Callable[[str], None] | None = None,
        pause: float = 1.0,
    ):
        self._uri, self._experiment, self._say, self._pause = uri, experiment, say or (lambda text: None), pause
        self._state, self._lock = _State(), threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._told: str | None = None
        self._delay = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)  # never holds up the exit
        self._thread.start()

    def poke(self, run_folder: str | Path) -> None:
        """There is something new in this run's log. Returns at once."""
        with self._lock:
            self._state.waiting[Path(run_folder)] = None
        self._wake.set()

    def close(self, timeout: float = 30.0) -> list[Path]:
        """Sends what is left, for at most `timeout` seconds.

        Returns:
            The run folders that were not sent completely; `python -m cl_softcot.track` sends them later.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)
        with self._lock:
            return list(self._state.waiting)

    @property
    def last(self) -> Report | None:
        """The last successful report, which knows the store and the experiment's id; None if there is none."""
        with self._lock:
            good = [report for report in self._state.reports.values() if report.experiment_id]
        return good[-1] if good else None

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            if not closing:
                self._closing.wait(self._pause + self._delay)  # several small appends become one batch
            self._send_all()
            if closing:
                return
            if self._closing.is_set() or (self._delay and self._has_waiting()):
                self._wake.set()

    def _has_waiting(self) -> bool:
        with self._lock:
            return bool(self._state.waiting)

    def _send_all(self) -> None:
        with self._lock:
            folders = list(self._state.waiting)
        for folder in folders:
            with self._lock:
                self._state.waiting.pop(folder, None)  # before sending: what is logged meanwhile pokes again
            report = sync(folder, self._uri, self._experiment)
            with self._lock:
                if report.ok or report.experiment_id:
                    self._state.reports[folder] = report
                if not report.ok:
                    self._state.waiting[folder] = None
            self._tell(report)
            if not report.ok:
                self._delay = min(max(2 * self._delay, 10.0), 120.0)
                return  # the next run would meet the same closed door
            self._delay = 0.0

    def _tell(self, report: Report) -> None:
        if report.ok:
            if self._told:
                self._say("MLflow takes numbers again.")
            self._told = None
            if report.message:
                self._say(report.message)
        elif report.message != self._told:
            self._told = report.message
            self._say(f"{report.message}. The run goes on and its numbers are safe in its folder.")


def later(folders: Mapping[Path, Any] | list[Path] | Path) -> str:
    """The command that sends runs which were not sent."""
    places = [folders] if isinstance(folders, Path) else list(folders)
    return "Send them later with: python -m cl_softcot.track " + " ".join(_quoted(place) for place in places)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
