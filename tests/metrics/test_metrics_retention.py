"""Retention by group, and what answers cost."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cl_softcot.metrics.cost import cost_per_answer, count_parameters, peak_memory_mb
from cl_softcot.metrics.intervals import bootstrap_interval
from cl_softcot.metrics.retention import groups, retention


def outcomes(right, n):
    return [1] * right + [0] * (n - right)


BEFORE = {
    "graph": outcomes(90, 100),
    "dates": outcomes(96, 100),
    "facts": outcomes(40, 50),
    "lists": outcomes(100, 100),
}
AFTER = {
    "graph": outcomes(50, 100),
    "dates": outcomes(90, 100),
    "facts": outcomes(40, 50),
    "lists": outcomes(30, 100),
}
STREAM = ["graph", "lists", "arithmetic"]


def test_groups_by_what_the_stream_trains_on():
    assert groups(list(AFTER), STREAM) == {
        "all": ["graph", "dates", "facts", "lists"],
        "same_family": ["graph", "lists"],
        "unrelated": ["dates", "facts"],
    }


def test_retention_by_hand():
    row = retention(AFTER, STREAM)
    assert row["families"] == {"graph": 0.5, "dates": 0.9, "facts": 0.8, "lists": 0.3}
    assert row["n"] == {"graph": 100, "dates": 100, "facts": 50, "lists": 100}
    assert row["all"] == pytest.approx(0.625)  # families weigh equally, not examples
    assert row["same_family"] == pytest.approx(0.4)
    assert row["unrelated"] == pytest.approx(0.85)
    for group in ("all", "same_family", "unrelated"):
        low, high = row[f"{group}_interval"]
        assert low < row[group] < high
    assert row["intervals"]["graph"] == list(bootstrap_interval(AFTER["graph"]))
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_group_without_families_is_none_and_not_zero():
    row = retention({"graph": outcomes(5, 10)}, ["graph"])
    assert row["unrelated"] is row["unrelated_interval"] is None
    assert row["same_family"] == row["all"] == 0.5
    assert retention({"dates": outcomes(5, 10)}, ["graph"])["same_family"] is None
    with pytest.raises(ValueError):
        retention({}, ["graph"])
    with pytest.raises(ValueError):
        retention({"graph": []}, ["graph"])


def test_cost_is_a_mean_over_answers():
    answers = [SimpleNamespace(n_tokens=4, forward_passes=5), SimpleNamespace(n_tokens=9, forward_passes=12)]
    assert cost_per_answer(answers) == {"tokens_per_answer": 6.5, "forward_passes_per_answer": 8.5, "n": 2}
    with pytest.raises(ValueError):
        cost_per_answer([])


def test_parameters_and_memory_are_counted():
    import torch

    assert count_parameters({"weight": torch.zeros(3, 4), "bias": torch.zeros(4)}) == 16
    assert count_parameters({}) == 0
    before = peak_memory_mb()
    block = np.ones(8_000_000)  # 64 MB
    after = peak_memory_mb()
    assert block.sum() == 8_000_000
    assert before is None or 10 < before <= after < 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the parent is inherited on Linux only")
def test_the_memory_of_a_parent_is_not_that_of_its_child():
    block = np.ones(50_000_000)  # 400 MB, here
    code = "from cl_softcot.metrics.cost import peak_memory_mb; print(peak_memory_mb())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(told.stdout) < block.nbytes / 1e6 < peak_memory_mb()
