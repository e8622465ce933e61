"""Errors that the user can mend: what is wrong, where, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
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
