"""Kills the spawned command at random moments and starts it again: ``python tools/kill_test.py --points 40 --seed 0``.

Each trial kills ``python -m cl_softcot.run`` up to four times (its whole process group, one worker, or the parent alone; SIGKILL,
SIGTERM or SIGINT), lets a last start come to its end, and compares the folder with one that was never disturbed: every number,
answer and weight to the bit, and beside them logs, MLflow, checksums, temporary files and locks. Further trials are of two starts
on one folder and of two experiments that share a new cache, of which one is killed. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WHO = ("whole group", "one worker", "parent only")
EXPERIMENT: dict[str, Any] = {
    "name": "killed",
    "backbone": "builtin:tiny",
    "assistant": "builtin:tiny-assistant",
    "tasks": [
        {"name": "fees", "task": "arithmetic", "convention": "fee", "events": [1, 2]},
        {"name": "zero_based", "task": "lists", "convention": "from_zero", "events": [1, 2]},
    ],
    "train": {"examples": 16, "steps": 4, "global_batch_size": 4, "checkpoint_every_steps": 1},
    "evaluate": {"test": 4, "retention": 2, "drift": 2, "max_new_tokens": 24, "bootstrap": 20},
    "methods": [
        {
            "name": "full_coconut",
            "reasoning": {"name": "coconut", "max_stage": 1},
            "strategy": "full_finetune",
            "plugins": [{"name": "replay", "mem_size": 8}],
        },
        {"name": "softcot_nearest", "reasoning": "softcot", "strategy": "frozen_backbone", "per_task": {"routing": "nearest"}},
    ],
}

# ----------------------------------------------------------------------------------------------------- starts and kills


@dataclass
class Place:
    """Where one experiment goes: its folder, MLflow's store, the cache and what the command said."""

    folder: Path
    mlflow: bool
    cache: Path
    jobs: int = 1

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")

    def start(self) -> subprocess.Popen:
        """The command, leader of its own process group. A shell in the background may have switched SIGINT off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder.parent / "killed.yaml"
        arguments = [path, "output_dir=out", f"tracking.mlflow={str(self.mlflow).lower()}", "--jobs", self.jobs]
        known = {
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": self.store,
            "CL_SOFTCOT_CACHE": str(self.cache),
            "COLUMNS": "200",
        }
        with open(self.folder / "said.txt", "ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "cl_softcot.run", *map(str, arguments)],
                cwd=self.folder,
                env={**os.environ, **known},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_for(self, process: subprocess.Popen, path: str) -> None:
        """Until a file is there, or the command has ended."""
        while process.poll() is None and not (self.out / path).exists():
            time.sleep(0.02)


def group(leader: int) -> list[int]:
    """The processes of a group that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def workers(leader: int) -> list[int]:
    def is_worker(pid: int) -> bool:
        try:
            return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return [pid for pid in group(leader) if pid != leader and is_worker(pid)]


def kill(process: subprocess.Popen, who: str, what: signal.Signals, rng: random.Random) -> None:
    if who == "whole group":
        os.killpg(process.pid, what)
        return
    found = workers(process.pid) if who == "one worker" else []
    os.kill(rng.choice(found) if found else process.pid, what)


def ended(process: subprocess.Popen) -> int:
    """The exit status, once nothing of the group lives any more."""
    status = process.wait(300)
    end = time.monotonic() + 60
    while left := group(process.pid):
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"processes outlived the command: {left}")
        time.sleep(0.05)
    return status


# ---------------------------------------------------------------------------------------------------------- comparisons

_CLOCK = re.compile(r"seconds|peak_memory_mb|^(finished|revision|versions|machine|stamp|tensors_sha256|state_sha256)$")
_OF_A_START = {".lock", ".mlflow.lock", "mlflow.json", "events.jsonl", "experiment.json", "config.yaml", "SHA256SUMS"}
_LEFT = re.compile(r".*\.tmp|\.tmp\w{6}|.*\.damaged")


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(inside) for key, inside in value.items() if not _CLOCK.search(key)}
    return [without_clock(inside) for inside in value] if isinstance(value, list) else value


def differences(got: Place, expected: Place) -> list[str]:
    """What differs from the undisturbed folder, and what is damaged beside the numbers."""
    return [*_numbers(got.out, expected.out), *_files(got.out, expected.out), *_logs(got, expected), *_mlflow(got)]


def _numbers(got: Path, expected: Path) -> Iterator[str]:
    for path in sorted(expected.rglob("*")):
        name, other = path.relative_to(expected), got / path.relative_to(expected)
        if path.is_dir() or path.name in _OF_A_START or path.parent.name == "checkpoints":
            continue
        if not other.exists():
            yield f"missing: {name}"
        elif path.suffix == ".json":
            one, two = (without_clock(json.loads(p.read_text())) for p in (path, other))
            if one != two:
                yield f"numbers differ: {name}"
        elif path.suffix in (".jsonl", ".txt", ".html", ".yaml") and path.read_bytes() != other.read_bytes():
            if path.name != "table.txt":  # it shows seconds
                yield f"bytes differ: {name}"
    for run in sorted((expected / "runs").iterdir()):
        if _weights(run) != _weights(got / "runs" / run.name):
            yield f"weights differ: {run.name}"


def _weights(run: Path) -> dict[str, bytes]:
    from safetensors import safe_open

    found = sorted((run / "checkpoints").glob("*.safetensors"))
    if not found:
        return {}
    with safe_open(found[-1], framework="np") as opened:
        return {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118


def _files(got: Path, expected: Path) -> Iterator[str]:
    from cl_softcot.errors import UserError
    from cl_softcot.files import FolderLock
    from cl_softcot.results.checksums import Checksums

    known = {path.relative_to(expected) for path in expected.rglob("*")}
    for path in sorted(got.rglob("*")):
        name = path.relative_to(got)
        if _LEFT.fullmatch(path.name):
            yield f"left over: {name}"
        elif name not in known and "checkpoints" not in name.parts and path.name not in _OF_A_START:
            yield f"nobody's: {name}"
    for folder in (got / "shared", *sorted((got / "runs").iterdir())):
        yield from (f"not its checksum: {path.relative_to(got)}" for path in Checksums(folder).all_changed())
    try:
        with FolderLock(got):
            pass
    except UserError as error:
        yield f"still locked: {error}"


def _points(run: Path) -> Counter[tuple[int, str, float]]:
    from cl_softcot.results.events import read_events

    logged = [event for event in read_events(run) if event["kind"] == "metrics"]
    return Counter((event["step"], key, value) for event in logged for key, value in event["data"].items())


def _logs(got: Place, expected: Place) -> Iterator[str]:
    from cl_softcot.results import kept
    from cl_softcot.results.events import final_metrics, read_events

    for run in sorted((got.out / "runs").iterdir()):
        points, wanted = _points(run), _points(expected.out / "runs" / run.name)
        steps = Counter((step, key) for step, key, _ in points)
        yield from (f"logged twice: {run.name} {place}" for place, n in steps.items() if n > 1)
        if {p for p in points if not _CLOCK.search(p[1])} != {p for p in wanted if not _CLOCK.search(p[1])}:
            yield f"the log has other numbers: {run.name}"
        result = kept.record(run)
        final = final_metrics(result) if result else {}
        yield from (f"not the result's: {run.name} {k}" for k, v in final.items() if (0, k, float(v)) not in points)
        last = read_events(run)[-1]
        if last["data"] != "FINISHED":
            yield f"the log does not end: {run.name} {last['kind']}"


def _mlflow(got: Place) -> Iterator[str]:
    if not got.mlflow:
        return
    from cl_softcot.results.events import read_events
    from cl_softcot.track.mlflow import _name
    from cl_softcot.track.store import client_of

    client = client_of(got.store)
    experiment = client.get_experiment_by_name(EXPERIMENT["name"])
    there = client.search_runs([experiment.experiment_id]) if experiment else []
    for run in sorted((got.out / "runs").iterdir()):
        mine = [r for r in there if r.data.tags.get("cl_softcot.log") == read_events(run)[0]["data"]["id"]]
        if len(mine) != 1 or mine[0].info.status != "FINISHED":
            yield f"MLflow: {run.name} {[r.info.status for r in mine]}"
            continue
        history = [(k, p) for k in mine[0].data.metrics for p in client.get_metric_history(mine[0].info.run_id, k)]
        sent = Counter((p.step, key, p.value) for key, p in history)
        if sent != Counter((step, _name(key), value) for (step, key, value), n in _points(run).items() for _ in range(n)):
            yield f"MLflow has other points: {run.name}"
        if "result.json" not in {file.path for file in client.list_artifacts(mine[0].info.run_id)}:
            yield f"MLflow has no result: {run.name}"
    if len(there) != len(list((got.out / "runs").iterdir())):
        yield f"MLflow: {len(there)} runs"


# --------------------------------------------------------------------------------------------------------------- trials


@dataclass
class Trial:
    """What was done to one folder, and what was wrong with it in the end."""

    kind: str
    kills: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tracebacks: int = 0


class Tests:
    """Trials against one undisturbed folder, all in ``work``."""

    def __init__(self, work: Path, seed: int, mlflow: bool, experiment: dict[str, Any]):
        self.work, self.rng, self.mlflow = work, random.Random(seed), mlflow
        work.mkdir(parents=True, exist_ok=True)
        (work / "killed.yaml").write_text(json.dumps(experiment))
        self.database = work / "empty.db"
        if mlflow:
            from cl_softcot.track.store import client_of

            client_of(f"sqlite:///{self.database}").search_experiments()  # tables, which take seconds to make
        self.number = 0
        self.reference = self.place(work / "cache")
        process = self.reference.start()
        self.reference.wait_for(process, ".lock")
        began = time.monotonic()
        if ended(process):
            raise RuntimeError(self.reference.said)
        self.seconds = time.monotonic() - began  # from the folder's lock to the end

    def place(self, cache: Path | None = None) -> Place:
        """A new folder; each second one with a cache that is still empty, each third with two workers or with MLflow."""
        self.number += 1
        folder = self.work / f"trial_{self.number:03d}"
        cold = folder / "cache" if self.number % 2 else self.work / "cache"
        place = Place(folder, self.mlflow and self.number % 3 == 2, cache or cold, jobs=1 + (self.number % 3 == 0))
        folder.mkdir()
        if place.mlflow:
            shutil.copy(self.database, folder / "mlflow.db")
        return place

    def disturb(self, place: Place, trial: Trial) -> None:
        """One start that is killed at a random moment, if it does not come to its end before."""
        who, what = self.rng.choice(WHO), self.rng.choice(SIGNALS)
        after = self.rng.uniform(0, 0.7 * self.seconds)  # later starts have less to do
        process = place.start()
        place.wait_for(process, ".lock")
        end = time.monotonic() + after
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            kill(process, who, what, self.rng)
            trial.kills.append(f"{what.name} {who} after {after:.2f} s")
        if ended(process) not in (0, 1, 2, 130, -what):
            trial.problems.append(f"exit status {process.returncode}")

    def finish(self, place: Place, trial: Trial) -> Trial:
        """The last start, and the comparison. A folder in which nothing is wrong goes."""
        status = ended(place.start())
        trial.tracebacks += place.said.count("Traceback")
        if status:
            trial.problems.append(f"the last start ended with {status}: {place.said[-600:]}")
        else:
            trial.problems += differences(place, self.reference)
        if not trial.problems:
            shutil.rmtree(place.folder)
        return trial

    def killed(self, times: int) -> Trial:
        place, trial = self.place(), Trial("killed")
        for _ in range(times):
            self.disturb(place, trial)
        return self.finish(place, trial)

    def two_starts(self) -> Trial:
        """On one folder: the second is refused while the first works, and goes on when that was killed."""
        place, trial = self.place(), Trial("two starts on one folder")
        first = place.start()
        place.wait_for(first, ".lock")
        second = place.start()
        if (status := ended(second)) != 2 and first.poll() is None:
            trial.problems.append(f"the second start ended with {status} while the first was at work")
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            trial.kills.append("SIGKILL of the first")
        ended(first)
        return self.finish(place, trial)

    def two_on_a_cache(self) -> Trial:
        """Two experiments that fill one new cache at once, of which one is killed."""
        cache = self.work / f"shared_cache_{self.number}"
        one, two, trial = self.place(cache), self.place(cache), Trial("two runs on one cache")
        other = two.start()
        self.disturb(one, trial)
        if ended(other):
            trial.problems.append(f"the other ended: {two.said[-600:]}")
        else:
            trial.problems += [f"the other: {problem}" for problem in differences(two, self.reference)]
        self.finish(one, trial)
        trial.problems += [f"left over in the cache: {p.name}" for p in cache.rglob("*") if _LEFT.fullmatch(p.name)]
        return trial


def run(
    points: int,
    seed: int,
    work: Path,
    *,
    pairs: int,
    mlflow: bool = True,
    experiment: dict[str, Any] = EXPERIMENT,
    tell: Callable[[str], None] = print,
) -> list[Trial]:
    """All trials: ``points`` kills, some a folder, and ``pairs`` of either kind of two starts."""
    tests = Tests(work, seed, mlflow, experiment)
    tell(f"undisturbed: {tests.seconds:.1f} s from the folder's lock to the end")
    trials: list[Trial] = []

    def note(trial: Trial) -> None:
        trials.append(trial)
        tell(f"{len(trials)} {trial.kind}: {'; '.join(trial.kills) or 'not reached'}: {trial.problems or 'the same'}")

    while (left := points - sum(len(t.kills) for t in trials)) > 0:
        note(tests.killed(min(left, tests.rng.choice((2, 3, 4)))))
    for _ in range(pairs):
        note(tests.two_starts())
        note(tests.two_on_a_cache())
    return trials


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, default=40, help="kills at random moments")
    parser.add_argument("--pairs", type=int, default=3, help="of two starts on one folder, and of two runs on one cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-mlflow", action="store_true", help="without a store of MLflow's")
    parser.add_argument("--work", type=Path, help="a new folder to work in; what failed stays there (default: a temporary one)")
    options = parser.parse_args(argv)
    work = options.work or Path(tempfile.mkdtemp(prefix="cl_softcot_kill_test_"))
    tell = lambda text: print(text, flush=True)  # noqa: E731
    trials = run(options.points, options.seed, work.resolve(), pairs=options.pairs, mlflow=not options.no_mlflow, tell=tell)
    bad = [trial for trial in trials if trial.problems]
    kinds = Counter(kill.split(" after")[0] for trial in trials for kill in trial.kills)
    tell(f"{sum(kinds.values())} kills in {len(trials)} folders: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")
    tell(f"folders that differ: {len(bad)}; tracebacks shown: {sum(trial.tracebacks for trial in trials)}")
    if not bad and not options.work:
        shutil.rmtree(work)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
