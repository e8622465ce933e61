"""The controlled study: its pictures, its methods against closed forms, and its folder."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cl_softcot.errors import UserError
from cl_softcot.law import __main__ as command
from cl_softcot.law.fit import DIRECTIONS, fit_law
from cl_softcot.law.pictures import study, trials
from cl_softcot.law.pictures.config import LawConfig
from cl_softcot.law.pictures.glyphs import KINDS, draw
from cl_softcot.law.pictures.study import Trial, fingerprint, load_law, plan, run_study
from cl_softcot.law.pictures.trials import World, label_targets, oracle_targets, policy_gradient_loss, right_labels, run_trial
from cl_softcot.law.points import Point
from cl_softcot.metrics.drift import kl_from_logits
from cl_softcot.results.keeping import keep_any

ROOT = Path(__file__).resolve().parents[2]
YAML = ROOT / "experiments" / "kl_law.yaml"
SMALL = [
    "seeds=[4]", "learning_rates=[0.003]", "pictures.pretraining=100", "pictures.train=400", "pictures.test=100",
    "pictures.size=8", "pretraining.hidden=[16]", "pretraining.steps=80", "pretraining.learning_rate=0.005",
    "train.checkpoints=[3,8]", "bootstrap=5",
]  # fmt: skip


NAMED = (("unions", "as_published"), ("families", "sft"), ("families", "oracle"), ("families", "protected"))


def small(folder, *more) -> LawConfig:
    return load_law(YAML, [*SMALL, f"output_dir={folder}", *more])


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_depend_on_the_seed_alone_and_classes_are_balanced(kind):
    one, again, other = draw(kind, 50, [3, 1]), draw(kind, 50, [3, 1]), draw(kind, 50, [4, 1])
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    assert not np.array_equal(one[0], other[0])
    assert np.bincount(one[1]).tolist() == [5] * 10 and one[0].shape == (50, 256)


def test_every_class_has_a_shape_of_its_own_in_both_families():
    plain = {}
    for kind in KINDS:
        pixels, classes = draw(kind, 10, [0], distortion=0.0, noise=0.0)
        # Without distortion a picture is its class, but for the contrast (.7 to 1).
        plain |= {(kind, int(c)): x / x.max() for x, c in zip(pixels, classes, strict=True)}
    assert all(0.03 < x.mean() < 0.6 for x in plain.values())
    for a, b in itertools.combinations(plain.values(), 2):
        assert np.abs(a - b).mean() > 0.02
    assert plain["garments", 6].mean() > 1.5 * plain["digits", 1].mean()  # filled, not drawn


def test_a_digit_lies_where_it_should():
    pixels, classes = draw("digits", 10, [0], distortion=0.0, noise=0.0)
    eight = pixels[classes.tolist().index(8)].reshape(16, 16)
    seven = pixels[classes.tolist().index(7)].reshape(16, 16)
    assert np.allclose(eight, eight[::-1]) and np.allclose(eight, eight[:, ::-1])  # both symmetries
    assert seven[:4].sum() > 2 * seven[-4:].sum()  # the bar is at the top


# ------------------------------------------------------------------------------------------------------------- methods


def test_targets_are_distributions_on_right_labels():
    classes = torch.arange(10)
    assert right_labels(classes)[3].tolist() == [False, True] * 5 and right_labels(classes)[8].tolist() == [True, False] * 5
    two = label_targets(classes, [0, 4], [1, 5])
    assert two[6].tolist() == [0.5, 0, 0, 0, 0.5, 0, 0, 0, 0, 0] and two[9].tolist() == [0, 0.5, 0, 0, 0, 0.5, 0, 0, 0, 0]


def test_the_oracle_is_the_nearest_of_all_that_are_always_right():
    generator = torch.Generator().manual_seed(0)
    base, classes = torch.randn(40, 10, generator=generator) * 2, torch.randint(10, (40,), generator=generator)
    right, p = right_labels(classes), base.softmax(-1)
    oracle = oracle_targets(base, classes)
    assert torch.equal(oracle > 0, right) and torch.allclose(oracle.sum(-1), torch.ones(40))
    # In closed form: KL(q*‖base) = -log base(right).
    nearest = kl_from_logits(base, oracle.log()).reverse_kl
    assert torch.allclose(nearest, -(p * right).sum(-1).double().log(), atol=1e-5)
    for _ in range(200):
        other = torch.randn(40, 10, generator=generator) * 3
        other = torch.where(torch.rand(40, 1, generator=generator) < 0.5, other, oracle.clamp_min(1e-9).log() + 0.1 * other)
        drift = kl_from_logits(base, other.masked_fill(~right, -torch.inf)).reverse_kl
        assert (drift >= nearest - 1e-9).all()


@pytest.mark.parametrize(("baseline", "samples"), [("leave_one_out", 2), ("leave_one_out", 3), ("none", 1)])
def test_the_policy_gradient_is_unbiased(baseline, samples):
    """Over every possible draw, weighted by its probability, it is the gradient of the expected reward."""
    logits = torch.tensor([[0.3, -0.7, 1.1], [-0.2, 0.4, 0.0]], dtype=torch.float64, requires_grad=True)
    right = torch.tensor([[True, False, False], [False, True, True]])
    expected_reward = (logits.softmax(-1) * right).sum(-1).mean()
    (exact,) = torch.autograd.grad(-expected_reward, logits)
    mean, total = torch.zeros_like(logits), 0.0
    for actions in itertools.product(range(3), repeat=2 * samples):
        actions_KB = torch.tensor(actions).view(samples, 2)
        chance = logits.detach().softmax(-1).gather(1, actions_KB.T).prod().item()
        (gradient,) = torch.autograd.grad(policy_gradient_loss(logits, right, actions_KB, baseline), logits)
        mean, total = mean + chance * gradient, total + chance
    assert total == pytest.approx(1)
    assert torch.allclose(mean, exact, atol=1e-6)


def test_the_baseline_is_silent_where_all_answers_agree():
    logits = torch.randn(5, 10, requires_grad=True)
    right = right_labels(torch.zeros(5, dtype=torch.long))
    for action in (0, 1):  # all right, all wrong
        loss = policy_gradient_loss(logits, right, torch.full((4, 5), action), "leave_one_out")
        assert torch.autograd.grad(loss, logits)[0].abs().max() == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    torch.set_num_threads(1)
    return World(small("unused"), 4, tmp_path_factory.mktemp("base") / "base.safetensors")


def method(world, name, **changes):
    chosen = next(m for m in world.config.methods if m.name == name)
    return chosen.model_copy(update=changes)


def test_the_base_has_not_drifted_from_itself(world):
    assert world.start["forward_kl"] == 0 and world.start["reverse_kl"] == 0
    assert 0.5 < world.start["old_accuracy"] <= 1 and 0 < world.start["mass"] < 1


def test_what_is_measured_by_hand(world):
    constant = nn.Linear(world.digits.x.shape[1], 10)
    nn.init.zeros_(constant.weight)
    with torch.no_grad():
        constant.bias.copy_(torch.tensor([2.0] + [0.0] * 9))
    found = world.measure(constant)
    p = np.exp([2.0] + [0.0] * 9)
    p /= p.sum()
    assert found["accuracy"] == pytest.approx(0.5) and found["old_accuracy"] == pytest.approx(
        0.1
    )  # always 0; classes are balanced
    assert found["mass"] == pytest.approx(0.5 * (p[0] + 4 * p[1]) + 0.5 * 5 * p[1])
    q = world.base_test_logits.double().softmax(-1).numpy()
    assert found["forward_kl"] == pytest.approx((q * np.log(q / p)).sum(-1).mean())
    assert found["reverse_kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean())


def test_every_method_learns_and_the_oracle_drifts_least(world):
    config = world.config.model_copy(update={"train": world.config.train.model_copy(update={"checkpoints": [150]})})
    before, world.config = world.config, config
    try:
        ends = {m.name: run_trial(world, m, 3e-3)["checkpoints"][-1] for m in config.methods}
    finally:
        world.config = before
    assert all(end["mass"] > world.start["mass"] + 0.05 for end in ends.values()), ends
    assert ends["oracle"]["forward_kl"] < min(ends[m]["forward_kl"] for m in ("sft_1", "sft_2", "reinforce"))
    assert ends["sft_1"]["forward_kl"] > ends["sft_2"]["forward_kl"] > ends["sft_uniform"]["forward_kl"]
    # Old data protect what was known without holding the drift back as much.
    assert ends["sft_1_replay"]["old_accuracy"] > ends["sft_1"]["old_accuracy"] + 0.1
    assert ends["sft_1_l2"]["forward_kl"] < ends["sft_1"]["forward_kl"]


def test_inputs_come_in_the_same_order_for_every_method(world, monkeypatch):
    seen = []
    real = trials._loss

    def spy(*args):
        loss = real(*args)
        return lambda logits, batch: seen.append(batch.tolist()) or loss(logits, batch)

    monkeypatch.setattr(trials, "_loss", spy)
    for name in ("sft_1", "reinforce", "sft_1_replay"):
        run_trial(world, method(world, name), 1e-3)
    assert seen[:8] == seen[8:16] == seen[16:] and len(seen) == 24 and seen[0] != seen[1]


def test_a_trial_that_diverges_says_where_and_keeps_what_was_measured(world):
    found = run_trial(world, method(world, "sft_1_l2", l2_to_base=3e38), 1.0)
    assert found["diverged"] == "the loss is not finite at step 2" and found["checkpoints"] == []


# -------------------------------------------------------------------------------------------------------------- a study


def numbers(folder) -> dict:
    return {p.name: p.read_bytes() for p in sorted((folder / "trials").glob("*.json"))}


def test_end_to_end_resumed_to_the_bit(tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command.main([str(YAML), *SMALL, f"output_dir={whole}"]) == 0
    said = capsys.readouterr().out
    assert "8/8 sft_1_l2.lr0.003.seed4" in said and "as_published, forward" in said
    law = json.loads((whole / "law.json").read_text())
    assert law["groups"][0]["points"] == 16 and law["groups"][0]["runs"] == 8 and law["diverged"] == {}
    assert law["groups"][0]["unions"]["as_published"]["forward_kl"]["runs"] == 6
    rows = list(csv.DictReader((whole / "points.csv").read_text().splitlines()))
    assert len(rows) == 8 * 3 and {row["step"] for row in rows} == {"0", "3", "8"}
    assert {"law.png", "law.svg", "table.txt", "config.yaml", "experiment.json"} <= {p.name for p in whole.iterdir()}
    # As if it had been killed after three trials: those are taken over, the others come out the same, and so does everything.
    shutil.copytree(whole, cut)
    for path in sorted((cut / "trials").glob("*.json"))[3:]:
        path.unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in (cut / "trials").glob("*.json")}
    (cut / "law.json").unlink()
    run_study(small(cut))
    assert numbers(cut) == numbers(whole)
    assert all((cut / "trials" / name).stat().st_mtime_ns == at for name, at in kept.items())
    assert (cut / "law.json").read_bytes() == (whole / "law.json").read_bytes()
    assert (cut / "law.png").read_bytes() == (whole / "law.png").read_bytes()
    assert load_law(whole / "config.yaml") == small(whole)
    # Kept, and shown again from what is kept.
    kept_at = keep_any(whole, tmp_path / "kept")
    assert sorted(p.name for p in kept_at.iterdir()) == ["config.yaml", "experiment.json", "law.json", "points.csv.gz"]
    assert command.main([str(kept_at), "--output", str(tmp_path / "again")]) == 0
    for name in ("table.txt", "points.csv", "law.png", "law.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes(), name
    assert command.main([str(kept_at), "--restart"]) == 2


def test_the_kept_analysis_follows_from_the_kept_numbers():
    folder = ROOT / "experiments" / "results" / "kl_law"
    config = load_law(folder / "config.yaml")
    measured: dict[str, dict] = {}
    for row in csv.DictReader(gzip.decompress((folder / "points.csv.gz").read_bytes()).decode().splitlines()):
        identity = {"method": row["method"], "family": row["family"]}
        key = f"{row['method']}.lr{float(row['learning_rate']):g}.seed{row['seed']}"
        numbers = {name: float(value) for name, value in list(row.items())[4:]}
        trial = measured.setdefault(key, {"key": key, **identity, "start": numbers, "checkpoints": []})
        if numbers["step"]:
            trial["checkpoints"].append(numbers)
    assert list(measured) == [trial.key for trial in plan(config)]
    points = [Point(**fields) for trial in measured.values() for fields in trials.points_of_trial(trial)]
    found = fit_law(points, unions=config.unions, bootstrap=0)["groups"][0]
    kept = json.loads((folder / "law.json").read_text())["groups"][0]
    for known, again in ((kept["everything"], found["everything"]), *((kept[k][n], found[k][n]) for k, n in NAMED)):
        for direction in DIRECTIONS:
            for form, fit in known[direction]["fits"].items():
                assert again[direction]["fits"][form]["r2"]["value"] == pytest.approx(fit["r2"]["value"], abs=1e-9)
            left, left_again = (cloud[direction]["leave_one_method_out"]["quadratic"]["r2"]["value"] for cloud in (known, again))
            assert left_again == (left if left is None else pytest.approx(left, abs=1e-9))
    values = lambda pairs: [(p["a"], p["b"], p["difference"]["forgetting"]["value"]) for p in pairs]  # noqa: E731
    again = values(found["accuracy_matched"]["pairs"])
    assert again == [(a, b, pytest.approx(v)) for a, b, v in values(kept["accuracy_matched"]["pairs"])]


def test_the_base_is_read_again_to_the_bit(world, tmp_path):
    again = World(world.config, 4, tmp_path / "base.safetensors")
    read = World(world.config, 4, tmp_path / "base.safetensors")
    for a, b, c in zip(world.base.parameters(), again.base.parameters(), read.base.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_trials_with_other_settings_are_not_taken_over(tmp_path):
    config = small(tmp_path, "pretraining.steps=2", "train.checkpoints=[1]")
    run_study(config)
    before = numbers(tmp_path)
    with pytest.raises(UserError, match="made with other settings") as error:
        run_study(small(tmp_path, "pretraining.steps=2", "train.checkpoints=[2]"))
    assert "--restart" in str(error.value) and numbers(tmp_path) == before
    run_study(small(tmp_path, "pretraining.steps=2", "train.checkpoints=[2]"), restart=True)
    assert numbers(tmp_path) != before
    # Another bootstrap, union or family is another analysis of the same trials.
    same = small(
        tmp_path, "bootstrap=9", "unions={}", "methods.oracle.family=sft", "pretraining.steps=2", "train.checkpoints=[2]"
    )
    assert [fingerprint(same, t) for t in plan(same)] == [json.loads(v)["fingerprint"] for v in _in_order(same, tmp_path)]


def _in_order(config, folder):
    return [(folder / "trials" / f"{trial.key}.json").read_text() for trial in plan(config)]


def test_two_studies_do_not_write_one_folder(tmp_path):
    with study.FolderLock(tmp_path), pytest.raises(UserError, match="another run is writing this folder"):
        run_study(small(tmp_path))


def test_seeds_are_outside_and_methods_may_have_rates_of_their_own():
    config = load_law(YAML, ["seeds=[7,8]", "methods.oracle.learning_rates=[0.5]"])
    keys = [trial.key for trial in plan(config)]
    assert len(keys) == len(set(keys)) == 2 * (7 * 4 + 1)
    assert keys[: len(keys) // 2] == [key.replace("seed8", "seed7") for key in keys[len(keys) // 2 :]]
    assert "oracle.lr0.5.seed7" in keys and Trial(config.methods[0], 1e-4, 7).key == "sft_1.lr0.0001.seed7"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("methods.sft_1.even=[3]", "even: 3 is of the other parity"),
        ("methods.sft_1.learn=guess", "labels"),
        ("methods.reinforce.samples=1", "samples should be at least 2"),
        ("train.checkpoints=[20,10]", "checkpoints should rise"),
        ("unions.all=[sfft]", "no method is of the family 'sfft'"),
        ("learning_rates=[-1.0]", "learning_rates"),
        ("seeds=[1,1]", "a seed is there twice"),
        ("train.epochs=3", "unknown key 'epochs'"),
        ("methods.oracle.name=sft_1", "'sft_1' is there twice"),
    ],
)
def test_bad_settings_give_one_clear_error(override, said, tmp_path, capsys):
    assert command.main([str(YAML), f"output_dir={tmp_path}/new", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_an_error_in_the_file_names_its_line(tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text(YAML.read_text().replace("noise: 0.2", "noise: loud"))
    assert command.main([str(path)]) == 2
    line = next(i for i, text in enumerate(path.read_text().splitlines(), start=1) if "loud" in text)
    assert f"{path}:{line}:" in capsys.readouterr().err
