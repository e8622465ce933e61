"""How every command starts and ends. Imports nothing heavy: usage is told before torch is loaded."""

from __future__ import annotations

import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cl_softcot import printable
from cl_softcot.errors import UserError, of_system

# What has to be in the environment before torch is imported. What the user has set stays.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# A worker is one core, and waiting threads must not take another's.
ONE_CORE = {**ONE_THREAD, "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
REPEATABLE = {**ONE_CORE, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it products on a GPU are not repeatable

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
OUTPUT_CLOSED = 141  # 128 + SIGPIPE
DEBUG = "CL_SOFTCOT_TRACEBACK"  # set to 1, it shows the traceback of what is otherwise told in a sentence


def guarded(
    work: Callable[[], int],
    *,
    environment: Mapping[str, str] | None = None,
    stopped: str = "stopped",
    tells: Callable[[], bool] = lambda: True,
    shown: Callable[[str], str] = str,
) -> int:
    """Does what a command is there for; its exit status. The one place where errors end: what the user or the machine has done is
    told in a sentence without passwords, and a bug of ours keeps its traceback.

    Args:
        work: whatever imports torch, at the earliest.
        environment: variables to set where the user has not.
        stopped: what is said after Ctrl-C.
        tells: whether this process tells of a mistake that all processes of a launch find.
        shown: an error's text as it may be printed; passwords of addresses are hidden anyway.
    """
    for name, value in (environment or {}).items():
        os.environ.setdefault(name, value)
    _never_fail_to_print()
    try:
        return _flushed(work())
    except UserError as error:
        _show_traceback(error)
        if error.ends_all or tells():
            _tell(shown(str(error)))
        if error.ends_all:
            os._exit(error.exit_status)  # an orderly end would wait for the others, and they wait for this one
        return error.exit_status
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit:  # of argparse
        _output_is_gone()
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _output_is_gone():
            return OUTPUT_CLOSED
        told = _ended(error)
        if told is None:
            raise
        return told
    finally:
        _output_is_gone()


def _flushed(status: int) -> int:
    """Now rather than at the interpreter's exit, where nothing could be said about it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"what was to be printed could not be: {error.strerror}", where="standard output") from error
    return status


def _ended(error: Exception) -> int | None:
    """What is told of an error of the machine or of a file, and the exit status; None of a bug, which keeps its traceback.

    Of a bug whose traceback holds a password it is printed here, without.
    """
    told = in_words(error)
    if told is not None:
        _show_traceback(error)
        _tell(str(told))
        return told.exit_status
    text = "".join(traceback.format_exception(error))
    if printable.hide(text) == text:
        return None
    print(printable.printable(text), file=sys.stderr, flush=True)
    return 1


def in_words(error: BaseException) -> UserError | None:
    """An error that says nothing about our code as one that tells where and what to do; None of any other.

    Such are those of disks and devices, of memory, of texts that no file or terminal can hold, and of data nested too deeply.
    """
    if isinstance(error, UserError):
        return error
    told = None
    if isinstance(error, OSError):
        told = of_system(error)
    elif isinstance(error, MemoryError):
        told = UserError("this machine has not enough memory", fix="run it with less at a time (--jobs 1), or on a larger one")
        told.exit_status = 1
    elif isinstance(error, RecursionError):
        told = UserError("something is nested too deeply to be read", fix=f"{DEBUG}=1 shows where")
    elif isinstance(error, UnicodeError):
        told = UserError(f"a text that is no valid Unicode: {error}", fix="name files and settings in valid UTF-8")
    elif isinstance(error, ValueError) and "null" in str(error) and ("byte" in str(error) or "character" in str(error)):
        told = UserError("a path or a text holds a NUL character", fix="take it out")
    if told is not None:
        told.__cause__ = error
    return told


def _tell(text: str) -> None:
    with suppress(OSError, ValueError):
        print(f"error: {printable.printable(text)}", file=sys.stderr, flush=True)


def _show_traceback(error: BaseException) -> None:
    if os.environ.get(DEBUG, "") not in ("", "0"):
        with suppress(OSError, ValueError):
            print(printable.printable("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)


def _never_fail_to_print() -> None:
    """A terminal that lacks a letter is shown its number."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _output_is_gone() -> bool:
    """Whether nobody reads what is printed (``| head``), or it cannot be written: the interpreter must not try again."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
        if not gone:
            sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        gone = isinstance(sys.exc_info()[1], OSError) and not isinstance(sys.exc_info()[1], io.UnsupportedOperation)
    if gone:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def called(command: str = "") -> str:
    """A command as the user called it, for usage and hints: ``cl-softcot run`` or ``python -m cl_softcot.run``."""
    path = Path(sys.argv[0])
    if path.stem == "cl-softcot":
        return f"cl-softcot {command}".rstrip()
    if path == Path(__file__).with_name("__main__.py"):
        return f"python -m cl_softcot {command}".rstrip()
    return f"python -m cl_softcot.{command}".rstrip(".")
