"""A thread that sends what runs log to MLflow, while they go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cl_softcot.track.mlflow import Sent, sync


@dataclass
class _State:
    waiting: dict[Path, None] = field(default_factory=dict)  # an ordered set
    reports: dict[Path, Sent] = field(default_factory=dict)


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
    def last(self) -> Sent | None:
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

    def _tell(self, report: Sent) -> None:
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
