"""Errors that the user can mend: what is wrong, where, and the way out."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """A mistake in a configuration, a file or a command, told without a traceback.

    Commands print `str(error)` and leave with `exit_status` (`commands.guarded`). Anything else that is raised is a bug of ours.

    Args:
        message: what is wrong, in one sentence (several lines when several things are wrong).
        where: the place, such as `file.yaml:3:5`.
        fix: the way out.
    """

    exit_status = 2
    ends_all = False  # the other processes of a launch wait for this one for ever, so that it ends at once

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None):
        super().__init__(message)  # only `message` in args: an error must survive pickling between processes
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.fix}" if self.fix else text


class RunsFailed(UserError):
    """Some runs of an experiment failed; the others were finished first. `__cause__` is the error of the first.

    Attributes:
        failed: reason by run.
    """

    exit_status = 1

    def __init__(self, failed: Mapping[str, str]):
        super().__init__("\n".join(f"{run} failed: {reason}" for run, reason in failed.items()))
        self.failed = dict(failed)

    def __reduce__(self) -> Any:
        return type(self), (self.failed,)


class StopRun(Exception):
    """Raised by an `on_row`: the run ends there. What it did is kept, and a later start goes on from it."""


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_BROKEN = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, 121}  # 121: Linux' EREMOTEIO


def is_foreseen(error: OSError) -> bool:
    """A full disk or a forbidden path: nothing is broken."""
    return error.errno in _NO_SPACE | _FORBIDDEN


def of_system(error: OSError, path: object = None) -> UserError:
    """An error of the system as one that tells what to do about it. ``path``: what was to be written (default: what it names)."""
    where = path if path is not None else error.filename
    place = None if where is None else os.fsdecode(where) if isinstance(where, bytes) else str(where)
    said = error.strerror or str(error) or type(error).__name__
    if error.errno in _NO_SPACE:
        told = "disk full (or no file can be added to it): nothing could be written, and what was there before is intact"
        fix = "Free some space (or move the folder with output_dir=PATH) and run the same command again."
    elif error.errno in _FORBIDDEN:
        told, fix = f"cannot be written: {said}", "Check the path and its permissions, or write elsewhere with output_dir=PATH."
    elif error.errno in _BROKEN:
        told = f"the disk or its connection failed: {said}"
        fix = "What is finished is kept. Look after the disk (dmesg, the mount), and run the same command again."
    else:
        told, fix = f"cannot be read or written: {said}", "What is finished is kept; the same command goes on from there."
    found = UserError(told, where=place, fix=fix)
    found.__cause__ = error
    return found


@contextmanager
def in_sentences(path: object = None) -> Iterator[None]:
    """Turns every error of the system inside the block into a `UserError`: for the edge of what programs call."""
    try:
        yield
    except OSError as error:
        raise of_system(error, path if error.filename is None else None) from error


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `"; did you mean 'x'? Known: a, b, x"`.

    Without a near name only the known ones are told; without known names the result is empty.
    """
    names = list(dict.fromkeys(str(k) for k in known))
    if not names:
        return ""
    folded = {n.casefold(): n for n in reversed(names)}
    near = difflib.get_close_matches(str(name).casefold(), list(folded), n=1)
    listed = ", ".join(names)
    return f"; did you mean '{folded[near[0]]}'? Known: {listed}" if near else f"; known: {listed}"
