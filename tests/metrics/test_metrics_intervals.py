"""Intervals: known values, coverage, pairing, and honesty where resampling has nothing to say."""

import time

import numpy as np
import pytest

from cl_softcot.metrics import intervals
from cl_softcot.metrics.intervals import (
    Difference,
    Interval,
    bootstrap_interval,
    interquartile_mean,
    paired_difference,
    stratified_difference,
    stratified_interval,
    summary_intervals,
    wilson_interval,
)


def outcomes(right, n):
    return np.arange(n) < right


def test_wilson_by_hand():
    # z = 1.959964, z² = 3.841459; 8 of 10: centre .716740, half width .226678 (Wilson 1927)
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    z2 = 3.8414588
    assert wilson_interval(0, 300) == pytest.approx((0.0, z2 / (300 + z2)), abs=1e-9)
    assert wilson_interval(300, 300) == pytest.approx((300 / (300 + z2), 1.0), abs=1e-9)


def test_bootstrap_is_near_the_normal_interval_for_many_outcomes():
    low, high = bootstrap_interval(outcomes(240, 300), n_boot=20_000, seed=1)
    half = 1.96 * (0.8 * 0.2 / 300) ** 0.5
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)


def test_counts_drawn_from_a_multinomial_are_the_bootstrap_of_indices():
    values = outcomes(37, 60).astype(float)
    rng = np.random.default_rng(3)
    by_index = values[rng.integers(60, size=(40_000, 60))].mean(axis=1)
    by_count = intervals._resampled_means(values, 40_000, rng)
    assert by_count.mean() == pytest.approx(by_index.mean(), abs=0.002)
    assert by_count.std() == pytest.approx(by_index.std(), abs=0.002)
    scores = rng.random(200)  # many distinct values: the way of indices
    resampled = intervals._resampled_means(scores, 5_000, rng)
    assert resampled.shape == (5_000,)
    assert resampled.std() == pytest.approx(scores.std() / 200**0.5, rel=0.05)


def coverage(truth, draw, interval, trials=400):
    rng = np.random.default_rng(11)
    hits = 0
    for trial in range(trials):
        low, high = interval(draw(rng), trial)
        hits += low <= truth <= high
    return hits / trials


def test_coverage_of_one_accuracy():
    for p, n in ((0.8, 300), (0.35, 100)):
        share = coverage(p, lambda rng, p=p, n=n: rng.random(n) < p, lambda x, seed: bootstrap_interval(x, 500, seed))
        assert 0.91 <= share <= 0.98


def test_coverage_of_a_mean_over_unequal_tasks():
    tasks = ((0.9, 300), (0.5, 50), (0.2, 100))
    truth = np.mean([p for p, _ in tasks])
    share = coverage(
        truth,
        lambda rng: [rng.random(n) < p for p, n in tasks],
        lambda x, seed: stratified_interval(x, 500, seed),
    )
    assert 0.91 <= share <= 0.98


def test_coverage_of_a_paired_difference():
    def draw(rng):  # after: forgets a tenth of what it knew, gains a twentieth of what it did not
        before = rng.random(300) < 0.7
        flip = rng.random(300)
        return np.where(before, flip > 0.1, flip < 0.05), before

    truth = 0.7 * 0.9 + 0.3 * 0.05 - 0.7
    share = coverage(truth, draw, lambda x, seed: paired_difference(*x, n_boot=500, seed=seed)[1:])
    assert 0.91 <= share <= 0.98


def test_coverage_where_a_task_is_all_right_half_of_the_time():
    tasks = ((0.997, 200), (0.6, 200))
    share = coverage(
        np.mean([p for p, _ in tasks]),
        lambda rng: [rng.random(n) < p for p, n in tasks],
        lambda x, seed: stratified_interval(x, 500, seed),
    )
    assert share >= 0.91


def test_all_equal_outcomes_fall_back_to_wilson():
    assert bootstrap_interval(np.ones(300)) == pytest.approx(wilson_interval(300, 300))
    assert bootstrap_interval(np.zeros(20)) == pytest.approx(wilson_interval(0, 20))
    low, high = bootstrap_interval([1])
    assert low < 0.5 and high == 1.0


def test_identical_rows_differ_by_exactly_zero_with_an_honest_interval():
    right = outcomes(200, 300)
    value, low, high = difference = paired_difference(right, right)
    unseen = wilson_interval(0, 300).high
    assert value == 0.0
    assert (low, high) == pytest.approx((-unseen, unseen))
    assert not difference.shown
    assert stratified_difference([right, right], [right, right]).value == 0.0


def test_pairs_are_kept_together():
    before = outcomes(150, 300)
    after = before.copy()
    after[:15] = False  # 15 of 150 right ones forgotten, nothing else changed
    difference = paired_difference(after, before)
    assert difference.value == pytest.approx(-0.05)
    assert difference.shown and difference.high < 0
    unpaired = bootstrap_interval(after), bootstrap_interval(before)
    assert unpaired[0].high > unpaired[1].low  # the two single intervals overlap
    swapped = paired_difference(before, after)
    assert swapped.value == pytest.approx(0.05) and swapped.low > 0


def test_tasks_weigh_equally_whatever_their_size():
    small, large = outcomes(10, 10), outcomes(0, 1000)
    low, high = stratified_interval({"small": small, "large": large})
    assert low < 0.5 <= high
    varied = stratified_interval([outcomes(20, 40), outcomes(500, 1000)])
    assert varied.low == pytest.approx(0.5 - (varied.high - 0.5), abs=0.01)
    # variance of the mean of two: (.25/40 + .25/1000) / 4
    assert varied.high - 0.5 == pytest.approx(1.96 * ((0.25 / 40 + 0.25 / 1000) / 4) ** 0.5, abs=0.01)


def test_one_stratum_is_the_plain_interval():
    right = outcomes(123, 300)
    assert stratified_interval([right]) == bootstrap_interval(right)
    assert isinstance(bootstrap_interval(right), Interval)
    assert isinstance(paired_difference(right, right), Difference)


def test_a_fixed_seed_gives_the_same_interval_and_a_wider_level_a_wider_one():
    right = outcomes(90, 300)
    assert bootstrap_interval(right, seed=5) == bootstrap_interval(right, seed=5)
    narrow, wide = bootstrap_interval(right, level=0.8), bootstrap_interval(right, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_thousand_resamples_of_300_outcomes_take_milliseconds():
    right = outcomes(240, 300)
    bootstrap_interval(right)
    start = time.process_time()
    for _ in range(20):
        bootstrap_interval(right, n_boot=1000)
    assert (time.process_time() - start) / 20 < 0.01


def test_intervals_of_the_summary_hold_its_values():
    from cl_softcot.metrics import matrix

    rng = np.random.default_rng(2)
    accuracy = [[0.2, 0.1, 0.3], [0.9, 0.2, 0.3], [0.6, 0.8, 0.2], [0.5, 0.7, 1.0]]
    table = [[rng.random(200) < p for p in row] for row in accuracy]
    R = [[float(x.mean()) for x in row] for row in table]
    values, found = matrix.summary(R), summary_intervals(table)
    assert set(found) == {"acc", "learning_accuracy", "own_task_change", "final_change", "bwt/gem", "fwt/gem"}
    for name, (low, high) in found.items():
        assert low < values[name] < high, name
        assert high - low < 0.15, name
    one_task = summary_intervals([[outcomes(1, 9)], [outcomes(8, 9)]])
    assert one_task["bwt/gem"] is one_task["fwt/gem"] is None and one_task["acc"] is not None
    with pytest.raises(ValueError, match="T\\+1 rows"):
        summary_intervals(table[1:])


def test_interquartile_mean_by_hand():
    assert interquartile_mean([0, 1, 2, 3, 4, 5, 6, 100]) == 3.5  # 2, 3, 4, 5
    assert interquartile_mean([[1, 2], [3, 50]]) == 2.5
    assert interquartile_mean([1, 2, 6]) == 3.0  # three scores: nothing is dropped
    with pytest.raises(ValueError):
        interquartile_mean([])


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval([]),
        lambda: bootstrap_interval([0.0, float("nan")]),
        lambda: bootstrap_interval([0, 2]),
        lambda: bootstrap_interval([[0, 1]]),
        lambda: bootstrap_interval([0, 1], level=95),
        lambda: bootstrap_interval([0, 1], n_boot=0),
        lambda: paired_difference([0, 1], [1]),
        lambda: stratified_interval([]),
        lambda: stratified_difference([[0, 1]], [[0, 1], [1, 1]]),
        lambda: stratified_difference({"a": [1]}, {"b": [1]}),
        lambda: stratified_difference({"a": [1]}, [[1]]),
        lambda: wilson_interval(3, 2),
    ],
)
def test_nothing_measured_or_nonsense_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_stratified_difference_matches_tasks_by_name():
    a, b = {"x": [1, 1, 0, 1], "y": [0, 0, 1, 1]}, {"y": [0, 0, 0, 1], "x": [1, 0, 0, 0]}
    assert stratified_difference(a, b).value == pytest.approx((0.5 + 0.25) / 2)
