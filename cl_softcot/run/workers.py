"""Worker processes: one core each, which die with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cl_softcot.config.experiment import Experiment
from cl_softcot.config.plan import RunSpec
from cl_softcot.errors import UserError
from cl_softcot.run import base, one_run

_messages: Any = None


def start_worker(messages: Any, parent: int) -> None:
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    die_with(parent)


def die_with(parent: int) -> None:
    """A worker whose parent was killed must not go on writing into a folder that nobody holds."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def work_on_base(config: Experiment, shared: Path) -> dict[str, str]:
    return base.measure_base(config, shared, lambda message: _messages.put({"run": "base", **message}))


def work_on_run(config: Experiment, spec: RunSpec, folder: Path, shared: Path, provenance: dict[str, Any]) -> None:
    report = lambda message: _messages.put({"run": spec.key, **message})  # noqa: E731
    one_run.run_one(config, spec, folder, shared, provenance, report)


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """Ends work in progress after Ctrl-C or an error: at its exit the interpreter would wait for the workers."""
    for worker in list((getattr(pool, "_processes", None) or {}).values()):
        worker.kill()


def worker_died() -> UserError:
    error = UserError(
        "a worker process died; the system may have run out of memory",
        fix="run the same command again, with a smaller --jobs: what is finished is kept",
    )
    error.exit_status = 1  # not a mistake of the user's
    return error
