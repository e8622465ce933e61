"""Contracts of every strategy, LoRA's switch, per-task copies and their routers."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from model_fakes import chat_model, examples, gpt2_model, parts_of, words_model

from cl_softcot import registry
from cl_softcot.answering.per_task import NearestRouter, OracleRouter, PerTaskPolicy, TaskBank, make_router
from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.errors import UserError
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.direct import Direct
from cl_softcot.reasoning.softcot import Softcot
from strategies.frozen_backbone import FrozenBackbone
from strategies.full_finetune import FullFinetune
from strategies.lora import Lora
from strategies.zero_shot import ZeroShot

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}
METHODS = {
    "full_cot": lambda: (Cot(), FullFinetune()),
    "full_coconut": lambda: (Coconut(Coconut.Settings(max_stage=1)), FullFinetune()),
    "lora_cot": lambda: (Cot(), Lora(Lora.Settings(rank=4, alpha=8))),
    "lora_coconut": lambda: (Coconut(Coconut.Settings(max_stage=1)), Lora(Lora.Settings(rank=4, alpha=8))),
    "softcot": lambda: (Softcot(), FrozenBackbone()),
    "softcot_free": lambda: (Softcot(Softcot.Settings(source="free")), FrozenBackbone()),
}


@pytest.fixture(params=sorted(MODELS))
def backbone(request, tmp_path):
    return MODELS[request.param](tmp_path)


@pytest.fixture
def assistant(tmp_path):
    return words_model(tmp_path, "assistant", width=16, seed=5)


def prepared(method, backbone, assistant):
    reasoning, strategy = METHODS[method]() if isinstance(method, str) else method
    parts = parts_of(backbone, reasoning, assistant)
    strategy.prepare(parts, seed=0)
    return parts, strategy


def train(parts, strategy, items, steps=12, rate=None):
    """A few plain steps on one batch; the losses."""
    groups = strategy.trainable(parts)
    for group in groups:
        group["lr"] = rate or group["lr"]
    optimizer = torch.optim.AdamW(groups)
    reasoning = parts.reasoning
    encoded = [reasoning.encode(parts.backbone.text, e, reasoning.final_phase(), random.Random(0)) for e in items]
    losses = []
    for _ in range(steps):
        loss = reasoning.loss(parts, reasoning.collate(encoded))
        optimizer.zero_grad()
        (loss.loss_sum / loss.n_tokens).backward()
        optimizer.step()
        losses.append(loss.loss_sum.item() / loss.n_tokens)
    return losses


# ------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_and_only_what_is_named_changes(method, backbone, assistant):
    parts, strategy = prepared(method, backbone, assistant)
    named = {f"backbone.{n}": p for n, p in backbone.model.named_parameters()}
    named |= {f"reasoning.{n}": p for n, p in parts.reasoning.named_parameters()}
    before = {n: p.detach().clone() for n, p in named.items()}
    assistant_before = assistant.weights_sha256()
    losses = train(parts, strategy, examples(8))
    assert losses[-1] < losses[0] - 0.05
    changed = {n for n, p in named.items() if not torch.equal(p, before[n])}
    trained = set(strategy.tensors(parts))
    assert changed and changed <= trained
    # A row of zeros (the projection's bias of a key has no influence) may stay; whole groups may not.
    assert len(changed) > 0.8 * len(trained)
    assert assistant.weights_sha256() == assistant_before
    assert all(t.dtype == torch.float32 for t in strategy.tensors(parts).values())


@pytest.mark.parametrize("method", METHODS)
def test_weights_alone_of_an_unchanged_backbone_are_the_base_to_the_bit(method, backbone, assistant):
    base = BasePolicy(backbone.copy())
    items = examples(6)
    ids = [[5, 6, 7]] * 6
    base_states, base_texts = base.hidden_states(items, ids), base.generate(items, 8)
    parts, strategy = prepared(method, backbone, assistant)
    train(parts, strategy, items, steps=3)
    alone = MethodPolicy(parts, strategy, weights_alone=True)
    same = all(torch.equal(a, b) for a, b in zip(alone.hidden_states(items, ids), base_states, strict=True))
    if strategy.changes_backbone:
        assert not same and alone.fingerprint != base.fingerprint
        assert backbone.weights_sha256() != base.parts.backbone.weights_sha256()
    else:
        assert same and alone.generate(items, 8) == base_texts
        assert alone.fingerprint == base.fingerprint
        assert backbone.weights_sha256() == base.parts.backbone.weights_sha256()
    used = MethodPolicy(parts, strategy)
    assert used.fingerprint != base.fingerprint
    assert not all(torch.equal(a, b) for a, b in zip(used.hidden_states(items, ids), base_states, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_saved_tensors_bring_the_method_back(method, tmp_path, assistant):
    parts, strategy = prepared(method, words_model(tmp_path), assistant)
    items = examples(6)
    train(parts, strategy, items, steps=2)
    saved = {n: t.detach().clone() for n, t in strategy.tensors(parts).items()}
    written = MethodPolicy(parts, strategy).generate(items, 8)
    twin, again = prepared(method, words_model(tmp_path), assistant)
    assert set(again.tensors(twin)) == set(saved)
    with torch.no_grad():
        for name, tensor in again.tensors(twin).items():
            tensor.copy_(saved[name])
    assert MethodPolicy(twin, again).generate(items, 8) == written
    assert MethodPolicy(twin, again).fingerprint == MethodPolicy(parts, strategy).fingerprint


@pytest.mark.parametrize("method", METHODS)
def test_parameter_groups_hold_everything_once(method, tmp_path, assistant):
    parts, strategy = prepared(method, words_model(tmp_path), assistant)
    grouped = [id(p) for group in strategy.trainable(parts) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in strategy.tensors(parts).values())
    assert len(set(grouped)) == len(grouped)


def test_the_reasonings_own_rate(tmp_path):
    strategy = FullFinetune(FullFinetune.Settings(learning_rate=1e-4, reasoning_learning_rate=1e-2, weight_decay=0.1))
    parts, _ = prepared((Coconut(), strategy), words_model(tmp_path), None)
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in strategy.trainable(parts)} == {
        "backbone": (1e-4, 0.1),
        "reasoning": (1e-2, 0.1),
    }


# -------------------------------------------------------------------------------------------------- the strategies


def test_zero_shot_trains_nothing(tmp_path):
    backbone = words_model(tmp_path)
    parts, strategy = prepared((Cot(), ZeroShot()), backbone, None)
    assert not strategy.trains and not strategy.trainable(parts) and not strategy.tensors(parts)
    assert backbone.frozen
    assert MethodPolicy(parts, strategy).fingerprint == BasePolicy(backbone).fingerprint
    direct, _ = prepared((Direct(), ZeroShot()), backbone, None)
    assert MethodPolicy(direct, strategy).fingerprint != BasePolicy(backbone).fingerprint


def test_impossible_pairs_are_refused_with_a_reason():
    for way in ("coconut", "softcot", "pause"):
        assert way in ZeroShot.refuses(ZeroShot.Settings(), way)
        assert FrozenBackbone.refuses(FrozenBackbone.Settings(), way) is None
    for way in ("direct", "cot"):
        assert ZeroShot.refuses(ZeroShot.Settings(), way) is None
        assert way in FrozenBackbone.refuses(FrozenBackbone.Settings(), way)
    assert FullFinetune.refuses(FullFinetune.Settings(), "cot") is None
    assert {"zero_shot", "full_finetune", "lora", "frozen_backbone"} <= set(registry.known("strategy"))
    assert registry.find("strategy", "lora") is Lora and registry.find("reasoning", "softcot") is Softcot


@pytest.mark.parametrize("make", [FullFinetune, Lora])
@pytest.mark.parametrize("which", ["lower", "upper"])
def test_half_of_the_layers(make, which, backbone):
    strategy = make(make.Settings(layers=which))
    parts, _ = prepared((Cot(), strategy), backbone, None)
    base = backbone.weights_sha256()
    chosen = backbone.layers[0] if which == "lower" else backbone.layers[1]
    other = backbone.layers[1] if which == "lower" else backbone.layers[0]
    ids = {id(p) for p in strategy.tensors(parts).values()}
    assert ids <= {id(p) for p in chosen.parameters()} and ids
    before = [p.detach().clone() for p in other.parameters()]
    losses = train(parts, strategy, examples(8), rate=1e-2)
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    assert (backbone.weights_sha256() == base) == (make is Lora)
    if make is FullFinetune:
        assert ids == {id(p) for p in chosen.parameters()}


def test_lora_covers_every_linear_map_and_starts_as_the_base(backbone):
    base = BasePolicy(backbone.copy())
    parts, strategy = prepared("lora_cot", backbone, None)
    adapters = [n for n in strategy.tensors(parts) if "lora_A" in n]
    per_layer = 4 if backbone.config.model_type == "gpt2" else 7
    assert len(adapters) == per_layer * len(backbone.layers)
    assert all(("lora_A" in n) or ("lora_B" in n) for n in strategy.tensors(parts))
    items = examples(5)
    states = MethodPolicy(parts, strategy).hidden_states(items, [[5, 6]] * 5)
    for a, b in zip(states, base.hidden_states(items, [[5, 6]] * 5), strict=True):
        assert torch.equal(a, b)  # B starts at zero


def test_lora_as_used_equals_its_training_mode_and_is_undone_to_the_bit(backbone):
    parts, strategy = prepared("lora_cot", backbone, None)
    train(parts, strategy, examples(6), steps=5, rate=1e-2)
    weights = backbone.weights_sha256()
    batch = parts.reasoning.collate(
        [parts.reasoning.encode(backbone.text, e, parts.reasoning.final_phase(), random.Random(0)) for e in examples(5)]
    )
    with torch.no_grad():
        plain = parts.reasoning.predict(parts, batch)
        with strategy.as_used(parts):
            merged = parts.reasoning.predict(parts, batch)
        again = parts.reasoning.predict(parts, batch)
        with strategy.weights_alone(parts):
            off = parts.reasoning.predict(parts, batch)
    mask = batch["labels"] != -100
    torch.testing.assert_close(merged[mask], plain[mask], atol=2e-4, rtol=2e-4)
    assert torch.equal(plain, again) and not torch.allclose(plain[mask], off[mask])
    assert backbone.weights_sha256() == weights


def test_lora_keeps_its_gradients_wanted_after_switching(tmp_path):
    parts, strategy = prepared("lora_cot", words_model(tmp_path), None)
    names = set(strategy.tensors(parts))
    with pytest.raises(ZeroDivisionError), strategy.as_used(parts):
        raise ZeroDivisionError  # an error inside must leave nothing switched off
    with strategy.weights_alone(parts):
        assert set(strategy.tensors(parts)) == names
    assert set(strategy.tensors(parts)) == names
    losses = train(parts, strategy, examples(8))
    assert losses[-1] < losses[0]


def test_lora_twice_on_one_backbone_is_a_mistake(tmp_path):
    backbone = words_model(tmp_path)
    prepared("lora_cot", backbone, None)
    with pytest.raises(RuntimeError, match="already"):
        prepared("lora_cot", backbone, None)


def test_trained_weights_are_fp32_in_a_half_precision_backbone(tmp_path):
    from model_fakes import save_words_model

    from cl_softcot.models.language_model import load_language_model

    folder = str(save_words_model(tmp_path / "m"))
    for strategy in (FullFinetune(FullFinetune.Settings(layers="upper")), FullFinetune(), Lora()):
        backbone = load_language_model(folder, dtype="bfloat16")
        parts, _ = prepared((Coconut(Coconut.Settings(max_stage=1)), strategy), backbone, None)
        assert all(t.dtype == torch.float32 for t in strategy.tensors(parts).values())
        losses = train(parts, strategy, examples(8), steps=8)
        assert losses[-1] < losses[0]
        assert len(MethodPolicy(parts, strategy).generate(examples(3), 4)) == 3


# ------------------------------------------------------------------------------------------------------ per task


def stream(n=8):
    return {name: examples(n, seed=i, task=name) for i, name in enumerate(["first", "second", "third"])}


@pytest.mark.parametrize("method", METHODS)
def test_an_earlier_copy_answers_bit_identically_after_later_ones(method, tmp_path, assistant):
    parts, strategy = prepared(method, words_model(tmp_path), assistant)
    bank, router, tasks = TaskBank(strategy, parts), OracleRouter(), stream()
    seen = {}
    for name, items in tasks.items():
        bank.fresh()
        train(parts, strategy, items, steps=3)
        bank.keep(name)
        router.fit(name, items)
        policy = PerTaskPolicy(bank, router)
        for earlier in bank.tasks:
            states = policy.hidden_states(tasks[earlier], [[5, 6]] * 8)
            rows = (policy.generate(tasks[earlier], 8), policy.fingerprint_for(tasks[earlier][0]))
            first = seen.setdefault(earlier, (rows, states))
            assert first[0] == rows
            assert all(torch.equal(a, b) for a, b in zip(first[1], states, strict=True))
    assert len({rows[1] for rows, _ in seen.values()}) == 3


@pytest.mark.parametrize("method", METHODS)
def test_an_unseen_task_is_answered_as_the_base_would(method, tmp_path, assistant):
    backbone = words_model(tmp_path)
    base = BasePolicy(backbone.copy())
    parts, strategy = prepared(method, backbone, assistant)
    bank, router, tasks = TaskBank(strategy, parts), OracleRouter(), stream()
    train(parts, strategy, tasks["first"], steps=3)
    bank.keep("first")
    router.fit("first", tasks["first"])
    policy = PerTaskPolicy(bank, router)
    mixed = [*tasks["first"][:3], *tasks["second"], *tasks["first"][3:]]
    assert policy.routes(mixed) == [e.task if e.task == "first" else None for e in mixed]
    written = dict(zip([e.id for e in mixed], policy.generate(mixed, 8), strict=True))
    unseen = base.generate(tasks["second"], 8)
    assert [written[e.id] for e in tasks["second"]] == unseen
    assert policy.fingerprint_for(tasks["second"][0]) == base.fingerprint
    assert policy.fingerprint_for(tasks["first"][0]) != base.fingerprint
    with bank.active("first"):
        own = MethodPolicy(parts, strategy).generate(tasks["first"], 8)
    assert [written[e.id] for e in tasks["first"]] == own
    # Whatever is being trained stays in place.
    with torch.no_grad():
        for tensor in strategy.tensors(parts).values():
            tensor.add_(1)
    now = {n: t.detach().clone() for n, t in strategy.tensors(parts).items()}
    policy.generate(mixed, 4)
    assert all(torch.equal(now[n], t) for n, t in strategy.tensors(parts).items())


@pytest.mark.parametrize("method", ["full_cot", "lora_cot", "softcot"])
def test_states_and_head_of_mixed_routes_give_each_copys_logits(method, tmp_path, assistant):
    parts, strategy = prepared(method, words_model(tmp_path), assistant)
    bank, router, tasks = TaskBank(strategy, parts), OracleRouter(), stream(4)
    for name in ("first", "second"):
        bank.fresh()
        train(parts, strategy, tasks[name], steps=3)
        bank.keep(name)
        router.fit(name, tasks[name])
    policy = PerTaskPolicy(bank, router)
    mixed = [e for trio in zip(*tasks.values(), strict=True) for e in trio]
    got = [policy.head(h) for h in policy.hidden_states(mixed, [[5, 6, 7]] * len(mixed))]
    for route in ("first", "second", None):
        rows = [i for i, e in enumerate(mixed) if (e.task if e.task != "third" else None) == route]
        with bank.active(route):
            one = MethodPolicy(parts, strategy, weights_alone=route is None)
            for i, h in zip(rows, one.hidden_states([mixed[i] for i in rows], [[5, 6, 7]] * len(rows)), strict=True):
                torch.testing.assert_close(got[i], one.head(h), atol=1e-6, rtol=1e-6)


def test_copies_survive_a_checkpoint(tmp_path, assistant):
    parts, strategy = prepared("softcot", words_model(tmp_path), assistant)
    bank, tasks = TaskBank(strategy, parts), stream()
    for name, items in tasks.items():
        bank.fresh()
        train(parts, strategy, items, steps=1)
        bank.keep(name)
    other, again = prepared("softcot", words_model(tmp_path), assistant)
    restored = TaskBank(again, other)
    restored.load(bank.tensors())
    assert restored.tasks == bank.tasks
    for key, tensor in bank.tensors().items():
        assert torch.equal(restored.tensors()[key], tensor)
    with pytest.raises(UserError, match="does not fit"):
        restored.load({"first/other": torch.zeros(1)})


def separable(n, letters, task, seed):
    rng = random.Random(seed)
    found = examples(n, seed=seed, task=task)
    return [
        dataclasses.replace(e, question=" ".join(rng.choice(letters) for _ in range(rng.randint(5, 9))) + " ?") for e in found
    ]


def test_nearest_finds_the_task_and_leaves_strangers_to_the_base(tmp_path, assistant):
    parts, _ = prepared("softcot", words_model(tmp_path), assistant)
    router = make_router("nearest", parts)
    train_sets = {"left": separable(200, "abc", "left", 0), "right": separable(200, "nop", "right", 1)}
    for name, items in train_sets.items():
        router.fit(name, items)
    fresh = [*separable(50, "abc", "left", 2), *separable(50, "nop", "right", 3)]
    relabelled = [dataclasses.replace(e, task="?") for e in fresh]
    assert router.routes(relabelled) == router.routes(fresh)  # nobody tells it
    assert sum(route == e.task for route, e in zip(router.routes(fresh), fresh, strict=True)) > 0.85 * len(fresh)
    strangers = separable(50, "ghij", "other", 4)
    assert router.routes(strangers).count(None) > 20
    own = router.routes(train_sets["left"])
    assert 0.97 <= own.count("left") / len(own) <= 1.0
    again = NearestRouter(parts.states)
    again.load(router.tensors())
    assert again.routes(fresh) == router.routes(fresh)


def test_routers_are_named_and_nearest_needs_an_assistant(tmp_path):
    parts, _ = prepared((Cot(), FullFinetune()), words_model(tmp_path), None)
    assert isinstance(make_router("oracle", parts), OracleRouter)
    with pytest.raises(UserError, match="needs an assistant"):
        make_router("nearest", parts)
    with pytest.raises(UserError, match="unknown routing"):
        make_router("psychic", parts)
    assert OracleRouter().routes(examples(2)) == [None, None]
