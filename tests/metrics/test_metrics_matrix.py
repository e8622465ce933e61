"""Every convention by its name on one hand-worked matrix, and against Avalanche's own classes where they
agree.
"""

import math

import numpy as np
import pytest

from cl_softcot.machine.torchvision import ensure_torchvision
from cl_softcot.metrics import Meaning, catalogue, describe, matrix

BASE = [0.25, 0.12, 0.08, 0.04]
GOLDEN = [
    BASE,
    [0.60, 0.20, 0.10, 0.05],
    [0.80, 0.75, 0.15, 0.05],
    [0.76, 0.60, 0.70, 0.10],
    [0.70, 0.62, 0.78, 0.65],
]
EARLY_BEST = [row[:] for row in GOLDEN]
EARLY_BEST[1][1] = 0.90  # task 2 was at its best before its own turn

GOLDEN_VALUES = {
    "acc": 0.6875,  # (.70 + .62 + .78 + .65) / 4
    "learning_accuracy": 0.675,  # (.60 + .75 + .70 + .65) / 4
    "own_task_change": 0.5525,  # .675 - .1225
    "final_change": 0.565,  # .6875 - .1225
    "bwt/gem": 0.05 / 3,  # (.10 - .13 + .08) / 3
    "bwt/trace": 0.0125,  # .05 / 4
    "bwt/continuum": 0.26 / 6,  # (.20 + .16 - .15 + .10 - .13 + .08) / 6
    "fwt/gem": 0.07,  # (.08 + .07 + .06) / 3
    "forgetting/chaudhry": 0.05,  # (.10 + .13 - .08) / 3
    "forgetting/chaudhry_from_learned": 0.05,
    "forgetting/mammoth": 0.23 / 3,  # (.10 + .13 + 0) / 3
    "forgetting/avalanche": -0.05 / 3,
}


@pytest.mark.parametrize("name", GOLDEN_VALUES)
def test_golden_matrix(name):
    assert matrix.summary(GOLDEN)[name] == pytest.approx(GOLDEN_VALUES[name], abs=1e-12)


def test_a_summary_holds_these_numbers_and_no_others_accuracy_first():
    summary = matrix.summary(GOLDEN)
    assert set(summary) == set(GOLDEN_VALUES) and next(iter(summary)) == "acc"


def test_a_best_row_before_the_tasks_own_turn_separates_the_two_chaudhry_variants():
    values = matrix.summary(EARLY_BEST)
    assert values["forgetting/chaudhry"] == pytest.approx(0.10)
    assert values["forgetting/chaudhry_from_learned"] == pytest.approx(0.05)
    assert values["forgetting/mammoth"] == pytest.approx(0.23 / 3)
    assert values["bwt/gem"] == pytest.approx(0.05 / 3)


def test_one_task_leaves_transfer_and_forgetting_undefined():
    values = matrix.summary([[0.2], [0.9]])
    assert values["acc"] == values["learning_accuracy"] == 0.9
    assert values["own_task_change"] == pytest.approx(0.7)
    undefined = [name for name, value in values.items() if value is None]
    assert sorted(undefined) == sorted(name for name in values if name.split("/")[0] in ("bwt", "fwt", "forgetting"))


def test_unmeasured_values_make_only_what_needs_them_undefined():
    without_base = [[None] * 4, *GOLDEN[1:]]
    values = matrix.summary(without_base)
    assert values["fwt/gem"] is values["own_task_change"] is values["final_change"] is None
    assert values["bwt/gem"] == pytest.approx(0.05 / 3)

    seen_only = [BASE] + [row[: i + 1] + [math.nan] * (3 - i) for i, row in enumerate(GOLDEN[1:])]
    values = matrix.summary(seen_only)
    assert values["forgetting/chaudhry"] is None  # its maximum reaches back before the task's turn
    assert values["forgetting/chaudhry_from_learned"] == pytest.approx(0.05)
    assert values["forgetting/mammoth"] == pytest.approx(0.23 / 3)
    assert values["fwt/gem"] is None


def test_after_an_experience_only_its_rows_and_tasks_count():
    assert matrix.after(GOLDEN, 2).tolist() == [[0.25, 0.12], [0.60, 0.20], [0.80, 0.75]]
    assert matrix.bwt_gem(matrix.after(GOLDEN[:3], 2)) == pytest.approx(0.20)
    assert matrix.summary(matrix.after(GOLDEN, 4)) == matrix.summary(GOLDEN)
    for experience in (0, 5):
        with pytest.raises(ValueError, match="not among those measured"):
            matrix.after(GOLDEN, experience)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (GOLDEN[1:], "T\\+1 rows"),
        ([[]], "T\\+1 rows"),
        ([0.5, 0.5], "T\\+1 rows"),
        ([[0.1, 0.2], [0.3], [0.4, 0.5]], "equally long"),
        ([[10.0], [90.0]], "between 0 and 1"),
        ([[0.1], [-0.1]], "between 0 and 1"),
    ],
)
def test_what_is_no_accuracy_matrix_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        matrix.as_matrix(wrong)


def test_the_callers_rows_are_left_alone():
    rows = [row[:] for row in GOLDEN]
    matrix.summary(rows)
    assert rows == GOLDEN


def random_matrices(n=30):
    rng = np.random.default_rng(7)
    return [rng.random((T + 1, T)) for T in rng.integers(2, 7, size=n)]


def test_how_the_conventions_relate():
    for R in random_matrices():
        T, values = R.shape[1], matrix.summary(R)
        assert values["bwt/trace"] == pytest.approx(values["bwt/gem"] * (T - 1) / T)
        assert values["forgetting/avalanche"] == pytest.approx(-values["bwt/gem"])
        assert values["forgetting/mammoth"] >= 0
        assert values["forgetting/mammoth"] >= values["forgetting/chaudhry_from_learned"]
        assert values["forgetting/chaudhry"] >= values["forgetting/chaudhry_from_learned"]
        assert values["forgetting/chaudhry_from_learned"] >= values["forgetting/avalanche"] - 1e-12
        assert values["final_change"] - values["own_task_change"] == pytest.approx(values["bwt/trace"])
        if T == 2:
            assert values["bwt/continuum"] == pytest.approx(values["bwt/gem"])


def test_mammoth_by_its_zero_padded_table_of_seen_tasks():
    for R in random_matrices():
        T = R.shape[1]
        table = np.tril(R[1:])  # what mammoth and PyCIL hold: unseen tasks are 0
        expected = np.mean([table[:, j].max() - table[-1, j] for j in range(T - 1)])
        assert matrix.forgetting_mammoth(R) == pytest.approx(expected)


def test_cross_check_against_avalanche():
    ensure_torchvision()
    from avalanche.evaluation import functional
    from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
    from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer

    for R in [np.array(GOLDEN), np.array(EARLY_BEST), *random_matrices(10)]:
        T = R.shape[1]
        forgetting, bwt, fwt = Forgetting(), BWT(), ForwardTransfer()
        for j in range(T):
            fwt.update(j, R[0, j], initial=True)
        # as the stream metrics are fed: the first value on a task's own turn, the last value afterwards
        for i in range(1, T + 1):
            for metric in (forgetting, bwt):
                metric.reset_last()
                for j in range(i):
                    metric.update(j, R[i, j], initial=j == i - 1)
            if i < T:
                fwt.update(i, R[i, i])  # the task of the next experience
        assert matrix.forgetting_avalanche(R) == pytest.approx(np.mean(list(forgetting.result().values())))
        assert matrix.bwt_gem(R) == pytest.approx(np.mean(list(bwt.result().values())))
        assert matrix.fwt_gem(R) == pytest.approx(np.mean(list(fwt.result().values())))
        last_row = functional.forgetting(R[1:])[-1, :-1]
        assert matrix.forgetting_avalanche(R) == pytest.approx(last_row.mean())


def test_every_exported_name_has_a_formula_a_source_a_unit_and_a_direction():
    meanings = catalogue()
    assert set(matrix.summary(GOLDEN)) <= set(meanings)
    for name, meaning in meanings.items():
        assert isinstance(meaning, Meaning), name
        assert meaning.formula and meaning.source and meaning.unit and meaning.direction, name
    assert describe("forward_kl/general").unit == "nats per token"
    assert describe("bwt/gem").direction == "higher is better"
    assert describe("forgetting/chaudhry").direction == "lower is better"
    with pytest.raises(KeyError):
        describe("bwt/unknown")


def test_a_new_metric_is_one_new_file(tmp_path, monkeypatch):
    import cl_softcot.metrics as package

    (tmp_path / "worst_task.py").write_text(
        "from cl_softcot.metrics import Meaning\n"
        "def worst_task(matrix):\n"
        "    return matrix[-1].min()\n"
        "MEANING = Meaning('min_j R[T,j]', 'ours', 'fraction', 'higher is better', worst_task)\n"
        "CATALOGUE = {'acc/worst': MEANING}\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert matrix.summary(GOLDEN)["acc/worst"] == 0.62
