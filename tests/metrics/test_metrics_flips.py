"""Flips and intransigence: by hand, over a run's rows, and against references."""

import numpy as np
import pytest

from cl_softcot import registry
from cl_softcot.errors import UserError
from cl_softcot.metrics import describe
from cl_softcot.metrics.flips import flips_of_run, sample_flips
from cl_softcot.metrics.intransigence import against_reference, intransigence
from cl_softcot.results.record import RunRecord

GOLDEN = [[0.3, 0.2, 0.2, 0.2], [0.6, 0.2, 0.1, 0.05], [0.8, 0.75, 0.15, 0.05], [0.76, 0.6, 0.7, 0.1], [0.7, 0.62, 0.78, 0.65]]


def test_sample_flips_by_hand():
    pre = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    post = [1, 1, 1, 0, 0, 0, 1, 0, 0, 0]
    # F = .3, B = .1; four choices: chance = .4/3 * .6 = .08
    flips = sample_flips(pre, post, k=4)
    assert flips == pytest.approx({"forgotten": 0.3, "gained": 0.1, "chance": 0.08, "forgotten_true": 0.22, "gained_true": 0.02})
    assert flips["forgotten"] - flips["gained"] == pytest.approx(np.mean(pre) - np.mean(post))
    # two choices: chance = .4 * .6 = .24, more than what was gained
    assert sample_flips(pre, post, k=2)["gained_true"] == 0.0
    open_answers = sample_flips(pre, post)
    assert open_answers["chance"] == 0.0 and open_answers["forgotten_true"] == pytest.approx(0.3)


def test_examples_may_differ_in_their_number_of_options():
    pre, post = [1, 1, 0, 0], [1, 0, 1, 0]
    assert sample_flips(pre, post, [3, 3, 3, 3]) == sample_flips(pre, post, 3)
    # 1/(k-1) is 1, 1/3, 0 and 1/2: their mean is 11/24; half wrong before and half after
    assert sample_flips(pre, post, [2, 4, None, 3])["chance"] == pytest.approx(11 / 24 / 4)
    with pytest.raises(ValueError, match="3 numbers of options for 4 examples"):
        sample_flips(pre, post, [2, 2, 2])


def test_pure_guessing_shows_no_true_forgetting():
    rng = np.random.default_rng(0)
    pre, post = (rng.random((2, 20_000)) < 0.25).astype(int)
    flips = sample_flips(pre, post, k=4)
    assert flips["forgotten"] == pytest.approx(0.1875, abs=0.01)
    assert flips["forgotten_true"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(("pre", "post", "k"), [([], [], None), ([1], [1, 0], None), ([0.5], [1], None), ([1], [0], 1)])
def test_flips_refuse_what_is_not_paired_outcomes(pre, post, k):
    with pytest.raises(ValueError):
        sample_flips(pre, post, k)


def test_flips_of_a_run_start_at_each_tasks_own_row_and_at_the_base():
    a, b = "open", "choice"
    rows = [[[0, 0, 0, 1], [0, 1]], [[1, 1, 1, 1], [0, 1]], [[1, 0, 0, 1], [1, 0]]]
    found = flips_of_run(rows, [a, b], {a: None, b: 3})
    assert found["tasks"][a]["since_own"].keys() == {"2"} and found["tasks"][b]["since_own"] == {}
    assert found["tasks"][a]["since_own"]["2"]["forgotten"] == 0.5
    assert found["tasks"][a]["since_base"]["1"]["gained"] == 0.75
    choice = found["tasks"][b]["since_base"]["2"]  # one lost, one won: chance .5/2 * .5
    assert (choice["forgotten"], choice["chance"], choice["forgotten_true"]) == (0.5, 0.125, 0.375)
    assert found["summary"] == {
        "flips/forgotten_true": 0.5,
        "flips/gained_true": 0.0,
        "flips/forgotten_true_since_base": pytest.approx((0.0 + 0.375) / 2),
        "flips/gained_true_since_base": pytest.approx((0.25 + 0.375) / 2),
    }
    assert all(describe(name) for name in found["summary"])
    fewer = [rows[0], [rows[1][0], [0]], rows[2]]  # a row with the first examples only
    assert flips_of_run(fewer, [a, b], {a: None, b: [3, 3]})["tasks"][b]["since_base"]["1"]["gained"] == 0.0
    alone = flips_of_run([row[:1] for row in rows[:2]], [a], {a: None})["summary"]
    assert alone["flips/forgotten_true"] is None and alone["flips/gained_true_since_base"] == 0.75


def test_tasks_say_how_many_options_they_have():
    def options(name, **settings):
        kind = registry.find("task", name)
        task = kind(kind.Settings(**settings), "mine")
        return {task.n_options_of(example) for example in task.examples("test", 4, 0)}

    assert options("graph") == options("graph", convention="by_position") == options("deduction", convention="yes_no") == {2}
    assert options("prosqa") == options("prontoqa") == {2}
    assert options("arithmetic") == options("dates") == options("facts") == options("lists") == {None}
    assert options("tracking", people=4) == {4}
    known = {name: registry.find("task", name).n_options for name in ("strategyqa", "aqua", "commonsenseqa", "mmlu", "gsm8k")}
    assert known == {"strategyqa": 2, "aqua": 5, "commonsenseqa": 5, "mmlu": 4, "gsm8k": None}


# ---------------------------------------------------------------------------------------------------- intransigence


def test_intransigence_against_reference_accuracies():
    # the diagonal is .60 .75 .70 .65: (.10 + .05 + 0 - .05) / 4
    assert intransigence(GOLDEN, [0.70, 0.80, 0.70, 0.60]) == pytest.approx(0.025)
    assert intransigence([[None], [0.5]], [0.75]) == 0.25
    with pytest.raises(ValueError, match="expected 4"):
        intransigence(GOLDEN, [0.7, 0.8])


def run(matrix, tasks=("a", "b"), reference=None, n=(10, 10), split="test"):
    accuracy = {"matrix": matrix, "n": list(n)}
    return RunRecord(method=reference or "m", reference=reference, tasks=list(tasks), accuracy=accuracy, split=split)


METHOD = run([[0.1, 0.2], [0.6, 0.3], [0.5, 0.4]])


def test_a_joint_run_gives_its_last_row_and_a_single_task_run_its_diagonal_in_any_order():
    reference = [[0.0, 0.0], [0.9, 0.1], [0.7, 0.8]]  # learned b, then a
    joint = against_reference(METHOD, run(reference, ("b", "a"), "joint"))
    assert joint == {"intransigence/joint": pytest.approx((0.8 - 0.6 + 0.7 - 0.4) / 2)}
    single = against_reference(METHOD, run(reference, ("b", "a"), "single_task"))
    assert single == {"intransigence/single_task": pytest.approx((0.8 - 0.6 + 0.9 - 0.4) / 2)}
    assert all(describe(name) for name in (*joint, *single))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (run([[0, 0], [1, 1], [1, 1]]), "not a reference"),
        (run([[0, 0], [1, 1], [1, 1]], ("a", "c"), "single_task"), "learned a, c, the run a, b"),
        (run([[0] * 3, *[[1] * 3] * 3], ("a", "b", "c"), "joint", (10, 10, 10)), "learned a, b, c"),
        (run([[0, 0], [1, 1], [1, 1]], reference="joint", n=(10, 20)), "other examples"),
        (run([[0, 0], [1, 1], [1, 1]], reference="joint", split="valid"), "other examples"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(reference, said):
    with pytest.raises(UserError, match=said):
        against_reference(METHOD, reference)
