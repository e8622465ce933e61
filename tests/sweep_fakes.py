"""Sweeps for tests: files over the small experiments of ``run_fakes``, starts of the command, and what the storage holds then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from run_fakes import environment, small

RATE = "methods.softcot.strategy.learning_rate"


def experiment(*methods: str, **changes: Any) -> dict[str, Any]:
    """An experiment of a second a trial."""
    settings = {
        "train": {"steps": 2, "examples": 8},
        "evaluate": {"test": 4, "retention": 2, "drift": 2, "max_new_tokens": 4, "bootstrap": 5},
    }
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    return small(*(methods or ("softcot",)), **settings)


def sweep(**changes: Any) -> dict[str, Any]:
    """A sweep of the learning rate over the experiment in ``base.yaml``."""
    data: dict[str, Any] = {
        "experiment": "base.yaml",
        "space": {RATE: {"low": 1e-3, "high": 1e-1, "log": True}},
        "objectives": {"summary.acc": "maximize"},
        "select_on": "whole_stream",
        "trials": 3,
        "sampler": {"name": "random"},
        "storage": {"kind": "sqlite", "heartbeat_seconds": 0.5, "grace_seconds": 3.0},
    }
    return {**data, **changes}


def one_at_a_time(**changes: Any) -> dict[str, Any]:
    """The same with one trial at a time in a worker, so that what happens to a worker happens to one trial."""
    return sweep(**{"side_by_side": 1, **changes})


def write(folder: Path, data: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> Path:
    """``base.yaml`` and ``s.yaml`` in a folder; returns the latter."""
    (folder / "base.yaml").write_text(yaml.safe_dump(base or experiment(), sort_keys=False))
    (folder / "s.yaml").write_text(yaml.safe_dump(data or sweep(), sort_keys=False))
    return folder / "s.yaml"


def arguments(*args: Any) -> list[str]:
    return [sys.executable, "-m", "cl_softcot.sweep", *map(str, args)]


def command(*args: Any, cwd: Path, timeout: float = 600, **env: str) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run(arguments(*args), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout)


def spawn(*args: Any, cwd: Path, log: str = "spawned.log", **env: str) -> subprocess.Popen:
    """The command in the background, its output in a file."""
    with open(cwd / log, "ab") as file:
        return subprocess.Popen(
            arguments(*args), cwd=cwd, env=environment(**env), stdout=file, stderr=file, start_new_session=True
        )


def searches(folder: Path) -> list[Any]:
    """The searches of a sweep's folder, as a worker would open them."""
    from cl_softcot.sweep.folder import existing, find

    return find(existing(str(folder)))


def states(folder: Path) -> dict[int, str]:
    """State by trial."""
    return {r.number: r.state for search in searches(folder) for r in search.records()}


def until(true: Callable[[], Any], what: str = "", lives: Callable[[], Any] = lambda: True) -> Any:
    """Waits for something that has to come while something else lives, however slow the machine is.

    The errors of a storage that is just being made or away do not count. What lives for ever and does nothing is ended by
    pytest's own limit.
    """
    last = None
    while True:
        alive = lives()  # asked first: what came with its end counts
        try:
            found = true()
            if found:
                return found
        except Exception as error:
            last = error
        assert alive, f"it ended before {what or true} ({last!r})"
        time.sleep(0.1)


def held(base: dict[str, Any]) -> dict[str, Any]:
    """The experiment with a strategy that waits behind the first experience (see ``held.py``)."""
    base["methods"][0]["strategy"] = "held:Held"
    return base


class Hold:
    """The file at which ``held`` trials wait, in the environment of all that the test starts."""

    def __init__(self, folder: Path, monkeypatch: Any):
        import held

        self.file = folder / "hold"
        self.file.touch()
        monkeypatch.setenv(held.FILE, str(self.file))
        path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    def release(self) -> None:
        self.file.unlink(missing_ok=True)

    def again(self) -> None:
        self.file.touch()


def mid_trial(folder: Path, lives: Callable[[], Any] = lambda: True) -> tuple[int, int]:
    """(trial, process) of one that has finished an experience and goes on."""

    def found():
        return [(n, pid) for n, pid in running(folder).items() if len(rows(folder, n)) >= 2]

    return until(found, "a trial was in its middle", lives)[0]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def running(folder: Path) -> dict[int, int]:
    """Living process by trial, of the trials that are being run now."""
    found = {}
    for record in (r for search in searches(folder) for r in search.records()):
        beat = record.last.user_attrs.get("beat")
        if record.state == "running" and beat and alive(beat["pid"]):
            found[record.number] = beat["pid"]
    return found


def rows(folder: Path, trial: int) -> list[Path]:
    return sorted((folder / "trials" / str(trial)).glob("runs/*/rows/row_*.json"))


def trial_results(folder: Path) -> dict[int, list[Any]]:
    """The results on the disk, by trial."""
    from cl_softcot.results import kept

    found: dict[int, list[Any]] = {}
    for path in sorted((folder / "trials").glob("*/runs/*/result.json")):
        found.setdefault(int(path.parts[-4]), []).append(kept.record(path.parent))
    return found


def assert_sound(folder: Path, complete: int) -> None:
    """So many complete trials, each once, each with its result on the disk, and the values that follow from that."""
    from cl_softcot.sweep.worker import judge

    results = trial_results(folder)
    for search in searches(folder):
        found = search.records()
        done = [r for r in found if r.state == "complete"]
        assert len(done) == complete, [(r.number, r.state) for r in found]
        assert not [r for r in found if r.state in ("running", "waiting", "interrupted")]
        for record in found:
            trials = [t for t in search.study.get_trials() if t.user_attrs.get("attempt_of", t.number) == record.number]
            assert sum(t.state.name == "COMPLETE" for t in trials) == (record.state == "complete")
            assert all(t.state.name == "FAIL" for t in trials if t.number != record.last.number)
        for record in done:
            assert list(judge(search.plan, results[record.number]).values()) == record.last.values
            config = json.loads((results[record.number][0].folder / "config.json").read_text())
            for key, value in record.params.items():
                assert _at(config, key) == value, key


def _at(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key in what a run says that it was made with."""
    section, *path = key.split(".")
    here: Any = config["method"] if section == "methods" else config["experiment"][section]
    for part in path[1:] if section == "methods" else path:
        here = here[part]
    return here
