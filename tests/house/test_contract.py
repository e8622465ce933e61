"""What every plug-in owes, checked over the files that are there: a new one is tested by being added.

The checks are those of ``python -m cl_softcot.check``.
"""

from __future__ import annotations

import json
from functools import partial

import benchmark_rows
import pytest
from run_fakes import METHODS, finished, local_task, result, run_folders

from cl_softcot import metrics, registry
from cl_softcot.check import diagnostic, metric, reasoning, strategy, task

STRATEGIES, REASONINGS, TASKS, DIAGNOSTICS = (registry.known(kind) for kind in ("strategy", "reasoning", "task", "diagnostic"))
NEEDED = {"local_file": lambda: {k: v for k, v in local_task("first").items() if k not in ("name", "task")}}
NEEDED |= {name: partial(benchmark_rows.settings, name) for name in benchmark_rows.SETTINGS}


def settings_of(kind: str, name: str):
    """The settings that a plug-in has by itself."""
    return registry.find(kind, name).Settings(**NEEDED.get(name, dict)())


def go_together(learns: str, thinks: str) -> bool:
    s, r = registry.find("strategy", learns), registry.find("reasoning", thinks)
    return not (s.refuses(s.Settings(), thinks) or r.refuses(r.Settings(), learns))


PAIRS = [(s, r) for s in STRATEGIES for r in REASONINGS if go_together(s, r)]


def kept(lines) -> int:
    """How many rules there were; all are kept."""
    lines = list(lines)
    assert all(line.ok for line in lines), "\n".join(str(line) for line in lines if not line.ok)
    return len(lines)


def test_every_file_is_found_and_used():
    """Each strategy and each way of thinking has a partner, or nobody could ever run it."""
    assert {s for s, _ in PAIRS} == set(STRATEGIES)
    assert {r for _, r in PAIRS} == set(REASONINGS)
    assert {"zero_shot", "full_finetune", "lora", "frozen_backbone"} <= set(STRATEGIES)
    assert {"direct", "cot", "pause", "coconut", "softcot"} <= set(REASONINGS)
    assert len(TASKS) >= 8


@pytest.mark.parametrize(("learns", "thinks"), PAIRS)
def test_strategies(learns, thinks):
    """With every way of thinking that each goes with."""
    assert kept(strategy.check(registry.find("strategy", learns), name=learns, reasoning=thinks)) >= 5


@pytest.mark.parametrize("name", REASONINGS)
def test_ways_of_thinking(name):
    assert kept(reasoning.check(registry.find("reasoning", name), name=name)) >= 10


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name):
    cls, settings = registry.find("task", name), settings_of("task", name)
    assert kept(task.check(cls, settings)) >= 8
    if name != "local_file":  # its rows are the same for every seed, in another order
        split = cls(settings, "mine").splits[-1]
        assert cls(settings, "mine").examples(split, 8, 3) != cls(settings, "mine").examples(split, 8, 4)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics(name):
    assert kept(diagnostic.check(registry.find("diagnostic", name))) >= 4


def test_metrics():
    files = [module for module in registry.modules_of("cl_softcot.metrics").values() if hasattr(module, "CATALOGUE")]
    assert sum(kept(metric.check(module)) - 1 for module in files) == len(metrics.catalogue())


# ------------------------------------------------------------------------------------------ in a whole experiment


@pytest.mark.parametrize("method", METHODS)
def test_with_weights_alone_a_frozen_backbone_is_exactly_the_base(method):
    """Through the whole command: retention as the base's, drift 0.0."""
    found = result(finished(), method)
    retention, drift = found["retention"]["weights_alone"], found["drift"]["weights_alone"]
    if found["strategy"].get("of", found["strategy"])["name"] in ("frozen_backbone", "lora", "zero_shot"):
        assert all(row == retention[0] for row in retention)
        assert all(value == 0.0 for row in drift for key, value in row.items() if key.startswith(("forward_kl/", "reverse_kl/")))
    else:
        assert any(value > 0 for key, value in drift[-1].items() if key.startswith("forward_kl/"))


@pytest.mark.parametrize("method", ["softcot_oracle", "full_oracle"])
def test_oracle_copies_leave_earlier_rows_bit_identical(method):
    """After its own turn a task is answered by the same copy for ever; before it, by the base."""
    found, folder = result(finished(), method), run_folders(finished())[method]
    tasks, matrix = found["tasks"], found["accuracy"]["matrix"]
    answers = []
    for i in range(len(tasks) + 1):
        rows = [json.loads(line) for line in (folder / "predictions" / f"row_{i}.jsonl").read_text().splitlines()]
        answers.append({t: [r for r in rows if r["set"] == "task" and r["task"] == t] for t in tasks})
    for j, name in enumerate(tasks):
        for i in range(len(tasks) + 1):
            last_change = j + 1 if i > j else 0
            assert matrix[i][j] == matrix[last_change][j]
            assert answers[i][name] == answers[last_change][name]
    # Questions of no task of the stream are the base's.
    assert found["retention"]["as_used"][-1] == found["retention"]["as_used"][0]
    assert found["summary"]["forgetting/chaudhry"] == 0.0
