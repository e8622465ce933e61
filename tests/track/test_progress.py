"""What a person sees while an experiment runs: phases when they begin, counts, and a time left that never rises for nothing."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from cl_softcot.track import console as consoles
from cl_softcot.track.console import ProgressDisplay


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(consoles, "time", clock)
    return clock


def _seconds(text: str) -> int:
    minutes, seconds = re.search(r"about (?:(\d+):)?(\d+) (?:s|min) left", text).groups()
    return 60 * int(minutes or 0) + int(seconds)


def _lines(display: ProgressDisplay) -> list[str]:
    return display.console.file.getvalue().splitlines()


def _plain(runs):
    return ProgressDisplay(runs, console=Console(file=io.StringIO(), width=300))


def test_time_left_falls_while_nothing_new_is_known(clock):
    with _plain(["a"]) as display:
        display.update({"run": "a", "phase": "learning x", "fraction": 0.0})
        clock.now += 100
        display.update({"run": "a", "phase": "learning x", "done": 1, "total": 10, "fraction": 0.1})
        seen = []
        for _ in range(20):  # twenty minutes of silence, and words without news
            clock.now += 31
            display.pulse()
            display.update({"run": "a", "phase": "learning x", "done": 1, "total": 10, "fraction": 0.1})
            seen.append(_lines(display)[-1])
    left = [_seconds(line) for line in seen]
    assert left == sorted(left, reverse=True) and left[0] == 900 - 31 and left[-1] == 900 - 20 * 31


def test_what_takes_longer_than_was_thought_promises_nothing(clock):
    with _plain(["a"]) as display:
        display.update({"run": "a", "phase": "learning x", "fraction": 0.0})
        clock.now += 60
        display.update({"run": "a", "phase": "learning x", "fraction": 0.5})
        clock.now += 90
        display.pulse()
    assert "left" not in _lines(display)[-1]


def test_the_base_is_no_run_and_its_time_is_not_the_runs(clock):
    with _plain(["a", "b"]) as display:
        display.update({"run": "base", "phase": "answering gsm8k", "aside": True, "done": 0, "total": 40, "fraction": 0.0})
        clock.now += 300
        display.update({"run": "base", "phase": "answering svamp", "aside": True, "done": 10, "total": 40, "fraction": 0.25})
        assert _lines(display)[-1].endswith("base: answering svamp, 10 of 40, about 15:00 min left")
        clock.now += 40
        display.update({"run": "base", "phase": "answering svamp", "aside": True, "done": 12, "total": 40, "fraction": 0.3})
        assert "answering svamp, 12 of 40, about" in _lines(display)[-1] and "runs done" not in _lines(display)[-1]
        display.update({"run": "a", "phase": "learning x", "fraction": 0.0})
        clock.now += 20
        display.update({"run": "a", "phase": "finished"})
    assert "(1/2 runs done, about 20 s left)" in _lines(display)[-1], "the base's five minutes are not the runs'"


def test_bars_show_the_same(clock):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with ProgressDisplay(["a"], console=console) as display:
        display.update({"run": "base", "phase": "answering gsm8k", "aside": True, "done": 0, "total": 40, "fraction": 0.0})
        clock.now += 30
        display.update({"run": "base", "phase": "answering gsm8k", "aside": True, "done": 10, "total": 40, "fraction": 0.25})
        display._progress.refresh()
        assert "1:30 min left" in console.file.getvalue() and "10/40" in console.file.getvalue()
        display.update({"run": "a", "phase": "learning x", "done": 0, "total": 8, "fraction": 0.0})
        assert list(display._bars) == ["a"]
