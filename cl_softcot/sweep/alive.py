"""Which workers live: heartbeats, and trials whose worker died."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def beat(n: int) -> dict[str, Any]:
    """What a worker writes into its trial again and again, `n` counting."""
    return {"n": n, "machine": machine_name(), "host": os.uname().nodename, "pid": os.getpid(), "started": _started(os.getpid())}


def machine_name() -> str:
    """What tells processes with one table of ids from others: the machine's start and the container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a living process was started, in the kernel's ticks; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@dataclass
class _Seen:
    n: int
    looked: float
    silence: float = 0.0


class Watch:
    """Which running trials have lost their worker.

    A worker of this machine is dead when its process is gone: known at once. Others are judged by their beats, with the watcher's
    own clock: one is dead when its count has stood still over `grace` seconds of looking. Time in which nobody could look (the
    database was away) does not count, since nobody could beat then either.
    """

    def __init__(self, heartbeat: float, grace: float):
        self.heartbeat, self.grace = heartbeat, grace
        self._seen: dict[int, _Seen] = {}
        self._looking = threading.Lock()  # the hearts of several trials look, and no time may count twice

    def look(self, running: Iterable[Any]) -> None:
        with self._looking:
            now = time.monotonic()
            for trial in running:
                n = (trial.user_attrs.get("beat") or {"n": -1})["n"]
                seen = self._seen.get(trial.number)
                if seen is None or seen.n != n:
                    self._seen[trial.number] = _Seen(n, looked=now)
                else:
                    seen.silence += min(now - seen.looked, 2 * self.heartbeat)
                    seen.looked = now

    def is_dead(self, trial: Any) -> bool:
        written = trial.user_attrs.get("beat")
        if written and written["machine"] and written["machine"] == machine_name():
            return _started(written["pid"]) != written["started"]
        seen = self._seen.get(trial.number)
        return seen is not None and seen.silence > self.grace
