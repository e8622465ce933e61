"""The end of a sweep: the winner's score on the test split, once, and the report.

Trials are chosen on validation data, and the best of many is flattered by that choice. What is reported is the winner's score on
test data that no trial has seen. With several objectives every trial of the front is tested.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.files import atomic_write_json, read_json, waiting_lock
from cl_softcot.sweep.config import SearchPlan, SweepConfig
from cl_softcot.sweep.folder import find
from cl_softcot.sweep.status import best, is_done
from cl_softcot.sweep.trials import Record, Search
from cl_softcot.sweep.worker import intervals, judge


def finish(sweep: SweepConfig, say: Callable[[str], None]) -> None:
    """Tests the winners of every search that is done, writes `winner.json` and the report. Finished tests are not run again.

    Raises:
        UserError: if no search is done.
    """
    searches = find(sweep, say)
    done = [search for search in searches if is_done(search, search.records())]
    if not done:
        raise UserError(
            "the sweep has not enough complete trials yet", where=str(sweep.folder), fix="Run its command again: it tops up."
        )
    with waiting_lock(sweep.folder / ".finish.lock", seconds=24 * 3600.0):
        for search in done:
            _finish(search, say)
        from cl_softcot.sweep.report import write_report

        say(f"report: {write_report(sweep, searches)}")


def _finish(search: Search, say: Callable[[str], None]) -> None:
    plan, found = search.plan, search.records()
    winners = best(search, found)
    if not winners:
        say(f"{plan.study_name}: no trial is inside the constraints, so there is no winner")
    path = plan.folder / "winner.json"
    earlier = {w["number"]: w for w in read_json(path)["winners"]} if path.exists() else {}
    tested = [earlier.get(r.number) or _test(plan, r, say) for r in winners]
    before = set(read_json(path).get("tested", [])) if path.exists() else set()
    atomic_write_json(
        path,
        {
            "sweep": plan.study_name,
            "objectives": plan.sweep.objectives,
            "select_on": str(plan.sweep.select_on),
            "saw_the_future": plan.sweep.select_on.saw_the_future,
            "complete_trials": sum(r.state == "complete" for r in found),
            "tested": sorted(before | {w["number"] for w in tested}),  # more than once looked at after a top-up: it is told
            "winners": tested,
        },
    )
    for winner in tested:
        values = ", ".join(f"{name} {value:.4g}" for name, value in winner["test"].items())
        say(f"{plan.study_name}: trial {winner['number']} wins; on the test split: {values}\n  {winner['command']}")


def _test(plan: SearchPlan, record: Record, say: Callable[[str], None]) -> dict[str, Any]:
    from cl_softcot.run.api import run_experiment

    folder = plan.folder / "test" / str(record.number)
    overrides = [*plan.test_overrides(record.params), f"output_dir={folder}"]
    command = shlex.join(["python", "-m", "cl_softcot.run", plan.sweep.experiment, *overrides])
    say(f"{plan.study_name}: trial {record.number} on the test split\n  {command}")
    config = load_experiment(plan.sweep.experiment, overrides).config
    results = run_experiment(config, folder=folder, tags={"sweep": plan.study_name, "trial": record.number, "sweep_role": "test"})
    return {
        "number": record.number,
        "params": record.params,
        "validation": dict(zip(plan.sweep.objectives, record.last.values, strict=True)),
        "test": judge(plan, results),
        "test_intervals": intervals(plan, results),
        "command": command,
        "folder": str(Path("test") / str(record.number)),
    }
