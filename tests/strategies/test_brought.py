"""Whatever a strategy brings: it is in the fingerprint, can be switched off, leaves frozen weights alone, and is resumed."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from model_fakes import examples, parts_of, words_model
from run_fakes import small, write

from cl_softcot import registry
from cl_softcot.answering.evaluate import Answers, Probe, answer
from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.config.loading import load_experiment
from cl_softcot.errors import UserError
from cl_softcot.files import read_jsonl
from cl_softcot.learning.learner import Learner
from cl_softcot.models.frozen_prefix import can_keep
from cl_softcot.models.own_weights import only_looks
from cl_softcot.reasoning.base import Reasoning
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.pause import Pause
from cl_softcot.run.api import run_experiment
from cl_softcot.tasks.base import Verdict

KINDS = ("Ia3", "NormsInPlace", "WrappedMaps", "HookedModules")
METHOD = {"name": "ia3", "reasoning": "cot", "strategy": {"name": "brought_fakes:Ia3", "learning_rate": 0.05}}
OUTSIDE = [kind for kind in KINDS if kind != "NormsInPlace"]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def prepared(kind, tmp_path, reasoning: Reasoning | None = None):
    strategy = registry.find("strategy", f"brought_fakes:{kind}")()
    backbone = words_model(tmp_path)
    parts = parts_of(backbone.copy(share_weights=not strategy.writes_weights), reasoning or Cot())
    strategy.prepare(parts, 0)
    return backbone, parts, strategy


def learn(parts, strategy, items, steps=3):
    optimizer, reasoning = torch.optim.AdamW(strategy.trainable(parts)), parts.reasoning
    batch = reasoning.collate(
        [reasoning.encode(parts.backbone.text, e, reasoning.final_phase(), random.Random(0)) for e in items]
    )
    for _ in range(steps):
        optimizer.zero_grad()
        reasoning.loss(parts, batch).loss_sum.backward()
        optimizer.step()


class _Task:
    name = "task"

    @staticmethod
    def judge(example, text):
        return Verdict("wrong", None)

    judge_flexibly = judge


@pytest.mark.parametrize("kind", KINDS)
def test_after_every_turn_the_fingerprint_is_another_and_answers_are_asked_again(kind, tmp_path):
    backbone, parts, strategy = prepared(kind, tmp_path)
    items, answers, seen, hash_before = examples(4), Answers(), set(), backbone.weights_sha256()
    for turn in range(3):
        if turn:
            learn(parts, strategy, examples(4, seed=turn))
        policy, asked = MethodPolicy(parts, strategy), []
        write = policy.generate
        policy.generate = lambda examples, limit, write=write, asked=asked: asked.extend(examples) or write(examples, limit)
        answer(policy, [Probe("task", _Task(), items)], answers, 6)
        assert len(asked) == len(items)
        seen.add(policy.fingerprint)
    assert len(seen) == 3
    assert backbone.weights_sha256() == hash_before
    assert (parts.backbone.weights_sha256() == hash_before) == (kind != "NormsInPlace")


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_base_and_on_again_what_it_was(kind, tmp_path):
    backbone, parts, strategy = prepared(kind, tmp_path)
    items, ids = examples(4), [[20, 21]] * 4
    base, start = BasePolicy(backbone), MethodPolicy(parts, strategy).hidden_states(items, ids)
    learn(parts, strategy, items)
    used = MethodPolicy(parts, strategy).hidden_states(items, ids)
    assert not all(torch.equal(a, b) for a, b in zip(used, start, strict=True))
    alone = MethodPolicy(parts, strategy, weights_alone=True)
    same = all(torch.equal(a, b) for a, b in zip(alone.hidden_states(items, ids), base.hidden_states(items, ids), strict=True))
    assert same == (alone.fingerprint == base.fingerprint) == (kind != "NormsInPlace")
    again = MethodPolicy(parts, strategy).hidden_states(items, ids)
    assert all(torch.equal(a, b) for a, b in zip(again, used, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_goes_on_to_the_same_fingerprint(kind, tmp_path):
    _, parts, strategy = prepared(kind, tmp_path)
    learn(parts, strategy, examples(4))
    kept = {name: tensor.detach().clone() for name, tensor in strategy.tensors(parts).items()}
    _, twin, again = prepared(kind, tmp_path)
    assert MethodPolicy(twin, again).fingerprint != MethodPolicy(parts, strategy).fingerprint
    with torch.no_grad():
        for name, tensor in again.tensors(twin).items():
            tensor.copy_(kept[name])
    assert MethodPolicy(twin, again).fingerprint == MethodPolicy(parts, strategy).fingerprint
    assert MethodPolicy(twin, again).generate(examples(3), 6) == MethodPolicy(parts, strategy).generate(examples(3), 6)


@pytest.mark.parametrize("kind", KINDS)
def test_own_weights_keep_their_names_and_all_else_is_brought(kind, tmp_path):
    backbone, parts, strategy = prepared(kind, tmp_path)
    assert parts.backbone.own_weights().keys() == backbone.own_weights().keys()
    trained = strategy.trained_own(parts)
    assert bool(trained) == (kind == "NormsInPlace") and all("norm" in name for name in trained)
    assert parts.backbone.own.is_alone() == (kind == "NormsInPlace")
    with parts.backbone.alone():
        assert parts.backbone.own.is_alone() and not parts.backbone.brought()
        names = [name for name, _ in parts.backbone.model.named_parameters()]
        assert names == [name for name, _ in backbone.model.named_parameters()]
    changes = [name for name, _, _ in strategy.weight_changes(parts, dict(strategy.tensors(parts)))]
    assert sorted(changes) == sorted(trained)


@pytest.mark.parametrize("kind", OUTSIDE)
def test_nothing_that_was_read_without_it_is_taken_for_what_it_reads(kind, tmp_path):
    """Hooks have no parameters in the model, and count all the same."""
    backbone, parts, strategy = prepared(kind, tmp_path, Pause())
    assert backbone.frozen and can_keep(backbone)
    assert not parts.backbone.frozen and not can_keep(parts.backbone)
    before = [p.detach().clone() for p in strategy.tensors(parts).values()]
    learn(parts, strategy, examples(4))
    assert not any(torch.equal(a, b) for a, b in zip(before, strategy.tensors(parts).values(), strict=True) if b.ndim > 1)


def test_a_hook_that_only_looks_is_nothing_brought(tmp_path):
    backbone = words_model(tmp_path)
    handle = backbone.layers[0].register_forward_hook(only_looks(lambda *_: None))
    assert backbone.own.is_alone() and backbone.frozen
    handle.remove()
    handle = backbone.layers[0].register_forward_hook(lambda *_: None)
    assert not backbone.own.is_alone()
    handle.remove()
    assert backbone.own.is_alone()


def test_who_trains_own_weights_needs_a_copy_of_them(tmp_path):
    class Reckless(registry.find("strategy", "brought_fakes:NormsInPlace")):
        writes_weights = False

    parts, strategy = parts_of(words_model(tmp_path), Cot()), Reckless()
    strategy.prepare(parts, 0)
    first = MethodPolicy(parts, strategy).fingerprint
    learn(parts, strategy, examples(4))
    assert MethodPolicy(parts, strategy).fingerprint != first
    with pytest.raises(UserError, match="writes_weights"):
        Learner(parts, strategy, None)


# ------------------------------------------------------------------------------------------------ in plain chain of thought


def in_plain_cot(parts, strategy, items, ids):
    plain = MethodPolicy(parts, None)
    plain.parts = dataclasses.replace(parts, reasoning=Cot())
    with strategy.in_plain_cot(parts):
        return plain.hidden_states(items, ids)


@pytest.mark.parametrize("name", ["lora", "frozen_backbone", "full_finetune", *KINDS])
def test_in_plain_cot_what_acts_on_the_backbone_is_on_and_all_else_off(name, tmp_path):
    kind = registry.find("strategy", name if name[0].islower() else f"brought_fakes:{name}")
    strategy, backbone, items, ids = kind(), words_model(tmp_path), examples(4), [[20, 21]] * 4
    parts = parts_of(backbone.copy(share_weights=not strategy.writes_weights), Pause())
    strategy.prepare(parts, 0)
    learn(parts, strategy, items)
    plain, base = in_plain_cot(parts, strategy, items, ids), BasePolicy(backbone).hidden_states(items, ids)
    acts = not all(torch.equal(a, b) for a, b in zip(plain, base, strict=True))
    assert acts == (name != "frozen_backbone")
    if acts:  # and it is what the adapters make of the same prompt, not what the thoughts do
        with strategy.as_used(parts):
            parts.reasoning, thinking = Cot(), parts.reasoning
            mine = MethodPolicy(parts, None).hidden_states(items, ids)
            parts.reasoning = thinking
        assert all(torch.equal(a, b) for a, b in zip(plain, mine, strict=True))


# ------------------------------------------------------------------------------------------------ through the whole command


def test_a_run_with_an_adapter_of_ones_own_forgets_what_it_forgets(tmp_path):
    """The rows are answered anew, the record says with which file, and the same start again does nothing twice."""
    config = load_experiment(write(tmp_path, small(methods=[METHOD])), [f"output_dir={tmp_path / 'out'}"]).config
    found = run_experiment(config)[0]
    folder = Path(found.folder)
    rows = [read_jsonl(folder / "predictions" / f"row_{i}.jsonl") for i in range(len(found.tasks) + 1)]
    assert len({row[0]["policy"] for row in rows}) == len(rows)
    assert found.frozen.unchanged and found.at("user_modules").keys() == {"brought_fakes"}
    assert len({d for row in found.at("drift.as_used") for k, d in row.items() if k == "forward_kl/first"}) == len(rows)
    assert all(row == found.at("retention.weights_alone")[0] for row in found.at("retention.weights_alone"))
    written = (folder / "result.json").stat().st_mtime_ns
    assert run_experiment(config)[0].accuracy == found.accuracy
    assert (folder / "result.json").stat().st_mtime_ns == written
