"""Experiments for the tests of the commands, and a way to start them cheaply and kill them at an exact moment.

``start`` forks ``python -m cl_softcot.run`` off a process that has imported everything already: the whole command runs, with
its real exit status and output, but its runs one after the other and in the same process, so that ``kill_at=(what, n)`` can end
it with SIGKILL at the n-th call of a function. ``launch`` forks several that find each other, as ``torchrun`` starts them. Real
worker processes are for ``command``, which takes seconds to import.

Run as a script this file is that process.
"""

from __future__ import annotations

import atexit
import copy
import fcntl
import functools
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LETTERS = [*"abcdefghijklmnop"]


# ------------------------------------------------------------------------------------------------- experiments


def local_rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Questions in words that the small random models know, no two the same."""
    rng, rows = random.Random(seed), {}
    while len(rows) < n:
        question = " ".join(rng.choice(LETTERS) for _ in range(rng.randint(4, 9))) + " ?"
        steps = [f"{rng.choice(LETTERS)} is {rng.choice(LETTERS)}" for _ in range(rng.randint(1, 3))]
        rows[question] = {"question": question, "steps": steps, "answer": rng.choice(LETTERS)}
    return list(rows.values())


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def models() -> Path:
    """A folder with two small random models, ``backbone`` and ``assistant``, and three files of data."""
    return _models(shared)  # while tests are collected nothing is shared yet


@functools.cache
def _models(_shared: Path | None) -> Path:
    from model_fakes import save_words_model

    def make(folder: Path) -> None:
        save_words_model(folder / "backbone", seed=3)
        save_words_model(folder / "assistant", width=16, seed=5)
        for seed, name in enumerate(("first", "second", "other")):
            write_jsonl(folder / f"{name}.jsonl", local_rows(240, seed))

    return made_once("models", make)


shared: Path | None = None  # a folder of all processes that run these tests; conftest sets it


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that whichever process asks first makes for all of them. Nobody writes into it afterwards."""
    if shared is None:
        folder = scratch(name)
        make(folder)
        return folder
    folder = shared / name
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            begun = shared / f"{name}_begun_by_{os.getpid()}"  # what fails on the way is not taken for made
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder


def scratch(name: str) -> Path:
    """A folder that lives as long as the tests."""
    folder = Path(tempfile.mkdtemp(prefix=f"cl_softcot_{name}_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


METHODS: dict[str, dict[str, Any]] = {
    "base_direct": {"reasoning": "direct", "strategy": "zero_shot"},
    "full_coconut": {"reasoning": {"name": "coconut", "max_stage": 1}, "strategy": "full_finetune"},
    "lora_replay": {
        "reasoning": "cot",
        "strategy": {"name": "lora", "rank": 2, "dropout": 0.1},
        "plugins": [{"name": "replay", "mem_size": 8}],
    },
    "softcot": {"reasoning": "softcot", "strategy": "frozen_backbone"},
    "softcot_oracle": {"reasoning": "softcot", "strategy": "frozen_backbone", "per_task": {"routing": "oracle"}},
    "lora_nearest": {"reasoning": "cot", "strategy": "lora", "per_task": {"routing": "nearest"}},
    "joint_lora": {"reasoning": "cot", "strategy": {"name": "joint", "of": {"name": "lora", "rank": 2, "dropout": 0.1}}},
    "single_softcot": {"reasoning": "softcot", "strategy": {"name": "single_task", "of": "frozen_backbone"}},
    "full_oracle": {"reasoning": "cot", "strategy": "full_finetune", "per_task": {"routing": "oracle"}},
}


def local_task(name: str, file: str | None = None) -> dict[str, Any]:
    return {"name": name, "task": "local_file", "path": str(models() / f"{file or name}.jsonl"), "family": file or name}


def small(*methods: str, **changes: Any) -> dict[str, Any]:
    """An experiment on small random models that takes a second a method. ``changes`` are merged one level deep."""
    data: dict[str, Any] = {
        "backbone": str(models() / "backbone"),
        "assistant": str(models() / "assistant"),
        "tasks": [local_task("first"), local_task("second")],
        "train": {"examples": 16, "steps": 6, "global_batch_size": 4, "checkpoint_every_steps": 2},
        "evaluate": {
            "test": 8,
            "retention": 6,
            "drift": 4,
            "max_new_tokens": 8,
            "bootstrap": 20,
            "retention_tasks": [local_task("kept", "first"), local_task("other")],
        },
        "tracking": {"mlflow": False},
        "methods": [{"name": name, **copy.deepcopy(METHODS[name])} for name in methods or ("full_coconut", "softcot_oracle")],
    }
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(data.get(key), dict) and isinstance(value, dict) else value
    return data


def tiny(*methods: str, **changes: Any) -> dict[str, Any]:
    """An experiment on the embedded models, as small as it can be."""
    data = small(*methods)
    data |= {"backbone": "builtin:tiny", "assistant": "builtin:tiny-assistant"}
    data["tasks"] = [
        {"name": "fees", "task": "arithmetic", "convention": "fee", "events": [1, 2]},
        {"name": "zero_based", "task": "lists", "convention": "from_zero", "events": [1, 2]},
    ]
    data["train"] |= {"steps": 4}
    data["evaluate"] |= {"retention": 2, "max_new_tokens": 48}
    del data["evaluate"]["retention_tasks"]
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(data.get(key), dict) and isinstance(value, dict) else value
    return data


def write(folder: Path, data: Any, name: str = "small.yaml") -> Path:
    """The experiment as a file; a text is written as it is."""
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return path


# ------------------------------------------------------------------------------------------------------ starts


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``status`` is negative for a signal, as in ``subprocess``."""

    status: int
    out: str
    err: str
    calls: int = 0  # of what ``kill_at`` counts

    @property
    def text(self) -> str:
        return self.out + self.err


def environment(**more: str) -> dict[str, str]:
    """For a command that runs outside of the checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def arguments(*args: Any) -> list[str]:
    return [sys.executable, "-m", "cl_softcot.run", *map(str, args)]


def command(*args: Any, cwd: Path, timeout: float = 600, **env: str) -> Ended:
    """``python -m cl_softcot.run`` in a process of its own, with worker processes."""
    done = subprocess.run(arguments(*args), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout)
    return Ended(done.returncode, done.stdout, done.stderr)


def start(
    *args: Any,
    cwd: Path,
    kill_at: tuple[str, int] | None = None,
    disk_full_at: int | None = None,
    env: dict[str, str] | None = None,
) -> Ended:
    """``python -m cl_softcot.run`` in a fork of a process that is warm (see the top of this file).

    Args:
        kill_at: ``("os:fsync", 12)`` ends it at the beginning of the 12th call; 0 only counts the calls.
        disk_full_at: from this call of fsync on the disk is full.
    """
    return _fork(args, cwd, kill_at=kill_at, disk_full_at=disk_full_at, env=env or {})


def launch(*args: Any, cwd: Path, processes: int = 2, script: Path | None = None) -> Ended:
    """The command, or a script, in several forks that share one run, on the CPU; the first that fails ends the others.

    What the launcher itself does, and a process that imports everything anew, are for ``torchrun``.
    """
    return _fork(args, cwd, processes=processes, script=script and str(script), env={"CUDA_VISIBLE_DEVICES": ""})


def _fork(args: Any, cwd: Path, **how: Any) -> Ended:
    server = _server()
    job = {"args": [str(a) for a in args], "cwd": str(cwd), "kill_at": None, "disk_full_at": None, "processes": 1, "script": None}
    server.stdin.write(json.dumps(job | how) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError("the server of forks died")
    return Ended(**json.loads(answer))


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )

    def end() -> None:
        server.stdin.close()
        server.wait(30)

    atexit.register(end)
    return server


@functools.cache
def finished() -> Path:
    """A folder in which every method of METHODS ran without an interruption."""

    def make(folder: Path) -> None:
        ended = start(write(folder, small(*METHODS)), "output_dir=out", cwd=folder)
        assert ended.status == 0, ended.text

    return made_once("finished", make) / "out"


# -------------------------------------------------------------------------------------------------- comparisons

_OF_THE_CLOCK = {
    *("train_seconds", "evaluate_seconds", "assistant_seconds", "seconds", "peak_memory_mb"),
    *("finished", "versions", "revision", "machine"),
}


def run_folders(output: Path) -> dict[str, Path]:
    return {path.name.split(".")[0]: path for path in sorted((output / "runs").iterdir())}


def result(output: Path, method: str) -> dict[str, Any]:
    return json.loads((run_folders(output)[method] / "result.json").read_text())


def without_clock(value: Any) -> Any:
    """The numbers of a result that do not depend on the time it took."""
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in _OF_THE_CLOCK}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def assert_same_numbers(got: Path, expected: Path, methods: Any = None) -> None:
    """Every number and every answer of the two folders is the same, to the bit; so are the weights learned last."""
    for b in sorted((expected / "runs").iterdir()):
        a = got / "runs" / b.name
        if methods is not None and b.name.split(".")[0] not in methods:
            continue
        results = [without_clock(json.loads((run / "result.json").read_text())) for run in (a, b)]
        assert results[0] == results[1], b.name
        for file in sorted((b / "predictions").iterdir()):
            assert (a / "predictions" / file.name).read_bytes() == file.read_bytes(), f"{b.name}: {file.name}"
        assert _last_weights(a) == _last_weights(b), b.name


def _last_weights(run: Path) -> dict[str, bytes]:
    from safetensors import safe_open

    files = sorted((run / "checkpoints").glob("*.safetensors")) if (run / "checkpoints").exists() else []
    if not files:
        return {}
    with safe_open(files[-1], framework="np") as opened:
        return {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118


# --------------------------------------------------------------------------------------------- the warm process


class _InThisProcess:
    """Stands for the pool of worker processes."""

    def __init__(self, jobs: int, context: Any, initializer: Any, initargs: tuple[Any, ...]):

        from cl_softcot.run import workers

        workers._messages = initargs[0]

    def submit(self, function: Any, *args: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_: Any) -> None:
        pass


def _serve() -> None:
    import queue
    from types import SimpleNamespace

    from cl_softcot import registry
    from cl_softcot.run import __main__ as run
    from cl_softcot.run import experiment
    from cl_softcot.track import figures, predictions  # noqa: F401

    for kind in registry.KINDS:
        for name in registry.known(kind):
            registry.find(kind, name)
    experiment.ProcessPoolExecutor = _InThisProcess
    queue.Queue.cancel_join_thread = lambda self: None
    experiment.mp = SimpleNamespace(get_context=lambda _: SimpleNamespace(Queue=queue.Queue))
    experiment.revision = lambda: None
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryDirectory() as scratch:
            files = [os.path.join(scratch, name) for name in ("out", "err", "calls")]
            pids = []
            for surroundings in _ranks(job["processes"]):
                pids.append(os.fork())
                if pids[-1] == 0:
                    _child(job, files, run, surroundings)
            status = _wait_for(pids)
            out, err, calls = (Path(file).read_text() if os.path.exists(file) else "" for file in files)
        print(json.dumps({"status": status, "out": out, "err": err, "calls": int(calls or 0)}), flush=True)


def _ranks(processes: int) -> list[dict[str, str]]:
    """What a launcher tells each of its processes; nothing to one that is alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _wait_for(pids: list[int]) -> int:
    """0, or the first failure, behind which the others are ended."""
    first, left = 0, set(pids)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status and not first:
            first = os.waitstatus_to_exitcode(status)
            for other in left:
                os.kill(other, signal.SIGTERM)
    return first


def _child(job: dict[str, Any], files: list[str], run: Any, surroundings: dict[str, str]) -> None:
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for file, descriptor in zip(files, (1, 2), strict=False):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.environ.update(job["env"] | surroundings)
        os.chdir(job["cwd"])
        sys.path.insert(0, job["cwd"])
        counted = _count(*job["kill_at"]) if job["kill_at"] else [0]
        if job["disk_full_at"]:
            _fill_disk(job["disk_full_at"])
        try:
            if job["script"]:
                sys.argv = [job["script"], *job["args"]]
                runpy.run_path(job["script"], run_name="__main__")
                status = 0
            else:
                status = run.main(job["args"])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        Path(files[2]).write_text(str(counted[0]))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def _count(place: str, n: int) -> list[int]:
    """Counts the calls of ``module:name`` or ``module:Class.name``, and dies at the n-th."""
    import importlib

    module, _, name = place.partition(":")
    owner = importlib.import_module(module)
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    return calls


def _fill_disk(first: int) -> None:
    import errno

    fsync, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    os.fsync = full


if __name__ == "__main__":
    _serve()
