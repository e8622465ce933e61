"""Worker processes on this machine: one a GPU, or one a core. A worker that was killed is started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cl_softcot.errors import UserError
from cl_softcot.sweep.config import Local, SweepConfig
from cl_softcot.sweep.folder import find
from cl_softcot.sweep.launchers import worker_command
from cl_softcot.sweep.status import progress

RESTARTS = 20  # of all workers together; what kills more often than that will go on doing so
TELL_SECONDS = 30.0  # how often the time left is told where nothing else happened
GOODBYE_SECONDS = 30.0


@dataclass
class _Worker:
    index: int
    process: subprocess.Popen
    log: Path


def check(sweep: SweepConfig) -> None:
    """Works everywhere."""


def launch(sweep: SweepConfig, say: Callable[[str], None], detach: bool) -> bool:
    gpus = _gpus()
    assert isinstance(sweep.launcher, Local)  # the kind that this file is named after
    wanted = sweep.launcher.workers or len(gpus) or len(os.sched_getaffinity(0))
    wanted = min(wanted, sweep.trials * len(sweep.plans())) if sweep.sampler.name != "grid" else wanted
    workers = [_start(sweep, i, wanted, gpus, detach) for i in range(wanted)]
    if detach:
        say(f"{wanted} workers go on by themselves; their logs: {sweep.folder}/logs/")
        return False
    try:
        _supervise(sweep, workers, gpus, say)
    except BaseException:
        _stop(workers)
        raise
    return True


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [gpu for gpu in said.split(",") if gpu.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _start(sweep: SweepConfig, index: int, workers: int, gpus: list[str], detach: bool) -> _Worker:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    command = [*worker_command(sweep, sys.executable), "--workers", str(workers)]
    if not detach:
        command += ["--parent", str(os.getpid())]
    path = sweep.folder / "logs" / f"worker_{index}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    return _Worker(index, process, path)


def _supervise(sweep: SweepConfig, workers: list[_Worker], gpus: list[str], say: Callable[[str], None]) -> None:
    searches, restarts, shown, told = find(sweep, say), 0, "", 0.0
    while True:
        time.sleep(1.0)
        with contextlib.suppress(UserError):  # the storage is away: the workers wait for it, and so do we
            now = progress(searches, with_time_left=False)
            if now != shown or time.monotonic() - told > TELL_SECONDS:
                shown, told = now, time.monotonic()
                say(progress(searches))
        for place, worker in enumerate(workers):
            status = worker.process.poll()
            if status is not None and status < 0 and restarts < RESTARTS:
                restarts += 1
                say(f"worker {worker.index} was killed by signal {-status}; started again")
                workers[place] = _start(sweep, worker.index, len(workers), gpus, False)
        if all(worker.process.poll() is not None for worker in workers):
            break
    failed = [worker for worker in workers if worker.process.returncode]
    if failed:
        error = UserError(
            f"worker {failed[0].index} ended with status {failed[0].process.returncode}: {_last_lines(failed[0].log)}",
            where=str(failed[0].log),
        )
        error.exit_status = 1
        raise error


def _last_lines(path: Path, n: int = 3) -> str:
    with open(path, "rb") as file:
        lines = file.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-n:])


def _stop(workers: list[_Worker]) -> None:
    """Lets workers give back what they have begun."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + GOODBYE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
