"""What `sweep status` says of a sweep that is over, and what a sweep is called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cl_softcot.files import atomic_write_json
from cl_softcot.sweep import status
from cl_softcot.sweep.config import SelectOn, SweepConfig
from cl_softcot.sweep.trials import Record


def _record(number: int, state: str, value: float = 0.0, **attributes) -> Record:
    last = SimpleNamespace(values=[value], constraints={}, user_attrs=attributes, datetime_start=None, datetime_complete=None)
    return Record(number, state, [number], last, {"learning_rate": 0.01 * (number + 1)})


def _search(folder, found, *, trials=2, most=6, lost=()):
    sweep = SimpleNamespace(
        sampler=SimpleNamespace(name="random"), objectives={"summary.acc": "maximize"}, trials=trials, most=most, first_failures=5
    )
    plan = SimpleNamespace(sweep=sweep, study_name="rates", folder=folder, trial_folder=lambda n: folder / "trials" / str(n))
    return SimpleNamespace(plan=plan, records=lambda: found, has_lost=lambda record: record.number in lost)


def test_over_and_tested(tmp_path):
    found = [_record(0, "complete", 0.5), _record(1, "complete", 0.75)]
    search = _search(tmp_path, found)
    told = status.standing([search])
    assert "over: trial 1 wins; not tested yet" in told and not status.is_finished(search, found)
    atomic_write_json(tmp_path / "winner.json", {"winners": [{"number": 1, "test": {"summary.acc": 0.625}}]})
    told = status.standing([search])
    assert "over: trial 1 wins; on the test split: summary.acc 0.625" in told and status.is_finished(search, found)
    assert "running" not in told and "waiting" not in told and "left" not in told


def test_a_trial_whose_worker_is_gone_does_not_run(tmp_path):
    found = [_record(0, "complete", 0.5), _record(1, "running", beat={"host": "here", "pid": 1})]
    assert "trial 1 runs on here, process 1" in status.standing([_search(tmp_path, found)])
    told = status.standing([_search(tmp_path, found, lost={1})])
    assert "runs on" not in told and "1 interrupted" in told and "trial 1 was interrupted" in told and "over" not in told


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["failed"] * 5, "over: 5 trials failed and none completed"),
        (["pruned"] * 5 + ["complete"], "over: 6 trials, the most that it starts"),
    ],
)
def test_over_without_enough_trials(tmp_path, states, said):
    found = [_record(i, state, error="it broke") for i, state in enumerate(states)]
    assert said in status.standing([_search(tmp_path, found)])


def test_words():
    titles = {name: SweepConfig.model_construct(name=name).title for name in ("sweep", "Sweep2", "rates")}
    assert titles == {"sweep": "sweep", "Sweep2": "Sweep2", "rates": "sweep rates"}
    assert str(SelectOn(first_tasks=1)) == "the first task" and str(SelectOn(first_tasks=2)) == "the first 2 tasks"
