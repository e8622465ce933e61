"""How far the answering of many questions is, told while they are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cl_softcot.machine import processes
from cl_softcot.models.writing import watched

PAUSE = 0.5  # seconds between two words about the same set

# What is being answered, answers that are whole, of how many, and the share that is done (0 to 1), begun answers in part.
Told = Callable[[str, int, int, float], None]


class Counting:
    """
    Args:
        total: questions of all sets.
        tell: called when a set begins, now and then, and when it ends; what it is told never falls.
    """

    def __init__(self, total: int, tell: Told):
        self.total, self.tell = total, tell
        self.done, self.part = 0, 0.0
        self._spoke = 0.0

    @contextmanager
    def answering(self, name: str, n: int) -> Iterator[None]:
        """Around the answering of ``n`` questions. Those that are known already count as soon as it ends."""
        before = self.done
        self._say(name, before, float(before), now=True)

        def watch(ended: int, written: float) -> None:
            shares = processes.size()  # this process sees its own share
            if ended == 0 or ended * shares < n:
                self._say(name, before + min(ended * shares, n), before + min(written * shares, float(n)))

        with watched(watch):
            yield
        self._say(name, before + n, float(before + n), now=True)

    @contextmanager
    def all_of(self, name: str) -> Iterator[None]:
        """Around any number of calls that together answer no more than all of the questions."""
        calls_before, last = 0, 0

        def watch(ended: int, written: float) -> None:
            nonlocal calls_before, last
            if ended < last:  # the next call has begun
                calls_before += last
            last = ended
            self._say(name, min(calls_before + ended, self.total), min(calls_before + written, float(self.total)))

        with watched(watch):
            yield

    def _say(self, name: str, done: int, part: float, *, now: bool = False) -> None:
        self.done, self.part = max(self.done, done), max(self.part, part)
        if now or time.monotonic() - self._spoke >= PAUSE:
            self._spoke = time.monotonic()
            self.tell(name, self.done, self.total, self.part / max(self.total, 1))
