"""How a sweep stands: counts, the best so far, the time left, failures with their logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from cl_softcot.files import read_json
from cl_softcot.sweep.space import shown
from cl_softcot.sweep.trials import Counts, Record, Search, looks_broken

COLUMNS = ("complete", "running", "waiting", "interrupted", "pruned", "failed")


def wanted(search: Search) -> int:
    """How many complete trials the search should have."""
    if search.plan.sweep.sampler.name == "grid":
        from cl_softcot.sweep.space import grid

        return len(grid(search.plan.space))
    return search.plan.sweep.trials


def best(search: Search, found: Sequence[Record]) -> list[Record]:
    """The best complete trial within the constraints; with several objectives, those that none of the others beats in all."""
    signs = [1.0 if way == "maximize" else -1.0 for way in search.plan.sweep.objectives.values()]
    complete = [r for r in found if r.state == "complete" and r.feasible]
    scores = {r.number: [s * v for s, v in zip(signs, r.last.values, strict=True)] for r in complete}
    if len(signs) == 1:
        return [max(complete, key=lambda r: scores[r.number][0])] if complete else []

    def beaten(r: Record) -> bool:
        mine = scores[r.number]
        return any(all(a >= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine for theirs in scores.values())

    return [r for r in complete if not beaten(r)]


def is_done(search: Search, found: Sequence[Record]) -> bool:
    counts = Counts.of(found)
    if search.plan.sweep.sampler.name == "grid":
        return counts.total > 0 and not counts.open
    return counts.complete >= wanted(search) and not counts.open


def progress(searches: Sequence[Search], with_time_left: bool = True) -> str:
    """One line a search: for a terminal that is watched."""
    return "\n".join(_line(search, search.records(), with_time_left) for search in searches)


def _line(search: Search, found: Sequence[Record], with_time_left: bool = True) -> str:
    found = _as_they_live(search, found)
    counts = Counts.of(found)
    told = [f"{getattr(counts, name)} {name}" for name in COLUMNS[1:] if getattr(counts, name)]
    parts = [f"{search.plan.study_name}: {counts.complete}/{wanted(search)} complete", *told]
    top = best(search, found)
    if top and len(search.plan.sweep.objectives) == 1:
        parts.append(f"best {top[0].last.values[0]:.4g} (trial {top[0].number}: {shown(top[0].params)})")
    elif top:
        parts.append(f"{len(top)} on the front")
    left = seconds_left(search, found) if with_time_left and not is_done(search, found) else None
    return ", ".join(parts + ([f"about {_duration(left)} left"] if left else []))


def seconds_left(search: Search, found: Sequence[Record]) -> float | None:
    """From the median trial and the workers at work; None while nothing is known."""
    ended = [r.seconds for r in found if r.state == "complete" and r.seconds]
    running = [r for r in found if r.state == "running"]
    if not ended or not running:
        return None
    typical = statistics.median(ended)
    begun = sum(min(typical, time.time() - r.last.datetime_start.timestamp()) for r in running)
    missing = wanted(search) - Counts.of(found).complete
    return max(0.0, missing * typical - begun) / len(running)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _as_they_live(search: Search, found: Sequence[Record]) -> list[Record]:
    """A trial whose worker is gone does not run, though nobody has told the storage yet."""
    return [replace(r, state="interrupted") if r.state == "running" and search.has_lost(r) else r for r in found]


def standing(searches: Sequence[Search]) -> str:
    """All that `sweep status` shows."""
    lines = []
    for search in searches:
        found = _as_they_live(search, search.records())
        lines.append(_line(search, found))
        for record in found:
            beat = record.last.user_attrs.get("beat") or {}
            again = f", attempt {len(record.attempts)}" if len(record.attempts) > 1 else ""
            folder = search.plan.trial_folder(record.number)
            if record.state == "running":
                where = f"{beat.get('host', '?')}, process {beat.get('pid', '?')}"
                lines.append(f"  trial {record.number} runs on {where}{again}: {shown(record.params)}")
            elif record.state == "interrupted":
                lines.append(f"  trial {record.number} was interrupted{again}; a worker goes on with it: {shown(record.params)}")
            elif record.state == "failed":
                lines.append(f"  trial {record.number} failed{again}: {record.error.splitlines()[0]} ({folder / 'error.txt'})")
        lines += _ending(search, found)
    return "\n".join(lines)


def _ending(search: Search, found: Sequence[Record]) -> list[str]:
    """How a search that is over ended: its winners, and their test where that is done."""
    if not is_done(search, found):
        counts, most = Counts.of(found), search.plan.sweep.most
        if counts.open or not counts.total:
            return []
        if looks_broken(counts, search.plan):
            return [f"  over: {counts.failed} trials failed and none completed; mend what failed, and run its command again"]
        return [f"  over: {counts.total} trials, the most that it starts (most_trials)"] if counts.total >= most else []
    winners = best(search, found)
    if not winners:
        return ["  over: no complete trial is inside the constraints"]
    path = search.plan.folder / "winner.json"
    tested = {w["number"]: w["test"] for w in read_json(path)["winners"]} if path.exists() else {}
    lines = []
    for winner in winners:
        values = ", ".join(f"{name} {value:.4g}" for name, value in tested.get(winner.number, {}).items())
        lines.append(f"  over: trial {winner.number} wins; " + (f"on the test split: {values}" if values else "not tested yet"))
    return lines


def is_finished(search: Search, found: Sequence[Record]) -> bool:
    """Whether a search is over and its winners are tested."""
    path = search.plan.folder / "winner.json"
    if not is_done(search, found) or not path.exists():
        return False
    return {r.number for r in best(search, found)} <= {w["number"] for w in read_json(path)["winners"]}
