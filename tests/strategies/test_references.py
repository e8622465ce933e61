"""The references: single_task begins every turn with the base, joint learns everything at once; both train as `of` does."""

import pytest
from run_fakes import finished, local_task, result, run_folders, small, start, write

from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.metrics.intransigence import against_reference
from cl_softcot.results.record import read_record
from strategies.joint import Joint
from strategies.lora import Lora

LEARNS = {"name": "lora", "rank": 2, "learning_rate": 0.01}


def method(name, strategy):
    return {"name": name, "reasoning": "cot", "strategy": strategy}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two streams that differ in their first task, each with a method and its two references."""
    found, methods = {}, [method("plain", LEARNS)]
    methods += [method(kind, {"name": kind, "of": LEARNS}) for kind in ("single_task", "joint")]
    for first in ("first", "other"):
        folder = tmp_path_factory.mktemp(first)
        data = small(evaluate={"retention": 0, "drift": 0, "retention_tasks": None})
        data |= {"methods": methods, "tasks": [local_task(first), local_task("second")]}
        ended = start(write(folder, data), "output_dir=out", cwd=folder)
        assert ended.status == 0, ended.text
        found[first] = {m["name"]: result(folder / "out", m["name"]) for m in methods}
        found[first]["folder"] = folder / "out"
    return found


def test_a_single_tasks_turn_does_not_know_the_turn_before(ran):
    own = {kind: [ran[first][kind]["losses"][1] for first in ("first", "other")] for kind in ("plain", "single_task")}
    assert own["single_task"][0] == own["single_task"][1]
    assert own["plain"][0] != own["plain"][1]  # or the comparison would show nothing
    texts = []
    for first in ("first", "other"):
        rows = (run_folders(ran[first]["folder"])["single_task"] / "predictions" / "row_2.jsonl").read_text().splitlines()
        texts.append([row for row in rows if '"task": "second"' in row])
    assert texts[0] == texts[1] and len(texts[0]) == 8


def test_the_first_turn_of_a_single_task_run_is_that_of_the_method(ran):
    plain, single = ran["first"]["plain"], ran["first"]["single_task"]
    assert single["losses"][0] == plain["losses"][0] and single["losses"][1] != plain["losses"][1]
    assert single["accuracy"]["matrix"][:2] == plain["accuracy"]["matrix"][:2]


def test_joint_learns_once_with_the_budget_of_the_whole_stream(ran):
    plain, joint = ran["first"]["plain"], ran["first"]["joint"]
    assert joint["cost"]["optimiser_steps"] == plain["cost"]["optimiser_steps"] == 12
    assert len(joint["losses"]) == 1 and len(plain["losses"]) == 2
    matrix = joint["accuracy"]["matrix"]
    assert len(matrix) == 3 and matrix[1] == matrix[2]
    assert joint["train_fingerprints"] == plain["train_fingerprints"]  # the same examples
    assert joint["cost"]["trained_parameters"] == plain["cost"]["trained_parameters"]
    assert joint["losses"][0] != ran["other"]["joint"]["losses"][0]  # the first task's examples are among them


def test_references_are_marked_and_methods_are_measured_against_them(ran):
    runs = ran["first"]
    assert [runs[kind]["reference"] for kind in ("plain", "single_task", "joint")] == [None, "single_task", "joint"]
    plain, single, joint = (runs[kind]["accuracy"]["matrix"] for kind in ("plain", "single_task", "joint"))
    wanted = sum(single[j + 1][j] - plain[j + 1][j] for j in (0, 1)) / 2
    records = {kind: read_record(runs[kind]) for kind in ("plain", "single_task", "joint")}
    assert against_reference(records["plain"], records["single_task"]) == {"intransigence/single_task": pytest.approx(wanted)}
    wanted = sum(joint[2][j] - plain[j + 1][j] for j in (0, 1)) / 2
    assert against_reference(records["plain"], records["joint"]) == {"intransigence/joint": pytest.approx(wanted)}


def test_flips_of_a_run_are_those_of_its_predictions():
    found = result(finished(), "full_coconut")
    matrix, flips = found["accuracy"]["matrix"], found["flips"]
    for j, task in enumerate(found["tasks"]):
        assert flips[task]["n_options"] is None
        for i, one in flips[task]["since_base"].items():
            assert one["forgotten"] - one["gained"] == pytest.approx(matrix[0][j] - matrix[int(i)][j])
    own = flips["first"]["since_own"]["2"]
    assert found["summary"]["flips/forgotten_true"] == own["forgotten_true"] == own["forgotten"]


def test_a_reference_trains_what_its_strategy_trains():
    joint = Joint(Joint.Settings(of={"name": "lora", "rank": 3}))
    assert isinstance(joint.inner, Lora) and joint.inner.settings.rank == 3
    assert (joint.changes_backbone, joint.writes_weights) == (False, False)
    assert Joint.learns_as(joint.settings) is Lora
    assert (Joint().changes_backbone, Joint().writes_weights) == (True, True)
    assert "owns nothing" in Joint.refuses(Joint.Settings(of="frozen_backbone"), "cot")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy": {"name": "joint", "of": "lroa"}}, "did you mean 'lora'"),
        ({"strategy": {"name": "joint", "of": {"name": "lora", "rnak": 3}}}, "rnak"),
        ({"strategy": {"name": "joint", "of": {"rank": 3}}}, "`of` names a strategy"),
        ({"strategy": {"name": "single_task", "of": "zero_shot"}}, "does not learn turn by turn"),
        ({"strategy": {"name": "single_task", "of": "joint"}}, "does not learn turn by turn"),
        ({"strategy": {"name": "single_task", "of": "frozen_backbone"}}, "owns nothing"),
        ({"strategy": "joint", "per_task": {"routing": "oracle"}}, "reference without a sequence"),
        ({"strategy": "joint", "plugins": [{"name": "replay", "mem_size": 8}]}, "reference without a sequence"),
    ],
)
def test_references_that_make_no_sense_are_refused(change, said, tmp_path):
    data = small() | {"methods": [{"name": "m", "reasoning": "cot", **change}]}
    with pytest.raises(UserError, match=said):
        load_experiment(write(tmp_path, data))
