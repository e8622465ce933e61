"""Statistics over runs: known values (rliable's among them), coverage by simulation, pairing, and honesty with few runs."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from cl_softcot.errors import UserError
from cl_softcot.metrics.intervals import interquartile_mean
from cl_softcot.results.outcomes import scores_of_run
from cl_softcot.results.record import RunRecord
from cl_softcot.statistics.aggregate import aggregate, performance_profile, probability_of_improvement
from cl_softcot.statistics.many import benjamini_hochberg, compare, holm
from cl_softcot.statistics.paired import Unit, paired_difference

# Three runs and four runs on three tasks; rliable 1.2.0 gives the values that are compared with below.
X = np.array([[0.9, 0.4, 0.7], [0.8, 0.5, 0.7], [0.95, 0.45, 0.2]])
Y = np.array([[0.7, 0.5, 0.7], [0.85, 0.35, 0.6], [0.6, 0.45, 0.1], [0.9, 0.1, 0.3]])


def by_task(table):
    return {task: table[:, task] for task in range(table.shape[1])}


# ------------------------------------------------------------------------------------------------------- aggregates


def test_values_are_those_of_rliable():
    assert aggregate(by_task(X), "iqm").value == pytest.approx(0.63, abs=1e-12)
    assert aggregate(by_task(X), "mean").value == pytest.approx(0.6222222222, abs=1e-9)
    assert probability_of_improvement(by_task(X), by_task(Y)).value == pytest.approx(0.7083333333, abs=1e-9)


def test_probability_of_improvement_counts_ties_as_halves_and_turns_round():
    assert probability_of_improvement({"t": [1, 1]}, {"t": [1, 1]}).value == 0.5
    assert probability_of_improvement({"t": [2, 3]}, {"t": [1, 2]}).value == 0.875  # three wins and one tie of four
    there, back = (probability_of_improvement(by_task(a), by_task(b)).value for a, b in ((X, Y), (Y, X)))
    assert there + back == pytest.approx(1.0)
    apart = probability_of_improvement({"t": [5, 6, 7]}, {"t": [1, 2, 3]})
    assert (apart.low, apart.value, apart.high) == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="different strata"):
        probability_of_improvement({"t": [1]}, {"u": [1]})


def test_the_mean_of_one_stratum_has_students_interval():
    values = [0.61, 0.70, 0.64, 0.75]
    found = aggregate({"all": values}, "mean", n_boot=60_000)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.002)
    assert (found.n, found.note) == (4, "")


def test_runs_are_resampled_whole_where_the_tasks_of_a_run_stand_together():
    rng = np.random.default_rng(0)
    table = rng.normal(0.5, 0.1, size=(30, 1)) + np.zeros((30, 4))  # a good run is good at every task
    together, apart = aggregate({"given": table}, "mean", seed=1), aggregate(by_task(table), "mean", seed=1)
    assert together.value == pytest.approx(apart.value)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2.0, rel=0.08)


def test_strata_may_differ_in_runs_and_the_spread_between_them_does_not_count():
    flat = aggregate({"easy": [0.9, 0.9, 0.9], "hard": [0.1, 0.1]}, "mean")
    assert flat.low == flat.value == flat.high == pytest.approx(0.58)
    assert flat.n == 5


def test_one_run_has_no_interval_and_says_why():
    found = aggregate({"t": [0.5]})
    assert (found.value, found.low, found.high) == (0.5, None, None)
    assert "one run" in found.note
    assert aggregate({"a": [0.5, 0.6], "b": [0.1]}).low is None
    assert probability_of_improvement({"t": [1.0]}, {"t": [0.0]}).low is None
    assert "too narrow" in aggregate(by_task(X), interval="percentile").note
    for wrong in ({}, {"t": []}, {"t": [0.1, np.nan]}):
        with pytest.raises(ValueError):
            aggregate(wrong)


@pytest.mark.parametrize(("runs", "tasks", "statistic"), [(3, 3, "mean"), (3, 4, "iqm"), (5, 1, "iqm")])
def test_coverage_of_aggregates(runs, tasks, statistic):
    rng, level = np.random.default_rng(5), np.linspace(0.2, 0.9, tasks)

    def draw():
        return {task: rng.normal(level[task], 0.05, runs) for task in range(tasks)}

    measure = interquartile_mean if statistic == "iqm" else np.mean
    truth = np.mean([measure(list(draw().values())) for _ in range(2000)])
    found = [aggregate(draw(), statistic, n_boot=200, seed=i) for i in range(300)]
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_the_percentile_interval_holds_its_level_with_many_runs_only():
    rng = np.random.default_rng(6)

    def covered(runs):
        drawn = [aggregate({"t": rng.normal(0, 1, runs)}, "mean", interval="percentile", n_boot=300, seed=i) for i in range(400)]
        return np.mean([e.low <= 0 <= e.high for e in drawn])

    assert 0.92 <= covered(80) <= 0.98
    assert covered(3) < 0.85


def test_performance_profile_by_hand_and_its_band():
    profile = performance_profile(by_task(X), [0.1, 0.45, 0.7, 0.95])
    assert profile.share == pytest.approx([1.0, 6 / 9, 3 / 9, 0.0])  # above, not at, the threshold
    assert profile.low[0] == profile.high[0] == 1.0
    assert profile.low[1] <= profile.share[1] <= profile.high[1]
    rng, truth = np.random.default_rng(7), 1 - stats.norm.cdf(0.3)
    bands = [performance_profile({"t": rng.normal(0, 1, 60)}, [0.3], n_boot=300, seed=i) for i in range(300)]
    assert 0.91 <= np.mean([b.low[0] <= truth <= b.high[0] for b in bands]) <= 0.98
    assert performance_profile({"t": [1.0]}, [0.5]).low == [None]


# ----------------------------------------------------------------------------------------------------------- pairs


def paired(difference_RQ, task="t", cluster=None):
    """Scores of two methods whose difference is given, [runs, questions]."""
    a, b = {}, {}
    for (run, question), value in np.ndenumerate(np.asarray(difference_RQ, dtype=float)):
        unit = Unit(run, task, f"{task}/{question}", None if cluster is None else cluster[question])
        a[unit], b[unit] = 0.5 + value / 2, 0.5 - value / 2
    return a, b


def test_one_run_has_the_paired_t_test_over_questions():
    d = np.array([1, 0, 0, -1, 1, 1, 0, 0, 1, 0.5])
    found = paired_difference(*paired([d]))
    test = stats.ttest_1samp(d, 0)
    low, high = test.confidence_interval()
    assert (found.value, found.p) == pytest.approx((d.mean(), test.pvalue))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.covers, found.n_runs, found.n_questions, found.spread.df_questions) == ("questions", 1, 10, 9)
    assert "training seeds is not known" in found.note


def test_clustered_error_by_hand():
    # Clusters {0, 1}, {2, 3}, {4}: mean .4, sums of residuals 1.2, -.8, -.4; 3/2 (1.44 + .64 + .16) / 25
    found = paired_difference(*paired([[1, 1, 0, 0, 0]], cluster="aabbc"))
    assert found.value == pytest.approx(0.4)
    assert found.se == pytest.approx(math.sqrt(1.5 * (1.44 + 0.64 + 0.16) / 25))
    assert (found.n_questions, found.spread.df_questions) == (3, 2)


def test_tasks_weigh_equally_and_have_their_own_variance():
    a1, b1 = paired([[1, 0, 1, 0]], "one")
    a2, b2 = paired([[1, 1, 0, 0, 0, 0, 0, 0]], "two")
    found = paired_difference(a1 | a2, b1 | b2)
    assert found.value == pytest.approx((0.5 + 0.25) / 2)
    errors = stats.sem([1, 0, 1, 0]), stats.sem([1, 1, 0, 0, 0, 0, 0, 0])
    assert found.se == pytest.approx(math.hypot(*errors) / 2)


def test_scores_of_whole_runs_have_the_paired_t_test_over_runs():
    a = {Unit(seed, "bwt"): value for seed, value in enumerate([-0.1, -0.2, -0.15])}
    b = {Unit(seed, "bwt"): value for seed, value in enumerate([-0.3, -0.35, -0.4])}
    found, test = paired_difference(a, b), stats.ttest_rel(list(a.values()), list(b.values()))
    assert (found.p, found.covers, found.spread.df_runs) == (pytest.approx(test.pvalue), "runs", 2)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    one = paired_difference({Unit(0, "bwt"): 0.1}, {Unit(0, "bwt"): 0.3})
    assert (one.value, one.se, one.p, one.covers) == (pytest.approx(-0.2), None, None, "nothing")


def test_questions_that_are_the_same_in_every_run_are_not_more_questions():
    d = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], size=40)
    one, four = paired_difference(*paired([d])), paired_difference(*paired([d, d, d, d]))
    assert four.se == pytest.approx(one.se)
    assert four.covers == "runs and questions"


def test_runs_that_differ_as_wholes_widen_the_interval():
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.1, size=(3, 200))
    close, far = (paired_difference(*paired(noise + np.array([[-s], [0.0], [s]]))) for s in (0.0, 0.2))
    assert far.se == pytest.approx(stats.sem([-0.2, 0, 0.2]), rel=0.05)
    assert close.se < far.se / 8
    assert far.high - far.low == pytest.approx(2 * stats.t.ppf(0.975, 2) * far.se, rel=0.05)  # questions hardly count


def crossed(rng, runs, questions, of_run, of_question):
    chance = 0.55 + rng.normal(0, of_run, (runs, 1)) + rng.normal(0, of_question, questions)
    right = rng.random((2, runs, questions))
    return paired((right[0] < chance.clip(0, 1)).astype(float) - (right[1] < 0.5))


@pytest.mark.parametrize(
    ("runs", "questions", "of_run", "of_question"), [(1, 60, 0.0, 0.2), (2, 80, 0.15, 0.0), (3, 80, 0.1, 0.1), (5, 60, 0.15, 0.0)]
)
def test_coverage_of_paired_differences(runs, questions, of_run, of_question):
    rng = np.random.default_rng(4)
    found = [paired_difference(*crossed(rng, runs, questions, of_run, of_question)) for _ in range(300)]
    assert 0.92 <= np.mean([d.low <= 0.05 <= d.high for d in found]) <= (0.98 if runs != 2 else 1.0)


def test_closed_form_and_cluster_bootstrap_agree():
    rng = np.random.default_rng(8)
    clusters = [f"c{i // 3}" for i in range(90)]
    shared = np.repeat(rng.normal(0, 0.3, 30), 3)  # three questions of a passage go up and down together
    cases = [paired([shared + rng.normal(0, 0.2, 90)], cluster=clusters), crossed(rng, 8, 60, 0.15, 0.1)]
    cases.append(tuple({Unit(seed, "acc"): x for seed, x in enumerate(rng.normal(0, 1, 12))} for _ in range(2)))
    for a, b in cases:
        closed, drawn = (paired_difference(a, b, how=how, n_boot=4000) for how in ("closed", "bootstrap"))
        assert drawn.se == pytest.approx(closed.se, rel=0.05)
        assert drawn.value == closed.value
    loose = paired_difference(*paired([shared + rng.normal(0, 0.2, 90)]))
    assert paired_difference(*cases[0]).se > 1.3 * loose.se  # forgetting the passages claims too much


def test_no_spread_is_not_certainty():
    same = paired_difference(*paired([np.zeros(50)]))
    assert same.value == 0.0 and same.p == 1.0
    assert same.high == pytest.approx(stats.t.ppf(0.975, 49) / 1.959964 * 3.841459 / 53.841459, rel=1e-4)
    always = paired_difference(*paired([np.ones(50)]))
    assert always.p < 0.001 and 0.8 < always.low < 1.0 and always.high == 1.0


@pytest.mark.parametrize(("runs", "p"), [(2, 0.5), (5, 0.0625), (10, 2**-9)])
def test_runs_that_are_all_alike_are_a_sign_test(runs, p):
    """Two equal differences have no spread, and Student's test would call them certain."""
    a = {Unit(run, "acc"): 0.3 + 0.1 * run for run in range(runs)}
    found = paired_difference(a, {unit: score - 0.0137 for unit, score in a.items()})
    assert found.value == pytest.approx(0.0137) and found.p == pytest.approx(p)
    assert found.se is None and found.low is None and "sign test" in found.note
    line = compare({"a": a, "b": {u: x - 0.0137 for u, x in a.items()}})[0]
    assert line.verdict == ("a better" if p < 0.05 else "no difference shown") and line.smallest_shown is None
    assert paired_difference(a, a).p == 1.0


def test_pairs_must_be_of_the_same_questions():
    a, b = paired(np.zeros((2, 3)))
    with pytest.raises(UserError, match="not measured on the same questions"):
        paired_difference(a, {u: x for u, x in b.items() if u.question != "t/1"})
    with pytest.raises(UserError, match="no run in common"):
        paired_difference(a, {u._replace(run=9): x for u, x in b.items()})
    fewer = paired_difference(a, {u: x for u, x in b.items() if u.run == 0})
    assert fewer.n_runs == 1 and "1 runs that only one" in fewer.note


# ------------------------------------------------------------------------------------------------- many comparisons


def test_corrections_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    with pytest.raises(ValueError):
        holm([1.2])


def methods(**shifts):
    rng, found = np.random.default_rng(9), {}
    for name, shift in shifts.items():
        right = rng.random((3, 200)) < 0.5 + shift
        found[name] = {Unit(r, "t", f"t/{q}"): float(x) for (r, q), x in np.ndenumerate(right)}
    return found


def test_verdicts_follow_the_corrected_p_values():
    lines = compare(methods(good=0.35, same=0.0, also=0.01))
    verdicts = {(line.a, line.b): line.verdict for line in lines}
    assert verdicts == {
        ("good", "same"): "good better",
        ("good", "also"): "good better",
        ("same", "also"): "no difference shown",
    }
    assert [line.p_adjusted for line in lines] == pytest.approx(holm([line.difference.p for line in lines]))
    assert {line.verdict for line in compare(methods(good=0.35, same=0.0), higher_is_better=False)} == {"same better"}
    for line in lines:
        shown = abs(line.difference.value) > line.smallest_shown
        assert shown == (line.verdict != "no difference shown")
        assert line.smallest_with_power_80 > line.smallest_shown
        json.dumps(line.to_data())


def test_the_smallest_difference_is_where_the_verdict_turns():
    (line,) = compare(methods(a=0.1, b=0.0))
    base = methods(a=0.1, b=0.0)
    turned = []
    for factor in (0.98, 1.02):
        shift = factor * line.smallest_shown - line.difference.value
        moved = {unit: x + shift for unit, x in base["a"].items()}
        turned.append(compare({"a": moved, "b": base["b"]})[0].verdict)
    assert turned == ["no difference shown", "a better"]


def test_a_single_number_shows_nothing():
    (line,) = compare({"a": {Unit(0, "acc"): 0.9}, "b": {Unit(0, "acc"): 0.1}})
    assert (line.verdict, line.p_adjusted, line.smallest_shown) == ("no difference shown", None, None)
    with pytest.raises(UserError, match="no method 'c'"):
        compare({"a": {}, "b": {}}, [("a", "c")])


def test_false_claims_stay_rare_where_nothing_differs():
    rng, claims = np.random.default_rng(10), 0
    for _ in range(80):
        right = rng.random((3, 2, 30)) < 0.5
        three = {str(m): {Unit(r, "t", str(q)): float(x) for (r, q), x in np.ndenumerate(right[m])} for m in range(3)}
        claims += any(line.verdict != "no difference shown" for line in compare(three))
    assert claims <= 9  # 5 % of 80, and three standard errors above


def test_scores_are_read_from_a_runs_folder(tmp_path):
    (tmp_path / "predictions").mkdir()
    lines = [
        {"set": "task", "task": "t", "id": "t/test/0", "outcome": "right", "meta": {"cluster": "p1"}},
        {"set": "task", "task": "t", "id": "t/test/1", "outcome": "unanswered", "meta": {}},
        {"set": "retention", "task": "u", "id": "u/test/0", "outcome": "right", "meta": {}},
    ]
    for row in (0, 1):
        text = "".join(json.dumps(line) + "\n" for line in lines[row:])
        (tmp_path / "predictions" / f"row_{row}.jsonl").write_text(text)
    record = RunRecord(method="m", seed=3, accuracy={"matrix": [[0], [0]]}, folder=tmp_path)
    run = (3, "given")
    assert scores_of_run(record, 0) == {Unit(run, "t", "t/test/0", "p1"): 1.0, Unit(run, "t", "t/test/1"): 0.0}
    assert scores_of_run(record) == {Unit(run, "t", "t/test/1"): 0.0}
    assert scores_of_run(record, kind="retention") == {Unit(run, "u", "u/test/0"): 1.0}
    assert scores_of_run(record.in_folder(tmp_path / "elsewhere")) is None
    with pytest.raises(UserError, match="load_results"):
        scores_of_run(RunRecord(method="m", accuracy={"matrix": [[0], [0]]}))
