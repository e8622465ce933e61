"""Accuracy while a turn goes on: hand-worked curves, and the same points however often a run is killed."""

from __future__ import annotations

import pytest
from run_fakes import assert_same_numbers, result, small, start, write

from cl_softcot.diagnostics.during import summary

# Two turns of ten steps: `a` is learned to .8, falls to .2 inside the second turn and comes back to .6.
FIRST = {"steps": [5, 10], "accuracy": {"a": [0.5, 0.8]}}
SECOND = {"steps": [5, 10], "accuracy": {"a": [0.2, 0.6], "b": [0.4, 0.9]}}
THIRD = {"steps": [5, 10], "accuracy": {"a": [0.6, 0.4], "b": [0.9, 0.7], "c": [0.1, 1.0]}}


def test_two_turns_by_hand():
    found = summary(["a", "b"], [FIRST, SECOND], 10)
    assert found["acc/min"] == pytest.approx(0.2)
    assert found["acc/wc"] == pytest.approx(0.9 / 2 + 0.2 / 2)
    # falls 0, .6, .2 at steps 10, 15, 20: trapezoids (0 + .6) / 2 * 5 + (.6 + .2) / 2 * 5 = 3.5 over 10 steps
    assert found["forgetting/curve_area"] == pytest.approx(0.35)
    assert found["stability_gap"] == {"a": pytest.approx(0.6)}


def test_three_turns_by_hand():
    found = summary(["a", "b", "c"], [FIRST, SECOND, THIRD], 10)
    assert found["acc/min"] == pytest.approx((0.2 + 0.7) / 2)
    assert found["acc/wc"] == pytest.approx(1 / 3 + 2 / 3 * 0.45)
    of_a = ((0 + 0.6) / 2 * 5 + (0.6 + 0.2) / 2 * 5 + (0.2 + 0.2) / 2 * 5 + (0.2 + 0.4) / 2 * 5) / 20
    of_b = ((0 + 0) / 2 * 5 + (0 + 0.2) / 2 * 5) / 10
    assert found["forgetting/curve_area"] == pytest.approx((of_a + of_b) / 2)
    assert found["stability_gap"] == {"a": pytest.approx(0.2), "b": pytest.approx(0.2)}


def test_one_task_has_nothing_to_forget():
    assert summary(["a"], [FIRST], 10)["acc/wc"] is None


def test_a_dip_between_the_rows_is_seen_and_rows_alone_would_miss_it():
    dip = {"steps": [5, 10], "accuracy": {"a": [0.0, 0.8], "b": [0.5, 0.9]}}
    assert summary(["a", "b"], [FIRST, dip], 10)["acc/min"] == 0.0
    rows = {"steps": [10], "accuracy": {"a": [0.8], "b": [0.9]}}
    assert summary(["a", "b"], [FIRST, rows], 10)["acc/min"] == 0.8


@pytest.mark.parametrize("method", ["lora_replay", "softcot_oracle"])
def test_points_are_those_of_the_rows_and_survive_being_killed(method, tmp_path):
    data = small(method) | {"diagnostics": [{"name": "during", "every": 2, "examples": 8}]}
    path = write(tmp_path, data)
    whole = start(path, "output_dir=whole", cwd=tmp_path, kill_at=("os:fsync", 0))
    assert whole.status == 0, whole.text
    found = result(tmp_path / "whole", method)
    rows = found["diagnostics"]["during"]["rows"]
    assert rows["2"]["steps"] == [2, 4, 6] and list(rows["2"]["accuracy"]) == ["first", "second"]
    ends = [[rows[i]["accuracy"][task][-1] for task in rows[i]["accuracy"]] for i in "12"]
    matrix = found["accuracy"]["matrix"]
    assert ends == [matrix[1][:1], matrix[2]]  # n is that of the rows: the last point is the row itself
    for n in range(9, whole.calls, whole.calls // 4):
        start(path, "output_dir=out", cwd=tmp_path, kill_at=("os:fsync", n))
    assert start(path, "output_dir=out", cwd=tmp_path).status == 0
    assert_same_numbers(tmp_path / "out", tmp_path / "whole")
