"""Several runs in one process, in step: each computes what it computes alone, and finds what they share ready.

A *lane* is an ordinary run in a thread of its own. One lane works at a time, and hands on (`hand_on`) after every optimiser step
and every batch of answers, to the lane that is furthest behind. So all lanes come to the same examples one right after the other,
and what the first had to compute of the frozen models is still at hand for the rest, also where memory holds no more than the
newest of it::

    lane 0   step 1            step 2            answers ...
    lane 1          step 1            step 2
    lane 2                 step 1            step 2

Nothing else passes from one to the other: random generators are put back when a lane goes on, grad mode, autocast and torch's
number of threads belong to a thread anyway. Results are those of a run alone, to the bit.

Outside of a lane every function here does the obvious thing at no cost.
"""

from __future__ import annotations

import ctypes
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

_M_ARENA_MAX = -8  # of glibc's malloc.h


class LaneStopped(BaseException):
    """All lanes have to end, since their caller was interrupted. Not an `Exception`: it is no failure of the run."""


class _Here(threading.local):
    """What a thread knows of itself. ``waited``: seconds in which others worked."""

    lane: int | None = None
    lanes: _Lanes | None = None
    undivided: int = 0
    waited: float = 0.0


_here = _Here()


def side_by_side(jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Does the jobs in lanes, one each; what each returned, or the exception that ended it. One that fails leaves the others be.

    Raises:
        BaseException: what interrupted the caller (a signal), or a job's own exception that is no `Exception`: first every other
            lane has met `LaneStopped` where it hands on. A second interruption is raised at once.
    """
    lanes = _Lanes(len(jobs))
    threads = [
        threading.Thread(target=lanes.work, args=(lane, job), name=f"lane {lane}", daemon=True) for lane, job in enumerate(jobs)
    ]
    before = _generators()
    _share_a_heap()
    try:
        with _signals_held():  # a lane that did not start would keep the others waiting
            for thread in threads:
                thread.start()
        lanes.wait_for_all()
    except BaseException as interruption:
        lanes.stop(interruption)
        lanes.wait_for_all()
    _put_back(before)
    if lanes.stopped_by is not None:
        raise lanes.stopped_by
    return lanes.outcomes


def _share_a_heap() -> None:
    """From now on new threads take memory where the others do.

    glibc gives a thread a heap of its own, and what one has freed no other can use, though only one lane works at a time:
    measured, four lanes took twice the memory of a run alone, and a tenth of the time to ask the system for it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries of C have none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals come when the block is over. Threads that start inside never get any: they are for the main thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hand_on(place: tuple[int, ...] | None = None) -> None:
    """Called between two pieces of work that other lanes do too: lets each of them come as far.

    Args:
        place: how far this lane is, in numbers that mean the same in all of them, later ones larger; None: one piece of work
            further than the last time.

    Raises:
        LaneStopped: if the lanes are to end.
    """
    if _here.lanes is not None and _here.lane is not None:
        _here.lanes.reached(_here.lane, place)
        _go_on(_here.lanes, _here.lane)


def step_aside() -> None:
    """Called by who has to wait for something and looks again later: lets another lane work, wherever it is.

    Raises:
        LaneStopped: if the lanes are to end.
    """
    if _here.lanes is not None and _here.lane is not None:
        _go_on(_here.lanes, _here.lane, to_the_next=True)


def _go_on(lanes: _Lanes, lane: int, to_the_next: bool = False) -> None:
    if not _here.undivided:
        lanes.hand_on(lane, to_the_next)
    lanes.end_if_told()


@contextmanager
def undivided() -> Iterator[None]:
    """Inside, nothing is handed on: for what is done once and then kept for all."""
    _here.undivided += 1
    try:
        yield
    finally:
        _here.undivided -= 1


def working_seconds() -> float:
    """A clock like ``time.perf_counter`` that stands still while other lanes work."""
    return time.perf_counter() - _here.waited


class _Lanes:
    """Who works.

    Attributes:
        outcomes: what each job returned, or the exception that ended it.
        stopped_by: why the lanes are to end.
    """

    def __init__(self, n: int):
        self.outcomes: list[Any] = [None] * n
        self.stopped_by: BaseException | None = None
        self._order = deque(range(n))  # lanes that have not ended; who worked last stands last
        self._places: list[tuple[tuple[int, ...], int]] = [((), 0)] * n  # the last place, and pieces of work since then
        self._working = 0
        self._turn = threading.Condition()
        self._start = _generators()
        self._threads = torch.get_num_threads()
        self._gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

    def work(self, lane: int, job: Callable[[], Any]) -> None:
        """The whole life of a lane, in its thread."""
        _here.lane, _here.lanes = lane, self
        torch.set_num_threads(self._threads)  # which OpenMP counts for each thread apart
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        try:
            self._wait(lane, self._start)
            self.end_if_told()
            self.outcomes[lane] = job()
        except LaneStopped:
            pass
        except Exception as error:
            self.outcomes[lane] = error
        except BaseException as error:
            self.stop(error)
        finally:
            with self._turn:
                self._order.remove(lane)
                self._choose()

    def wait_for_all(self) -> None:
        """Until every lane has ended. (In Python 3.11 a `Thread.join` that is interrupted takes the thread for dead.)"""
        with self._turn:
            self._turn.wait_for(lambda: not self._order)

    def stop(self, why: BaseException) -> None:
        """Ends all lanes where they hand on next."""
        self.stopped_by = self.stopped_by or why

    def end_if_told(self) -> None:
        if self.stopped_by is not None:
            raise LaneStopped

    def reached(self, lane: int, place: tuple[int, ...] | None) -> None:
        before, pieces = self._places[lane]
        self._places[lane] = (before, pieces + 1) if place is None else (place, 0)

    def hand_on(self, lane: int, to_the_next: bool = False) -> None:
        mine, began = _generators(), time.perf_counter()
        with self._turn:
            self._order.remove(lane)
            self._order.append(lane)
            self._choose(to_the_next)
        self._wait(lane, mine)
        _here.waited += time.perf_counter() - began

    def _choose(self, to_the_next: bool = False) -> None:
        """Who works now: of the lanes that are furthest behind the one that has waited longest."""
        if self._order:
            self._working = self._order[0] if to_the_next else min(self._order, key=self._places.__getitem__)
        self._turn.notify_all()

    def _wait(self, lane: int, generators: Any) -> None:
        """Until it is this lane's turn, which finds the random generators as it left them."""
        with self._turn:
            self._turn.wait_for(lambda: self._working == lane)
        _put_back(generators)


def _generators() -> tuple[Any, ...]:
    """The state of the process's random generators: Python's, NumPy's, torch's, and that of the GPU in use."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu


def _put_back(generators: tuple[Any, ...]) -> None:
    python, numpy, cpu, gpu = generators
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)
