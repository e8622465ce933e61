"""Where forgetting sits: every number on cases whose answer is known."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fakes import examples, gpt2_model, parts_of, words_model
from run_fakes import assert_same_numbers, result, small, start, write

from cl_softcot import registry
from cl_softcot.answering.evaluate import Probe
from cl_softcot.answering.policy import MethodPolicy, tensors_sha256
from cl_softcot.config.settings import EvaluateConfig, TrainConfig
from cl_softcot.diagnostics._changes import ratio
from cl_softcot.diagnostics.base import Subject
from cl_softcot.diagnostics.curriculum import Curriculum, forgetting
from cl_softcot.diagnostics.facts_and_skills import FactsAndSkills
from cl_softcot.diagnostics.plasticity import Plasticity
from cl_softcot.diagnostics.relearning import Relearning
from cl_softcot.diagnostics.similarity import cka, cka_interval, hsic, spread, states
from cl_softcot.diagnostics.weight_change import described, effective_rank
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from strategies.full_finetune import FullFinetune
from strategies.lora import Lora

# ------------------------------------------------------------------------------------------------------- ratios


def test_a_ratio_of_changes_by_hand():
    """4 of 10 gained where 8 of 10 could be."""
    found = ratio([1] * 4 + [0] * 6, [1] * 8 + [0] * 2, 2000)
    assert found["value"] == pytest.approx(0.5) and found["n"] == 10
    low, high = found["low"], found["high"]
    assert 0.1 < low < 0.35 and 0.6 < high < 1.0
    same = ratio([1, 0] * 50, [1, 0] * 50, 100)
    assert same["low"] == same["high"] == 1.0, "pairs stay together"
    assert ratio([-1] * 4 + [0] * 6, [1] * 8 + [0] * 2, 100)["value"] == pytest.approx(-0.5)


@pytest.mark.parametrize("below", [[0] * 10, [1] + [0] * 9, [-1] * 8 + [0] * 2])
def test_a_ratio_to_what_may_be_nothing_is_none(below):
    found = ratio([1] * 4 + [0] * 6, below, 500)
    assert found["value"] is None and found["low"] is None and "0" in found["why"]


def test_intervals_of_ratios_cover():
    """600 samples of 100 pairs with a true ratio of .5. Of 2,000 the percentile bootstrap held 93.9 %."""
    rng, held = np.random.default_rng(0), 0
    for i in range(600):
        below = rng.random(100) < 0.8
        above = below & (rng.random(100) < 0.5)
        found = ratio(above, below, 300, seed=i)
        held += found["low"] <= 0.5 <= found["high"]
    assert 0.91 < held / 600 < 0.97


# --------------------------------------------------------------------------------------------------- curriculum


def test_forgetting_of_stages_by_hand():
    """S, rows after stages 0, 1, 2: [.8 .2 .0], [.4 .6 .2], [.2 .4 1.0]; forgetting of stages 0 and 1: .6 and .2."""
    rows = [
        {"0": "1111111100", "1": "1100000000", "2": "0000000000"},
        {"0": "1111000000", "1": "1111110000", "2": "1100000000"},
        {"0": "1100000000", "1": "1111000000", "2": "1111111111"},
    ]
    found = forgetting([0, 1, 2], rows, 200)
    assert found["stages"] == [0, 1]
    assert found["forgetting/chaudhry"] == pytest.approx([0.6, 0.2])
    assert [c["value"] for c in found["change"]] == pytest.approx([-0.6, -0.2])
    assert found["mean"] == {"forgetting/chaudhry": pytest.approx(0.4), "change": pytest.approx(-0.4)}
    assert found["change"][0]["high"] < 0


def test_a_stage_that_was_better_before_its_own_training_counts_in_chaudhrys_maximum_only():
    rows = [{"0": "1100", "1": "1111"}, {"0": "1000", "1": "1100"}, {"0": "1100", "1": "1000"}]
    found = forgetting([0, 1, 0], rows, 50)
    assert found["stages"] == [1], "the last stage cannot be forgotten"
    assert found["forgetting/chaudhry"] == pytest.approx([0.75])
    assert found["change"][0]["value"] == pytest.approx(-0.25)


def test_stages_end_where_the_training_changes_them():
    def moments(**settings):
        return Curriculum().moments(Coconut(Coconut.Settings(**settings)), 80)

    assert moments(max_stage=1) == [27]
    assert moments(max_stage=3) == [16, 32, 48]
    assert moments(max_stage=1, stage_steps=[0, 1]) == [], "a stage without steps has no end"


# ------------------------------------------------------------------------------------------------ weight change


def prepared(backbone, reasoning, strategy):
    parts = parts_of(backbone, reasoning)
    strategy.prepare(parts, seed=0)
    initial = {name: tensor.detach().clone() for name, tensor in strategy.tensors(parts).items()}
    return parts, initial


@torch.no_grad()
def test_a_known_change_is_found_where_it_was_made(tmp_path):
    strategy = FullFinetune()
    parts, initial = prepared(words_model(tmp_path), Cot(), strategy)
    up = parts.backbone.layers[1].mlp.up_proj.weight
    delta = torch.outer(torch.arange(1.0, len(up) + 1), torch.ones(up.shape[1])) * 1e-3  # rank 1
    up += delta
    found = described(strategy.weight_changes(parts, initial), parts.backbone)
    of_layer = math.sqrt(sum(float((p.double() ** 2).sum()) for p in parts_of_layer(initial, 1)))
    assert found["layers"] == [0.0, pytest.approx(float(delta.double().norm()) / of_layer, rel=1e-4)]
    before = sum(float((initial[f"backbone.model.layers.{i}.mlp.up_proj.weight"].double() ** 2).sum()) for i in (0, 1))
    assert found["kinds"]["up_proj"] == pytest.approx(float(delta.double().norm()) / math.sqrt(before), rel=1e-4)
    assert found["kinds"]["down_proj"] == 0.0 and set(found["outside"]) == {"embed_tokens", "norm"}
    assert found["share"] == {"lower": 0.0, "upper": pytest.approx(1.0), "outside": 0.0}
    assert found["halves"] == {"lower": 0.0, "upper": found["layers"][1]}
    assert found["effective_rank"]["up_proj"] == {"mean": pytest.approx(1.0, abs=1e-2), "largest": up.shape[1], "matrices": 1}
    assert found["effective_rank"]["q_proj"]["mean"] is None
    assert found["weights"] == sum(t.numel() for t in initial.values())


def parts_of_layer(initial, i):
    return [tensor for name, tensor in initial.items() if f".layers.{i}." in name]


def test_no_change_is_zero_everywhere_and_has_no_shares(tmp_path):
    strategy = FullFinetune(FullFinetune.Settings(layers="lower"))
    parts, initial = prepared(words_model(tmp_path), Cot(), strategy)
    found = described(strategy.weight_changes(parts, initial), parts.backbone)
    assert found["relative"] == 0.0 and found["layers"] == [0.0, 0.0] and found["outside"] == {}
    assert set(found["share"].values()) == {None}
    assert found["weights"] == sum(p.numel() for p in parts.backbone.layers[0].parameters())


@pytest.mark.parametrize("model", [words_model, gpt2_model])  # GPT-2's maps are stored the other way round
@torch.no_grad()
def test_the_change_of_an_adapted_map_is_the_scaled_product(model, tmp_path):
    strategy = Lora(Lora.Settings(rank=3, alpha=12))
    parts, initial = prepared(model(tmp_path), Cot(), strategy)
    assert described(strategy.weight_changes(parts, initial), parts.backbone)["relative"] == 0.0
    for name, tensor in strategy.tensors(parts).items():
        if "lora_B" in name:
            tensor.normal_()
    plain = {
        name.replace(".base_layer", ""): p.clone() for name, p in parts.backbone.model.named_parameters() if "lora" not in name
    }
    trained, adapted = strategy.tensors(parts), 0
    for name, delta, base in strategy.weight_changes(parts, initial):
        stem = "backbone." + name.removesuffix(".weight")
        product = trained[f"{stem}.lora_B.default.weight"] @ trained[f"{stem}.lora_A.default.weight"] * 4.0  # 12 / 3
        product = product.T if model is gpt2_model else product
        assert torch.equal(base, plain[name])
        torch.testing.assert_close(delta, product)
        assert effective_rank(delta) <= 3.001
        adapted += 1
    assert adapted == len([n for n in trained if "lora_A" in n]) > 4
    with strategy.as_used(parts):
        merged = {n.replace(".base_layer", ""): p for n, p in parts.backbone.model.named_parameters() if "lora" not in n}
        for name, delta, _ in strategy.weight_changes(parts, initial):
            torch.testing.assert_close(merged[name], plain[name] + delta)


def test_effective_ranks_by_hand():
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.outer(torch.randn(6), torch.randn(4))) == pytest.approx(1.0, abs=1e-2)
    # Singular values 3 and 1: shares .75 and .25, entropy .5623
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.7548, abs=1e-3)
    assert math.isnan(effective_rank(torch.zeros(3, 3)))


# ------------------------------------------------------------------------------------------------------- CKA


def test_cka_is_one_for_a_rotation_and_near_zero_for_unrelated_states():
    torch.manual_seed(0)
    x = torch.randn(100, 64, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))
    assert cka(x, x) == pytest.approx(1.0)
    assert cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0), "neither rotation, scale nor mean count"
    unrelated = [cka(x, torch.randn(100, 64, dtype=torch.float64)) for _ in range(40)]
    assert abs(sum(unrelated) / 40) < 0.02 and max(map(abs, unrelated)) < 0.15
    centred, other = x - x.mean(0), torch.randn(100, 64, dtype=torch.float64)
    other = other - other.mean(0)
    usual = (centred.T @ other).norm() ** 2 / ((centred.T @ centred).norm() * (other.T @ other).norm())
    assert usual > 0.3, "what the estimate is there for"
    assert math.isnan(cka(torch.ones(10, 3).double(), x[:10]))


def test_hsic_is_the_sum_over_u_centred_matrices():
    """Another way to write Song's estimate (Szekely & Rizzo 2014): the mean product of U-centred Gram matrices."""
    torch.manual_seed(1)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)

    def centred(gram):
        n = len(gram)
        gram = gram - torch.diag(gram.diagonal())
        found = gram - gram.sum(0)[None] / (n - 2) - gram.sum(1)[:, None] / (n - 2) + gram.sum() / ((n - 1) * (n - 2))
        return found - torch.diag(found.diagonal())

    expected = float((centred(x @ x.T) * centred(y @ y.T)).sum()) / (7 * 4)
    assert hsic(x @ x.T, y @ y.T) == pytest.approx(expected)


def test_intervals_of_cka_are_of_texts_not_of_tokens():
    """Ten texts of eight equal tokens each know as much as ten tokens."""
    torch.manual_seed(2)
    x = torch.randn(10, 4, dtype=torch.float64)
    y = x + 0.5 * torch.randn(10, 4, dtype=torch.float64)
    groups = [i for i in range(10) for _ in range(8)]
    noise = 1e-3 * torch.randn(2, 80, 4, dtype=torch.float64)
    by_text = cka_interval(x[groups] + noise[0], y[groups] + noise[1], groups)
    by_token = cka_interval(x[groups] + noise[0], y[groups] + noise[1], list(range(80)))
    assert by_text["value"] == by_token["value"]
    assert by_text["high"] - by_text["low"] > 2 * (by_token["high"] - by_token["low"])
    left = [cka(x[[j for j in range(10) if j != i]], y[[j for j in range(10) if j != i]]) for i in range(10)]
    error = math.sqrt(0.9 * sum((value - sum(left) / 10) ** 2 for value in left))
    each = cka_interval(x, y, list(range(10)))
    assert each["value"] - each["low"] == pytest.approx(1.96 * error), "the jackknife, one after the other"
    same = cka_interval(x, x, list(range(10)))
    assert same["value"] == pytest.approx(1.0) and same["low"] == pytest.approx(1.0)


@pytest.mark.parametrize("reasoning", [Cot(), Coconut(Coconut.Settings(max_stage=2))])
@torch.no_grad()
def test_states_are_those_that_predict_the_given_tokens(reasoning, tmp_path):
    parts, _ = prepared(words_model(tmp_path), reasoning, FullFinetune())
    items = examples(5)
    ids = [[20 + i, 21, 22, 23][: 2 + i % 3] for i in range(5)]
    policy = MethodPolicy(parts, FullFinetune())
    expected = policy.hidden_states(items, ids)
    phase = dataclasses.replace(reasoning.final_phase(), answering=True)
    encoded = [reasoning.encode(parts.backbone.text, e, phase, random.Random(0)) for e in items]
    encoded = [dataclasses.replace(e, target_ids=i) for e, i in zip(encoded, ids, strict=True)]
    chosen = [[0, len(i) - 1] for i in ids]
    found = states(parts, encoded, chosen, batch_size=2)
    assert [h.shape for h in found] == [(10, 32)] * 3, "two layers and the final norm"
    wanted = torch.cat([h[c] for h, c in zip(expected, chosen, strict=True)]).double()
    torch.testing.assert_close(found[-1], wanted, atol=1e-5, rtol=1e-4)
    normed = parts.backbone.core.norm(found[-2].float()).double()
    torch.testing.assert_close(normed, wanted, atol=1e-5, rtol=1e-4)


def test_places_are_spread_over_a_text():
    assert spread(3, 16) == [0, 1, 2] and spread(0, 4) == []
    assert spread(100, 4) == [0, 25, 50, 75]


# ------------------------------------------------------------------------------------- plasticity and relearning


class Learner:
    """Stands for a subject: knows as many of a probe's examples as is written down for each state it can be in."""

    def __init__(self, right: dict[str, int], **fields):
        self.right, self.state, self.cache, self.log = right, "now", {}, []
        self.initial, self.seed, self.row = {}, 0, 2
        self.evaluate = SimpleNamespace(split="test", bootstrap=400)
        self.train = SimpleNamespace(examples=40)
        vars(self).update(fields)

    @contextlib.contextmanager
    def changed(self, to=None):
        before, self.state = self.state, "beginning" if to is not None else self.state
        yield
        self.state = before

    @contextlib.contextmanager
    def learning(self, name, items, steps, *, fresh=False, last_stage=False):
        assert not {e.id for e in items} & {e.id for p in self.tasks for e in p.examples}, "test examples are not for training"
        self.log.append((name, steps, fresh))
        before, self.state = self.state, "beginning+" if fresh else "now+"
        yield [2.0, 1.0]
        self.state = before

    def answered(self, probe, task=None, phase=None):
        n = self.right[self.state]
        return [1] * n + [0] * (len(probe.examples) - n)

    def probe(self, name):
        return next(p for p in self.tasks if p.name == name)

    def outcomes(self, row, name):
        n = self.right[f"row {row}"]
        return [True] * n + [False] * (len(self.probe(name).examples) - n)


def probe_of(family, n=100, **settings):
    kind = registry.find("task", family)
    task = kind(kind.Settings(**settings), family)
    return Probe("retention", task, task.examples("test", n, 0))


def test_plasticity_of_a_learner_whose_ratio_is_known():
    """From the beginning it gains 80 of 100, now 40 of 100: half."""
    right = {"beginning": 0, "beginning+": 80, "now": 20, "now+": 60}
    subject = Learner(right, tasks=[probe_of("graph")], families=[probe_of("graph"), probe_of("dates")])
    found = Plasticity().measure(subject)
    assert (found["task"], found["family"]) == ("dates_from_today", "dates"), (
        "not a family of the stream, in the other convention"
    )
    assert found["gain_ratio"]["value"] == pytest.approx(0.5)
    assert found["gain_ratio"]["low"] < 0.5 < found["gain_ratio"]["high"]
    assert found["now"]["after"]["value"] == 0.6 and found["from_the_beginning"]["before"]["value"] == 0.0
    assert found["after_difference"]["value"] == pytest.approx(-0.2) and found["now"]["losses"] == [2.0, 1.0]
    Plasticity().measure(subject)
    assert [fresh for _, _, fresh in subject.log] == [True, False, False], "from the beginning once a run"
    assert subject.state == "now"


def test_a_probe_task_can_be_named_and_has_to_be_where_the_base_has_no_families_to_spare():
    subject = Learner(
        {"beginning": 0, "beginning+": 9, "now": 0, "now+": 9}, tasks=[probe_of("graph")], families=[probe_of("graph")]
    )
    assert "name a probe task" in Plasticity().measure(subject)["unmeasured"] and not subject.log
    settings = {"name": "flipped", "task": "lists", "convention": "from_zero"}
    found = Plasticity(Plasticity.Settings(task=settings, steps=7, test=10)).measure(subject)
    assert (found["task"], found["family"]) == ("flipped", "lists") and subject.log[0] == ("flipped", 7, True)


def test_relearning_by_hand():
    """80 learned, 20 left, 65 after the probe: three quarters come back; a beginner gets from 0 to 20: a quarter."""
    right = {"row 1": 80, "row 2": 20, "now+": 65, "beginning": 0, "beginning+": 20}
    subject = Learner(right, tasks=[probe_of("graph"), probe_of("dates")], learned=["graph", "dates"])
    found = Relearning().measure(subject)["tasks"]
    assert list(found) == ["graph"], "the last task was not forgotten yet"
    assert found["graph"]["lost"]["value"] == pytest.approx(-0.6)
    assert found["graph"]["recovered"]["value"] == pytest.approx(0.75)
    assert found["graph"]["control"]["value"] == pytest.approx(0.25)
    assert {key: found["graph"][key]["value"] for key in ("as_learned", "before", "after")} == {
        "as_learned": 0.8,
        "before": 0.2,
        "after": 0.65,
    }
    right["row 2"] = 80
    assert Relearning().measure(subject)["tasks"]["graph"]["recovered"]["value"] is None, "nothing was lost"


def test_relearning_is_at_the_last_stage_and_leaves_the_curriculum_alone(tmp_path):
    strategy, seen = FullFinetune(), []
    parts, initial = prepared(words_model(tmp_path), Coconut(Coconut.Settings(max_stage=2)), strategy)
    train = TrainConfig(examples=8, steps=6, global_batch_size=4)
    subject = Subject(parts, strategy, None, train, EvaluateConfig(), 0, 1, ["a"], [], [], None, cache={"initial": initial})
    encode = parts.reasoning.encode
    parts.reasoning.encode = lambda text, example, phase, rng: seen.append(phase.stage) or encode(text, example, phase, rng)
    before = tensors_sha256(strategy.tensors(parts))
    with subject.learning("a", examples(8), 6, last_stage=True) as losses:
        assert tensors_sha256(strategy.tensors(parts)) != before and len(losses) == 1
    assert set(seen) == {2} and tensors_sha256(strategy.tensors(parts)) == before
    seen.clear()
    with subject.learning("a", examples(8), 6):
        pass
    assert set(seen) == {0, 1, 2} and [p.stage for p in parts.reasoning.phases(60)] == [0, 1, 2]
    with pytest.raises(KeyError), subject.learning("a", examples(8), 2, fresh=True, last_stage=True):
        raise KeyError
    assert tensors_sha256(strategy.tensors(parts)) == before and len(parts.reasoning.phases(60)) == 3


# ----------------------------------------------------------------------------------------------- facts and skills


def test_facts_and_skills_by_hand():
    tasks = [probe_of("facts", 20), probe_of("graph", 20), probe_of("dates", 20)]
    families = [dataclasses.replace(probe_of("lists", 20))]
    subject = SimpleNamespace(
        row=3,
        learned=["facts", "graph", "dates"],
        tasks=tasks,
        families=families,
        evaluate=SimpleNamespace(bootstrap=100),
        probe=lambda name: next(p for p in (*tasks, *families) if p.name == name),
        outcomes=lambda row, name: rights(RIGHT[row, name]),
    )
    found = FactsAndSkills().measure(subject)
    assert found["learned"]["facts"]["value"] == pytest.approx(-0.5) and found["learned"]["facts"]["n"] == 20
    assert found["learned"]["skill"]["value"] == pytest.approx(-0.1) and found["learned"]["skill"]["tasks"] == ["graph"]
    assert found["own_abilities"] == found["unrelated"] == {"skill": found["own_abilities"]["skill"]}
    assert found["own_abilities"]["skill"]["value"] == pytest.approx(-0.25)


RIGHT = {(1, "facts"): 20, (3, "facts"): 10, (2, "graph"): 18, (3, "graph"): 16, (0, "lists"): 15, (3, "lists"): 10}


def rights(n):
    return [True] * n + [False] * (20 - n)


def test_every_family_of_the_embedded_models_says_what_it_asks_for():
    said = {
        name: registry.find("task", name).knowledge
        for name in ("graph", "deduction", "arithmetic", "facts", "mmlu", "local_file")
    }
    assert said == {
        "graph": "skill",
        "deduction": "skill",
        "arithmetic": "skill",
        "facts": "facts",
        "mmlu": "facts",
        "local_file": None,
    }


# --------------------------------------------------------------------------------------------------- in real runs


def test_all_of_them_in_a_run_that_is_killed_often(tmp_path):
    """The same numbers as uninterrupted, and what they say fits together."""
    names = ["curriculum", "weight_change", "similarity", "plasticity", "relearning", "facts_and_skills"]
    small_ones = {"similarity": {"examples": 4, "tokens": 4}, "plasticity": {"steps": 2}, "relearning": {"steps": 2}}
    data = small("full_coconut")
    data["methods"][0]["strategy"] = {"name": "full_finetune", "layers": "upper"}
    data["diagnostics"] = [{"name": n, "rows": "each", **small_ones.get(n, {})} for n in names]
    path = write(tmp_path, data)
    whole = start(path, "output_dir=whole", cwd=tmp_path, kill_at=("os:fsync", 0))
    assert whole.status == 0, whole.text
    found = {name: entry["rows"] for name, entry in result(tmp_path / "whole", "full_coconut")["diagnostics"].items()}

    change = found["weight_change"]
    assert change["1"]["since_base"]["share"] == {"lower": 0.0, "upper": pytest.approx(1.0), "outside": 0.0}
    assert "since_row_before" not in change["1"] and 0 < change["2"]["since_row_before"]["relative"]
    assert change["2"]["since_row_before"]["relative"] != change["2"]["since_base"]["relative"]
    alone = found["similarity"]["2"]["sets"]["first"]["weights_alone"]
    assert len(alone) == 3 and alone[0]["value"] == pytest.approx(1.0), "the lower layer is the base's"
    assert alone[1]["value"] < 0.9999
    assert set(found["curriculum"]["2"]["later"]) == {"first"} and found["curriculum"]["1"]["later"] == {}
    assert found["curriculum"]["2"]["trained"] == [0, 1] and len(found["curriculum"]["2"]["outcomes"]) == 2
    last = found["curriculum"]["2"]["outcomes"][-1]["1"]
    assert last.count("1") / 8 == result(tmp_path / "whole", "full_coconut")["accuracy"]["matrix"][2][1], "as in R"
    assert list(found["relearning"]) == ["2"] and found["plasticity"]["1"]["family"] == "other"
    assert found["plasticity"]["1"]["from_the_beginning"] == found["plasticity"]["2"]["from_the_beginning"]
    for n in range(20, whole.calls, whole.calls // 4):
        start(path, "output_dir=out", cwd=tmp_path, kill_at=("os:fsync", n))
    assert start(path, "output_dir=out", cwd=tmp_path).status == 0
    assert_same_numbers(tmp_path / "out", tmp_path / "whole")
