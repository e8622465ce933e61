"""``cl-softcot COMMAND ...``, and how every command starts and ends. Imports nothing heavy: usage is told before torch is loaded.

A command is a package with ``__main__.py``, or a file here, that has ``main(argv) -> int``. It is found by its name, so that a
new one is listed as soon as it is there; ``python -m cl_softcot.COMMAND`` is the same command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cl_softcot import __version__
from cl_softcot.errors import UserError, did_you_mean

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


def main(argv: Sequence[str] | None = None) -> int:
    """``cl-softcot``: runs the command that the first word names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"cl-softcot {__version__}")
        return 0
    return guarded(lambda: _command(words[0])(words[1:]))


def _command(name: str) -> Callable[[list[str]], int]:
    from cl_softcot import registry

    known = registry.commands()
    if name not in known:
        is_file = name.endswith((".yaml", ".yml"))
        fix = f"An experiment is run with: {called('run')} {name}" if is_file else f"{called()} --help tells what they do."
        raise UserError(f"unknown command {name!r}{did_you_mean(name, known)}", fix=fix)
    return registry.command(name)


def _overview() -> str:
    from cl_softcot import registry

    told = registry.commands()
    width = max(map(len, told))
    script = called()
    lines = [
        f"usage: {script} COMMAND ...",
        "",
        "What a language model forgets while it learns to reason in continuous space.",
        "",
    ]
    lines += [f"  {name:<{width}}  {line}" for name, line in told.items()]
    return "\n".join(
        [*lines, "", f"{script} COMMAND --help tells more; {script} --version. Each is also python -m cl_softcot.COMMAND."]
    )
