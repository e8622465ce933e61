"""What is kept of frozen prefixes: the numbers of reading them again, the same bits whatever is kept, never another model's."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator

import pytest
import torch
from model_fakes import chat_model, examples, gpt2_model, parts_of, words_model

import cl_softcot.reasoning.base as base_module
from cl_softcot.errors import UserError
from cl_softcot.models import frozen_prefix
from cl_softcot.models.frozen_prefix import MEMORY, PrefixStore, can_keep, prefixes_of
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.own_weights import only_looks
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Phase
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.pause import Pause
from cl_softcot.reasoning.softcot import Softcot
from strategies.lora import Lora

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}
WAYS = {
    "softcot": lambda: Softcot(Softcot.Settings(soft_thoughts=3)),
    "free": lambda: Softcot(Softcot.Settings(soft_thoughts=5, source="free")),
    "pause": lambda: Pause(Pause.Settings(pauses=3)),
    "coconut": lambda: Coconut(Coconut.Settings(thoughts_per_step=2, max_stage=2)),
    "coconut_bare": lambda: Coconut(Coconut.Settings(max_stage=2, markers="none")),
    "coconut_pause": lambda: Coconut(Coconut.Settings(max_stage=2, thought="pause")),
}


@pytest.fixture(autouse=True)
def store(monkeypatch) -> Iterator[PrefixStore]:
    """An empty one on the CPU, with room for everything."""
    monkeypatch.setenv(MEMORY, "")  # which ``with_room`` sets: as it was behind the test
    yield with_room(10**9)
    frozen_prefix.forget()


def with_room(limit: int) -> PrefixStore:
    """A new, empty store."""
    os.environ[MEMORY] = str(limit)
    frozen_prefix.forget()
    return frozen_prefix.store_on(torch.device("cpu"))


@pytest.fixture
def words(tmp_path):
    return words_model(tmp_path)


def frozen_parts(tmp_path, way, model="words", dtype=torch.float64):
    """In fp64 (but for the models' norms, which are in fp32): these wild models make much of a difference in rounding."""
    backbone = MODELS[model](tmp_path)
    backbone.model.to(dtype)
    backbone.compute_dtype = dtype
    return parts_of(backbone, WAYS[way](), words_model(tmp_path, "assistant", width=16, seed=5))


def encode(parts, items, stage=None):
    reasoning = parts.reasoning
    phase = reasoning.final_phase() if stage is None else Phase(stage, 0)
    return [reasoning.encode(parts.backbone.text, e, phase, random.Random(0)) for e in items]


def loss_and_gradients(parts, encoded):
    parts.reasoning.zero_grad()
    loss = parts.reasoning.loss(parts, parts.reasoning.collate(encoded))
    gradients = {}
    if loss.loss_sum.requires_grad:  # coconut_bare trains nothing
        loss.loss_sum.backward()
        gradients = {name: p.grad.clone() for name, p in parts.reasoning.named_parameters() if p.grad is not None}
    return loss.per_example_B.detach(), gradients


def read_again(function, *arguments):
    """The same without anything that is kept: every prefix goes through the backbone with its batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_module, "can_keep", lambda _: False)
        return function(*arguments)


def random_prefixes(n, seed=0, longest=70):
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, 30) for _ in range(rng.randint(1, longest))) for _ in range(n)]


# ------------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_those_of_reading_all(way, model, tmp_path):
    parts = frozen_parts(tmp_path, way, model)
    encoded = encode(parts, examples(7))
    expected, wanted = read_again(loss_and_gradients, parts, encoded)
    for _ in range(2):  # an empty store, and a full one
        losses, gradients = loss_and_gradients(parts, encoded)
        torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
        assert gradients.keys() == wanted.keys()
        assert bool(gradients) == (way != "coconut_bare")
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-6 * max(1.0, wanted[name].abs().max().item()), rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_answers_and_states_are_those_of_reading_all(way, tmp_path):
    parts = frozen_parts(tmp_path, way)
    encoded = encode(parts, examples(9, seed=2))
    batch = parts.reasoning.collate(encoded)

    @torch.no_grad()
    def answers():
        written = generate(parts.reasoning, parts, encoded, 8, batch_size=4)
        began = parts.reasoning.begin(parts, batch, room=8)
        return written, began.logits_BV, parts.reasoning.predict(parts, batch), began.position_B, began.forward_passes

    written, logits_BV, hidden_BTD, position_B, passes = read_again(answers)
    for _ in range(2):
        found = answers()
        assert [g.ids for g in found[0]] == [g.ids for g in written]
        assert [g.forward_passes for g in found[0]] == [g.forward_passes for g in written]
        torch.testing.assert_close(found[1], logits_BV, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[2], hidden_BTD, atol=1e-4, rtol=1e-4)
        assert found[3].equal(position_B)
        assert found[4] == passes


def test_rows_with_different_numbers_of_thoughts_share_a_batch(tmp_path, store):
    """Where one row has its first thought, another may still have a word of its question."""
    parts = frozen_parts(tmp_path, "coconut")
    items = examples(9, seed=4)
    mixed = [e for stage in range(3) for e in encode(parts, items[3 * stage : 3 * stage + 3], stage)]
    expected, wanted = read_again(loss_and_gradients, parts, mixed)
    losses, gradients = loss_and_gradients(parts, mixed)
    torch.testing.assert_close(losses, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients["markers_2D"], wanted["markers_2D"], atol=1e-5, rtol=1e-5)
    # What is kept is each question's whole prefix, whoever else is in the batch.
    assert store.computed == 9
    loss_and_gradients(parts, encode(parts, items, 2))
    assert store.computed == 9


def test_edited_thoughts_read_the_same_prefix(tmp_path, store):
    parts = frozen_parts(tmp_path, "softcot")
    encoded = encode(parts, examples(5))
    for e in encoded[:2]:  # two rows get fewer thoughts than they would have by themselves
        e.prefix_ids.remove(parts.backbone.special["slot"])
    batch = parts.reasoning.collate(encoded)
    edit = lambda thoughts_BKD, _place: -2 * thoughts_BKD  # noqa: E731

    @torch.no_grad()
    def edited():
        return parts.reasoning.begin(parts, batch, edit).logits_BV

    expected = read_again(edited)
    torch.testing.assert_close(edited(), expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        plain = parts.reasoning.begin(parts, parts.reasoning.collate(encode(parts, examples(5)))).logits_BV
    assert (plain - expected).abs().max() > 0.01
    assert store.computed == 5


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("model", [*MODELS, "builtin:tiny"])
def test_bits_depend_on_nothing_but_the_prefix(model, tmp_path):
    """Whoever it is computed with: this is what makes results independent of the bound and of what ran before."""
    backbone = MODELS[model](tmp_path) if model in MODELS else load_language_model(model)
    rows, rng = random_prefixes(24, longest=120), random.Random(1)
    with_room(0)
    together = dict(zip(rows, prefixes_of(backbone, rows), strict=True))
    for n in (1, 2, 9, 24, 17):
        some = rng.sample(rows, n)
        for ids, kept in zip(some, prefixes_of(backbone, some), strict=True):
            assert kept.equal(together[ids])


def test_training_has_the_same_bits_at_any_bound(tmp_path):
    """Also where it begins in the middle, as a resumed run does, and where much was read before."""
    parts = frozen_parts(tmp_path, "softcot", dtype=torch.float32)
    items = examples(12, seed=7)
    encoded = encode(parts, items)
    order = random.Random(0)
    batches = [order.sample(range(12), 4) for _ in range(8)]

    def steps(which):
        return [loss_and_gradients(parts, [encoded[i] for i in rows]) for rows in which]

    with_room(10**9)
    expected = steps(batches)
    one = prefixes_of(parts.backbone, [tuple(encoded[0].prefix_ids[:-4])])[0].nbytes
    runs = [(0, batches, 0), (3 * one, batches, 0), (10**9, batches[5:], 5)]
    for limit, which, start in runs:
        small = with_room(limit)
        for (losses, gradients), (wanted, wanted_gradients) in zip(steps(which), expected[start:], strict=True):
            assert losses.equal(wanted)
            assert all(gradients[name].equal(g) for name, g in wanted_gradients.items())
        assert small.size <= limit
    prefixes_of(parts.backbone, random_prefixes(40))
    assert all(a.equal(b) for (a, _), (b, _) in zip(steps(batches), expected, strict=True))


def test_the_shape_of_a_call_wastes_little():
    for length in range(1, 4000):
        rows, columns = frozen_prefix._shape(length)
        assert length <= columns < max(length + 8, 1.25 * length)
        assert rows == 1 or rows * columns <= 512


# ------------------------------------------------------------------------------------------------ what is saved


def columns_read(parts, function):
    """How many columns of the backbone are computed by it."""
    seen, real = [], parts.backbone.core.forward

    def forward(*args, **kwargs):
        seen.append(kwargs["inputs_embeds"].shape[1])
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.backbone.core, "forward", only_looks(forward))
        function()
    return seen


def test_a_second_epoch_reads_thoughts_and_answers_only(tmp_path):
    parts = frozen_parts(tmp_path, "softcot")
    encoded = encode(parts, examples(5))
    loss_and_gradients(parts, encoded)
    longest = max(len(e.target_ids) for e in encoded)
    assert columns_read(parts, lambda: loss_and_gradients(parts, encoded)) == [3 + 1 + longest - 1]  # <slot> x 3 <bot>


def test_all_methods_and_numbers_of_thoughts_share_what_is_kept(words, tmp_path, store):
    """Each over a copy of its own, as runs have it."""
    items = examples(6)
    assistant = words_model(tmp_path, "assistant", width=16, seed=5)
    for settings in ({"soft_thoughts": 2}, {"soft_thoughts": 8}, {"source": "free"}, {"projector": "mlp"}):
        parts = parts_of(words.copy(share_weights=True), Softcot(Softcot.Settings(**settings)), assistant)
        loss_and_gradients(parts, encode(parts, items))
        assert store.computed == 6
    assert store.asked == 24


def test_the_store_keeps_its_bound(words, store):
    rows = random_prefixes(40)
    sizes = [kept.nbytes for kept in prefixes_of(words, rows)]
    assert store.size == sum(sizes)
    small = with_room(sum(sizes) // 2)
    for _ in range(8):
        for ids in rows:
            prefixes_of(words, [ids])
            assert small.size <= small.limit


def test_prompts_that_do_not_all_fit_do_not_push_each_other_out(words):
    """A test set that is read again and again: what fits is there every time, where dropping the oldest would find nothing."""
    rows = random_prefixes(40, longest=8)
    with_room(10**9)
    small = with_room(sum(kept.nbytes for kept in prefixes_of(words, rows)) // 2)
    prefixes_of(words, rows)
    before = small.computed
    for _ in range(5):
        prefixes_of(words, rows)
    assert 0.3 < 1 - (small.computed - before) / 200 < 0.5  # a quarter of the room is for the newest


def test_the_newest_are_there_for_runs_side_by_side(words):
    """However much else is asked for again and again."""
    old, new = random_prefixes(30, seed=1, longest=8), random_prefixes(4, seed=2, longest=8)
    with_room(10**9)
    small = with_room(sum(kept.nbytes for kept in prefixes_of(words, old)))
    for rows in (old, old, new):
        prefixes_of(words, rows)
    before = small.computed
    prefixes_of(words, new)
    assert small.computed == before


def test_what_is_not_asked_for_any_more_makes_room(words):
    """The next task's prompts take the place of the last one's."""
    old, new = random_prefixes(20, seed=1, longest=8), random_prefixes(20, seed=2, longest=8)
    with_room(10**9)
    small = with_room(max(sum(k.nbytes for k in prefixes_of(words, rows)) for rows in (old, new)) * 4 // 3)
    prefixes_of(words, old)
    for _ in range(12):
        prefixes_of(words, new)
    before = small.computed
    prefixes_of(words, new)
    assert small.computed == before


# --------------------------------------------------------------------------------------- never another model's


@torch.no_grad()
def add(weight):
    weight.add_(0.5)


@torch.no_grad()
def step(weight):
    weight.requires_grad_(True).grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1).step()
    weight.requires_grad_(False)
    weight.grad = None


@torch.no_grad()
def exchange(weight):
    weight.data = weight.data + 0.5


CHANGES = {"in place": add, "an optimiser": step, "its data": exchange}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", ["model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.bias"])
def test_a_changed_weight_is_noticed(change, which, words, store):
    rows = random_prefixes(5)
    before = prefixes_of(words, rows)
    CHANGES[change](words.model.get_parameter(which))
    after = prefixes_of(words, rows)
    assert store.computed == 10
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, after, strict=True))
    assert store.size == sum(kept.nbytes for kept in after)  # of the old ones nothing is left


def test_a_copy_with_weights_of_its_own_has_its_own(words, store):
    rows = random_prefixes(5)
    before = prefixes_of(words, rows)
    copy = words.copy()
    add(copy.layers[0].self_attn.k_proj.weight)
    assert not any(a.equal(b) for a, b in zip(before, prefixes_of(copy, rows), strict=True))
    assert all(a.equal(b) for a, b in zip(before, prefixes_of(words, rows), strict=True))
    assert store.computed == 10


def test_a_model_that_is_gone_leaves_nothing(tmp_path, store):
    """Its memory may be another's by now."""
    rows = random_prefixes(5)
    for seed in range(3):
        backbone = words_model(tmp_path, f"model{seed}", seed=seed)
        prefixes_of(backbone, rows)
        assert store.computed == 5 * (seed + 1)
        assert store.size == sum(kept.nbytes for kept in prefixes_of(backbone, rows))
        del backbone
        gc.collect()


def test_only_frozen_backbones_are_kept(words, tmp_path):
    assert can_keep(words)
    words.model.get_parameter("model.norm.weight").requires_grad_(True)
    assert not can_keep(words)
    words.model.requires_grad_(False)
    lora = Lora(Lora.Settings(rank=2))
    parts = parts_of(words, WAYS["free"]())
    lora.prepare(parts, 0)
    parts.backbone.model.requires_grad_(False)  # adapters may be switched off without a change of any weight
    assert not can_keep(words)


def test_dropout_that_is_on_windows_and_later_angles_are_left_alone(tmp_path):
    gpt2 = gpt2_model(tmp_path)
    assert can_keep(gpt2)
    gpt2.core.drop.train()
    assert not can_keep(gpt2)
    words = words_model(tmp_path)
    words.config.rope_parameters = {**words.config.rope_parameters, "rope_type": "dynamic"}
    assert not can_keep(words)
    windowed = words_model(tmp_path, "windowed")
    windowed.ready_mask = False
    assert not can_keep(windowed)


def test_a_backbone_that_learns_gets_its_gradient_through_the_prompt(tmp_path, store):
    parts = frozen_parts(tmp_path, "softcot")
    parts.backbone.model.requires_grad_(True)
    encoded = encode(parts, examples(3))
    loss_and_gradients(parts, encoded)
    assert store.asked == 0
    token = encoded[0].prefix_ids[1]
    assert parts.backbone.model.get_input_embeddings().weight.grad[token].abs().max() > 0


# ---------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize(("said", "limit"), [("2MB", 2 * 10**6), ("off", 0), ("0", 0), ("1.5GB", 1.5e9), ("", 512 * 10**6)])
def test_the_bound_comes_from_the_environment(said, limit, monkeypatch, words):
    frozen_prefix.forget()
    monkeypatch.setenv(MEMORY, said)
    prefixes_of(words, random_prefixes(1))
    assert frozen_prefix.stores()[torch.device("cpu")].limit == limit


def test_a_bound_that_is_no_size_is_one_clear_message(monkeypatch, words):
    frozen_prefix.forget()
    monkeypatch.setenv(MEMORY, "much")
    with pytest.raises(UserError, match="CL_SOFTCOT_PREFIX_MEMORY: 'much' is no size"):
        prefixes_of(words, random_prefixes(1))
