"""The analysis of forgetting against drift: known laws are found again, checkpoints are not taken for independent ones."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from cl_softcot.files import atomic_write_json
from cl_softcot.law import __main__ as command
from cl_softcot.law.fit import accuracy_matched, fit_law, law_table, monotone, quadratic, r_squared, spearman
from cl_softcot.law.points import Point, family_of, moved, points_from, points_of
from cl_softcot.results.record import RunRecord


def point(run="r", method="m", kl=1.0, forgetting=0.0, **fields):
    known = {
        "run": run, "method": method, "family": fields.pop("family", method), "experience": 1, "task": "t", "checkpoint": 1,
        "view": "as_used", "inputs": "new_task", "outcome": "base_abilities", "forward_kl": kl, "reverse_kl": kl / 2,
        "forgetting": forgetting, "accuracy": None,
    }  # fmt: skip
    return Point(**{**known, **fields})


def cloud(law, direction="forward_kl"):
    return law["groups"][0]["everything"][direction]


def weights(values):
    return np.ones(len(values))


# ------------------------------------------------------------------------------------------------------------ the forms


def test_a_quadratic_law_is_found_again_with_its_coefficients():
    law = lambda x: 0.02 + 0.15 * x - 0.01 * x**2  # noqa: E731
    points = [point(f"{m}{s}", m, x := 0.1 + i + 0.3 * s, law(x)) for m in "abc" for s in range(3) for i in range(4)]
    found = fit_law(points, bootstrap=50)
    forward, reverse = cloud(found), cloud(found, "reverse_kl")
    assert forward["fits"]["quadratic"]["coefficients"] == pytest.approx({"a": 0.02, "b": 0.15, "c": -0.01}, abs=1e-9)
    assert forward["fits"]["quadratic"]["r2"]["value"] == pytest.approx(1)
    assert forward["fits"]["quadratic"]["r2"]["interval"] == pytest.approx([1, 1])
    assert forward["leave_one_method_out"]["quadratic"]["r2"]["value"] == pytest.approx(1)
    # The other direction is half as long: its coefficients follow.
    assert reverse["fits"]["quadratic"]["coefficients"] == pytest.approx({"a": 0.02, "b": 0.3, "c": -0.04}, abs=1e-9)


def test_noise_of_known_size_gives_its_r2():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 2, 4000)
    clean = 0.3 * x
    y = clean + rng.normal(0, clean.std(), len(x))  # half of the variance is noise
    found = quadratic(x, y, weights(x))
    assert r_squared(y, np.polyval(found[::-1], x), weights(x)) == pytest.approx(0.5, abs=0.03)
    assert found == pytest.approx([0, 0.3, 0], abs=0.05)


def test_through_zero_has_no_constant_and_may_be_worse_than_the_mean():
    x = np.array([1.0, 1.1, 1.2, 3.0, 3.1])
    y = np.array([5.0, 5.0, 5.1, 5.0, 5.1])
    a, b, c = quadratic(x, y, weights(x), constant=False)
    expected = np.linalg.lstsq(np.stack([x, x**2], 1), y, rcond=None)[0]
    assert a == 0 and [b, c] == pytest.approx(expected.tolist())
    assert r_squared(y, b * x + c * x**2, weights(x)) < 0


def test_two_places_do_not_determine_a_quadratic():
    x, y = np.array([1.0, 1.0, 2.0, 2.0]), np.array([0.0, 0.1, 0.2, 0.3])
    assert quadratic(x, y, weights(x)) is None
    assert quadratic(np.array([1.0, 2.0, 3.0]), np.ones(3), np.array([1.0, 1.0, 0.0])) is None


def test_monotone_is_pool_adjacent_violators_by_hand():
    # 3 and 1 violate the order and are pooled to 2; two points at one place count as their mean, twice.
    knots = monotone(np.array([0.0, 1.0, 2.0, 3.0, 3.0]), np.array([0.0, 3.0, 1.0, 4.0, 6.0]), np.ones(5))
    assert knots[0].tolist() == [0, 1, 2, 3] and knots[1].tolist() == [0, 2, 2, 5]
    weighted = monotone(np.array([0.0, 1.0]), np.array([4.0, 0.0]), np.array([1.0, 3.0]))
    assert weighted[1].tolist() == [1, 1]


def test_weighted_ranks_are_those_of_repeated_points():
    rng = np.random.default_rng(1)
    x, y, w = rng.integers(0, 6, 30).astype(float), rng.normal(size=30), rng.integers(0, 4, 30)
    repeated = spearmanr(np.repeat(x, w), np.repeat(y, w)).statistic
    assert spearman(x, y, w.astype(float)) == pytest.approx(repeated)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0), np.ones(5)))


# ------------------------------------------------------------------------------------------------- what is independent


def noisy_runs(n_runs=12, checkpoints=20, seed=0):
    """Checkpoints of a run share the run's own offset: they are nearly one observation."""
    rng = np.random.default_rng(seed)
    return [
        point(f"r{r}", "ab"[r % 2], 0.5 + r / 4 + 0.01 * i, 0.1 * r / 4 + offset, checkpoint=i)
        for r, offset in enumerate(rng.normal(0, 0.15, n_runs))
        for i in range(checkpoints)
    ]


def test_intervals_over_runs_are_wider_than_over_checkpoints():
    points = noisy_runs()
    clustered = cloud(fit_law(points, bootstrap=80))["fits"]["quadratic"]["r2"]
    naive = cloud(fit_law([replace(p, run=str(i)) for i, p in enumerate(points)], bootstrap=80))["fits"]["quadratic"]["r2"]
    width = lambda number: number["interval"][1] - number["interval"][0]  # noqa: E731
    assert clustered["value"] == naive["value"]
    assert width(clustered) > 2 * width(naive)


def test_copies_of_a_checkpoint_do_not_tighten_an_interval():
    points = noisy_runs(checkpoints=1)
    once, often = (cloud(fit_law(points * k, bootstrap=30))["fits"]["quadratic"]["r2"] for k in (1, 5))
    assert often["interval"] == pytest.approx(once["interval"])


def test_two_runs_give_no_interval():
    points = [point(r, r, x, x**2) for r in "ab" for x in (0.1, 0.5, 1.0)]
    found = cloud(fit_law(points))
    assert found["fits"]["quadratic"]["r2"] == {"value": pytest.approx(1), "interval": None}


def test_runs_that_never_moved_are_counted_and_not_fitted():
    moving = [point(f"r{r}", "ab"[r % 2], 1 + r, 0.1 * r) for r in range(6)]
    frozen = [point(f"z{i}", "frozen", 0.0, 0.0, checkpoint=c) for i in range(5) for c in (1, 2)]
    with_zeros, without = fit_law(moving + frozen, bootstrap=40), fit_law(moving, bootstrap=40)
    group = with_zeros["groups"][0]
    assert group["zero_runs"] == [f"z{i}" for i in range(5)] and group["points"] == 16
    assert cloud(with_zeros) == cloud(without)
    assert "frozen" not in group["families"]
    # A run that did move later keeps its first, unmoved checkpoint; and one that forgot without drift is no zero run.
    later = [point("z", "m", 0.0, 0.0, checkpoint=1), point("z", "m", 0.3, 0.0, checkpoint=2)]
    assert moved(later) == (later, [])
    assert moved([point("f", "m", 0.0, 0.2)])[1] == []


# ----------------------------------------------------------------------------------------------- leave one method out


def test_leaving_a_method_out_by_hand():
    # a lies on f = x, b on f = x + 1, three points each. Fitted to the other alone (a line is a quadratic with c = 0),
    # each is missed by 1 everywhere: 6 squared errors of 1. All f: 1, 2, 3, 2, 3, 4, mean 2.5, total 5.5.
    points = [point(f"{m}{x}", m, x, x + up) for m, up in (("a", 0.0), ("b", 1.0)) for x in (1.0, 2.0, 3.0)]
    found = cloud(fit_law(points, bootstrap=0))["leave_one_method_out"]["quadratic"]
    assert found["r2"] == {"value": pytest.approx(1 - 6 / 5.5), "interval": None}
    assert found["bias"]["a"]["value"] == pytest.approx(-1) and found["bias"]["b"]["value"] == pytest.approx(1)


def test_one_method_has_nothing_to_be_predicted_from():
    found = cloud(fit_law([point(f"r{i}", "m", i, i**1.5) for i in range(6)], bootstrap=20))
    assert found["leave_one_method_out"]["quadratic"]["r2"] == {"value": None, "interval": None}
    assert found["fits"]["quadratic"]["r2"]["value"] > 0.99


def test_families_and_unions_are_fitted_for_themselves():
    points = [
        point(f"{m}{i}", m, i, {"a": i, "b": 2 * i, "c": -3 * i}[m], family={"a": "x", "b": "x", "c": "y"}[m])
        for m in "abc"
        for i in range(1, 7)
    ]
    group = fit_law(points, unions={"both": ["x", "y"]}, bootstrap=0)["groups"][0]
    r2 = lambda both: both["forward_kl"]["fits"]["quadratic"]["r2"]["value"]  # noqa: E731
    assert r2(group["families"]["y"]) == pytest.approx(1) and r2(group["families"]["x"]) < 0.9
    assert group["unions"]["both"]["forward_kl"] == group["everything"]["forward_kl"]
    assert group["families"]["y"]["forward_kl"]["methods"] == ["c"]


def test_views_are_never_mixed_and_what_was_not_measured_is_told():
    points = [point(f"r{i}", "m", i + 1, i) for i in range(6)]
    alone = [replace(p, view="weights_alone", forgetting=7.0 - p.forgetting) for p in points]
    unmeasured = [replace(points[0], run="u", forward_kl=None), replace(points[0], run="v", forward_kl=float("inf"))]
    law = fit_law(points + alone + unmeasured, bootstrap=0)
    assert [g["view"] for g in law["groups"]] == ["as_used", "weights_alone"]
    assert law["groups"][0]["not_measured"] == {"forward_kl": 2, "reverse_kl": 0}
    assert cloud(law)["points"] == 6 and cloud(law)["spearman"]["value"] == pytest.approx(1)
    assert law["groups"][1]["everything"]["forward_kl"]["spearman"]["value"] == pytest.approx(-1)
    json.dumps(law, allow_nan=False)


def test_a_handful_of_points_is_not_fitted():
    assert "4 points" in cloud(fit_law([point(f"r{i}", "m", i, i) for i in range(1, 5)]))["why_none"]


def test_the_same_points_give_the_same_numbers_and_another_seed_other_intervals():
    points = noisy_runs(checkpoints=2)
    assert fit_law(points, bootstrap=15) == fit_law(points, bootstrap=15)
    other = fit_law(points, bootstrap=15, seed=1)
    assert cloud(other)["spearman"]["value"] == cloud(fit_law(points, bootstrap=15))["spearman"]["value"]
    assert cloud(other)["spearman"]["interval"] != cloud(fit_law(points, bootstrap=15))["spearman"]["interval"]


# ------------------------------------------------------------------------------------------------- at equal accuracy


def path(method, run, rows, **fields):
    return [
        point(run, method, kl, forgetting, checkpoint=i, accuracy=accuracy, **fields)
        for i, (accuracy, forgetting, kl) in enumerate(rows, start=1)
    ]


def test_forgetting_at_equal_accuracy_is_read_off_each_trajectory():
    # At accuracy .70 a has gone half of its way from (.60, .10) to (.80, .30), b a quarter of that from (.68, .00) to (.76, .40).
    points = path("a", "a1", [(0.6, 0.1, 1.0), (0.8, 0.3, 2.0)]) + path("b", "b1", [(0.68, 0.0, 0.0), (0.76, 0.4, 4.0)])
    found = accuracy_matched(points)
    assert found["methods"]["a"]["0.70"] == pytest.approx(
        {"forgetting": 0.2, "forward_kl": 1.5, "reverse_kl": 0.75, "trajectories": 1}
    )
    assert found["methods"]["b"]["0.70"]["forgetting"] == pytest.approx(0.1)
    (pair,) = found["pairs"]
    assert pair["accuracies"] == [0.68, 0.70, 0.72, 0.74, 0.76]
    # a: .18 .20 .22 .24 .26, b: .00 .10 .20 .30 .40
    assert pair["difference"]["forgetting"] == {"value": pytest.approx(0.22 - 0.2), "interval": None}


def test_the_first_crossing_counts_and_the_base_is_where_a_trajectory_starts():
    points = path("a", "a1", [(0.9, 0.2, 1.0), (0.5, 0.6, 2.0), (0.9, 0.8, 3.0)], start_accuracy=0.5)
    at = accuracy_matched(points)["methods"]["a"]
    assert at["0.70"]["forgetting"] == pytest.approx(0.1) and at["0.50"]["forgetting"] == 0


def test_methods_without_a_common_accuracy_are_not_compared():
    points = path("a", "a1", [(0.1, 0, 1), (0.3, 0, 2)]) + path("b", "b1", [(0.6, 0, 1), (0.9, 0, 2)])
    found = accuracy_matched(points)
    assert found["pairs"] == [] and found["not_compared"] == [["a", "b"]]


def test_several_runs_give_an_interval_and_single_checkpoints_stand_in_for_a_trajectory():
    runs = [path(m, f"{m}{s}", [(0.5, 0, 0.1), (0.9, up + 0.01 * s, 1)]) for m, up in (("a", 0.4), ("b", 0.2)) for s in range(4)]
    (pair,) = accuracy_matched(sum(runs, []), bootstrap=200)["pairs"]
    value, (low, high) = pair["difference"]["forgetting"].values()
    assert value == pytest.approx(0.1) and 0.09 < low < value < high < 0.11
    single = [point(f"{m}{a}", m, a, a * k, accuracy=a) for m, k in (("a", 1.0), ("b", 0.5)) for a in (0.4, 0.6)]
    (pair,) = accuracy_matched(single)["pairs"]
    assert pair["difference"]["forgetting"] == {"value": pytest.approx(0.25), "interval": None}


# ------------------------------------------------------------------------------------------------------- finished runs


def result(method="lora_cot", seed=0, **changes):
    """Two tasks; numbers that are easy to follow."""
    rows = [{"all": 1.0}, {"all": 0.9}, {"all": 0.6}]
    drift = [{"forward_kl/a": 0.0}, {"forward_kl/a": 0.2, "reverse_kl/a": 0.1, "forward_kl/general": 0.3}, {"forward_kl/b": 0.5}]
    data = {
        "experiment": "e", "method": method, "order": "given", "seed": seed, "tasks": ["a", "b"],
        "strategy": {"name": "lora"}, "per_task": None, "cost": {"trained_parameters": 5},
        "accuracy": {"matrix": [[0.3, 0.4], [0.8, 0.5], [0.7, 0.9]]},
        "retention": {"as_used": rows, "weights_alone": [{"all": 1.0}, {"all": 1.0}, {"all": 1.0}]},
        "drift": {"as_used": drift, "weights_alone": [{}, {"forward_kl/a": 0.0, "reverse_kl/a": 0.0}, {"forward_kl/b": 0.0}]},
        **changes,
    }  # fmt: skip
    return RunRecord.model_validate(data)


def test_points_of_a_run():
    used = [p for p in points_of(result()) if p.view == "as_used" and p.inputs == "new_task"]
    found = {(p.experience, p.outcome): (p.task, p.forward_kl, p.reverse_kl, pytest.approx(p.forgetting)) for p in used}
    assert found == {
        (1, "base_abilities"): ("a", 0.2, 0.1, 0.1),
        (2, "base_abilities"): ("b", 0.5, None, 0.4),
        (2, "earlier_tasks"): ("b", 0.5, None, 0.1),  # R[1,1] - R[2,1]
    }
    assert [(p.accuracy, p.start_accuracy) for p in used if p.outcome == "base_abilities"] == [(0.8, 0.3), (0.9, 0.4)]
    general = [p for p in points_of(result()) if p.inputs == "general"]
    assert [(p.experience, p.forward_kl) for p in general] == [(1, 0.3)]
    alone = [p for p in points_of(result()) if p.view == "weights_alone"]
    assert [(p.outcome, p.forward_kl, p.forgetting) for p in alone] == [("base_abilities", 0.0, 0.0)] * 2
    assert moved(alone)[1] == ["e.lora_cot.given.0"]


def test_what_trains_nothing_gives_no_points_and_missing_measurements_are_left_out():
    assert points_of(result(strategy={"name": "zero_shot"})) == []
    assert points_of(result(drift={"as_used": [], "weights_alone": []})) == []
    earlier = points_of(result(retention={"as_used": [None] * 3, "weights_alone": [None] * 3}))
    assert {p.outcome for p in earlier} == {"earlier_tasks"}
    assert family_of(result(per_task={"routing": "oracle"})) == "lora per task"


def folder_of(tmp_path, n=6):
    for seed in range(n):
        drift = [{}, {"forward_kl/a": 0.1 * (seed + 1)}, {"forward_kl/b": 0.2 * (seed + 1)}]
        kept = [{"all": 1.0}, {"all": 1 - 0.05 * (seed + 1)}, {"all": 1 - 0.1 * (seed + 1)}]
        run = result(("lora_cot", "full_cot")[seed % 2], seed, drift={"as_used": drift}, retention={"as_used": kept})
        atomic_write_json(tmp_path / "runs" / f"r{seed}" / "result.json", run.as_dict())
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "unfinished" / "events.jsonl").touch()
    return tmp_path


def test_the_command_reads_finished_runs(tmp_path, capsys):
    folder = folder_of(tmp_path)
    assert len(points_from(folder)) == 6 * 3  # the base's abilities twice, earlier tasks once
    assert command.main([str(folder), "--bootstrap", "5"]) == 0
    law = json.loads((folder / "law" / "law.json").read_text())
    headline = law["groups"][0]
    assert (headline["view"], headline["inputs"], headline["outcome"]) == ("as_used", "new_task", "base_abilities")
    # Here what is lost is half of the drift, exactly.
    assert headline["everything"]["forward_kl"]["fits"]["through_zero"]["coefficients"] == pytest.approx(
        {"a": 0, "b": 0.5, "c": 0}
    )
    assert "12 points of 6 runs" in capsys.readouterr().out
    assert (folder / "law" / "law.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (folder / "law" / "law.svg").read_text()
    assert law_table(law) == (folder / "law" / "table.txt").read_text()


def test_the_figure_is_the_same_every_time(tmp_path):
    folder = folder_of(tmp_path)
    for name in ("one", "two"):
        assert command.main([str(folder), "--bootstrap", "3", "--output", str(tmp_path / name)]) == 0
    for file in ("law.png", "law.svg", "law.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}/nothing"], "there is no nothing"),
        (["{folder}/empty"], "no run in this folder"),
        (["{folder}/untrained"], "no finished run in which a method learned something"),
        (["{folder}/untrained", "--bootstrap", "-1"], "--bootstrap -1"),
        (["{folder}/untrained", "--restart"], "--restart is for studies"),
    ],
)
def test_bad_folders_give_one_clear_error(tmp_path, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    atomic_write_json(tmp_path / "untrained" / "runs" / "r" / "result.json", result(strategy={"name": "zero_shot"}))
    assert command.main([a.format(folder=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
