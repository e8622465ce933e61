"""How every command starts and ends. Imports nothing heavy: usage is told before torch is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cl_softcot.errors import UserError

# What has to be in the environment before torch is imported. What the user has set stays.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# A worker is one core, and waiting threads must not take another's.
ONE_CORE = {**ONE_THREAD, "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
REPEATABLE = {**ONE_CORE, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it products on a GPU are not repeatable

INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def guarded(
    work: Callable[[], int],
    *,
    environment: Mapping[str, str] | None = None,
    stopped: str = "stopped",
    tells: Callable[[], bool] = lambda: True,
    shown: Callable[[str], str] = str,
) -> int:
    """Does what a command is there for; its exit status.

    Args:
        work: whatever imports torch, at the earliest.
        environment: variables to set where the user has not.
        stopped: what is said after Ctrl-C.
        tells: whether this process tells of a mistake that all processes of a launch find.
        shown: an error's text as it may be printed.
    """
    for name, value in (environment or {}).items():
        os.environ.setdefault(name, value)
    try:
        return work()
    except UserError as error:
        if error.ends_all or tells():
            print(f"error: {shown(str(error))}", file=sys.stderr, flush=True)
        if error.ends_all:
            os._exit(error.exit_status)  # an orderly end would wait for the others, and they wait for this one
        return error.exit_status
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return INTERRUPTED


def called(command: str = "") -> str:
    """A command as the user called it, for usage and hints: ``cl-softcot run`` or ``python -m cl_softcot.run``."""
    path = Path(sys.argv[0])
    if path.stem == "cl-softcot":
        return f"cl-softcot {command}".rstrip()
    if path == Path(__file__).with_name("__main__.py"):
        return f"python -m cl_softcot {command}".rstrip()
    return f"python -m cl_softcot.{command}".rstrip(".")
