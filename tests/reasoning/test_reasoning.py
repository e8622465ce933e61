"""Every way of thinking against a plain reference: whole sequences, no cache, no padding, logits everywhere."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from model_fakes import chat_model, examples, gpt2_model, parts_of, words_model

from cl_softcot.answering.policy import BasePolicy, MethodPolicy
from cl_softcot.errors import UserError
from cl_softcot.metrics.drift import DriftReference, drift
from cl_softcot.models.batch import Batch
from cl_softcot.models.head import packed_logits, token_losses
from cl_softcot.models.running import forward, new_state
from cl_softcot.models.writing import generate
from cl_softcot.reasoning.base import Phase
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from cl_softcot.reasoning.direct import Direct
from cl_softcot.reasoning.pause import Pause
from cl_softcot.reasoning.softcot import Softcot
from cl_softcot.tasks.base import Example

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}
WAYS = {
    "direct": lambda: Direct(),
    "cot": lambda: Cot(),
    "pause": lambda: Pause(Pause.Settings(pauses=3)),
    "coconut": lambda: Coconut(Coconut.Settings(thoughts_per_step=2, max_stage=2)),
    "coconut_table": lambda: Coconut(Coconut.Settings(max_stage=2, markers="table")),
    "coconut_pause": lambda: Coconut(Coconut.Settings(max_stage=2, thought="pause")),
    "coconut_bare": lambda: Coconut(Coconut.Settings(max_stage=2, markers="none")),
    "softcot": lambda: Softcot(Softcot.Settings(soft_thoughts=3)),
    "softcot_mlp": lambda: Softcot(Softcot.Settings(soft_thoughts=3, projector="mlp", hidden=24)),
    "softcot_free": lambda: Softcot(Softcot.Settings(soft_thoughts=3, source="free")),
    "softcot_random": lambda: Softcot(Softcot.Settings(soft_thoughts=3, source="random")),
}


@pytest.fixture(params=sorted(MODELS))
def backbone(request, tmp_path):
    return MODELS[request.param](tmp_path)


@pytest.fixture
def assistant(tmp_path):
    return words_model(tmp_path, "assistant", width=16, seed=5)


def encode(parts, items, phase=None):
    reasoning = parts.reasoning
    phase = phase or reasoning.final_phase()
    return [reasoning.encode(parts.backbone.text, e, phase, random.Random(0)) for e in items]


def trainable(parts):
    """Give every parameter a gradient, the assistant's excepted."""
    parts.backbone.model.requires_grad_(True)
    parts.reasoning.requires_grad_(True)
    named = [*parts.backbone.model.named_parameters(), *parts.reasoning.named_parameters()]
    return dict(named)


# ------------------------------------------------------------------------------------- references, row by row


def paused(reasoning) -> bool:
    return isinstance(reasoning, Coconut) and reasoning.settings.thought == "pause"


def input_row(parts, encoded, ids):
    """Input embeddings of one unpadded row; what stands for thoughts in the prompt is replaced, but for Coconut's latents."""
    reasoning, backbone = parts.reasoning, parts.backbone
    rows = []
    slot = 0
    for place, token in enumerate(ids):
        row = backbone.embed(torch.tensor(token))
        if place >= len(encoded.prefix_ids):  # written by the model itself: an ordinary token
            rows.append(row)
            continue
        if isinstance(reasoning, Pause) and token == backbone.special["pause"]:
            row = reasoning.pause_D
        if isinstance(reasoning, Coconut) and reasoning.settings.markers == "own":
            marks = [backbone.special["latent-start"], backbone.special["latent-end"]]
            row = reasoning.markers_2D[marks.index(token)] if token in marks else row
        if paused(reasoning) and token == backbone.special["latent"]:
            row = reasoning.pause_D
        if isinstance(reasoning, Softcot) and token == backbone.special["slot"]:
            if reasoning.settings.source == "free":
                row = reasoning.free_KD[slot]
            else:
                model = reasoning._states.assistant
                n = reasoning.settings.soft_thoughts
                prompt = reasoning._states.prompt_ids(encoded.example.question) + [model.special["slot"]] * n
                hidden = model.core(input_ids=torch.tensor([prompt]), use_cache=False).last_hidden_state[0]
                row = reasoning.projector(hidden[None, -n:])[0, slot]
            slot += 1
        rows.append(row)
    return torch.stack(rows)


def reference_row(parts, encoded):
    """(loss sum, logits that predict each target token) of one example: the whole prefix again for every latent."""
    backbone = parts.backbone
    ids = [*encoded.prefix_ids, *encoded.target_ids]
    row_TD = input_row(parts, encoded, ids)
    for place, token in enumerate(encoded.prefix_ids):
        if token == backbone.special["latent"] and not paused(parts.reasoning):
            hidden = backbone.core(inputs_embeds=row_TD[None, :place], use_cache=False).last_hidden_state[0, -1]
            row_TD = torch.cat([row_TD[:place], hidden[None], row_TD[place + 1 :]])
    logits = backbone.model(inputs_embeds=row_TD[None], use_cache=False).logits[0, :, : backbone.vocab_size]
    start = len(encoded.prefix_ids)
    predicting = logits[start - 1 : -1]
    loss = torch.nn.functional.cross_entropy(predicting, torch.tensor(encoded.target_ids), reduction="sum")
    return loss, predicting


def gradients(named):
    found = {n: None if p.grad is None else p.grad.clone() for n, p in named.items()}
    for p in named.values():
        p.grad = None
    return found


def assert_same_gradients(got, expected):
    for name in expected:
        a, b = got[name], expected[name]
        a = torch.zeros_like(b) if a is None and b is not None else a
        b = torch.zeros_like(a) if b is None and a is not None else b
        if a is not None:
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a / scale, b / scale, atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_equal_a_plain_pass(way, backbone, assistant):
    parts = parts_of(backbone, WAYS[way](), assistant)
    encoded = encode(parts, examples(6, seed=1))
    named = trainable(parts)
    loss = parts.reasoning.loss(parts, parts.reasoning.collate(encoded))
    loss.loss_sum.backward()
    got = gradients(named)
    rows = [reference_row(parts, e) for e in encoded]
    torch.testing.assert_close(loss.per_example_B, torch.stack([r[0] for r in rows]), atol=1e-4, rtol=1e-5)
    assert abs(loss.loss_sum.item() / sum(r[0].item() for r in rows) - 1) < 1e-5
    assert loss.n_tokens == sum(len(e.target_ids) for e in encoded)
    sum(r[0] for r in rows).backward()
    assert_same_gradients(got, gradients(named))


@pytest.mark.parametrize("way", WAYS)
def test_begin_and_extend_equal_the_loss_pass(way, backbone, assistant):
    parts = parts_of(backbone, WAYS[way](), assistant)
    encoded = encode(parts, examples(5, seed=2))
    batch = parts.reasoning.collate(encoded)
    with torch.no_grad():
        state = parts.reasoning.begin(parts, batch)
        first_BV = state.logits_BV
        rest_BTV = parts.reasoning.extend(parts, state, batch["target_BT"][:, :-1])
        for row, e in enumerate(encoded):
            n = len(e.target_ids)
            whole = torch.cat([first_BV[row : row + 1], rest_BTV[row]])[:n]
            torch.testing.assert_close(whole, reference_row(parts, e)[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_padding_changes_nothing(way, backbone, assistant):
    parts = parts_of(backbone, WAYS[way](), assistant)
    encoded = encode(parts, examples(6, seed=3))
    with torch.no_grad():
        whole = parts.reasoning.loss(parts, parts.reasoning.collate(encoded)).per_example_B
        alone = [parts.reasoning.loss(parts, parts.reasoning.collate([e])).loss_sum for e in encoded]
    torch.testing.assert_close(whole, torch.stack(alone), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_decoding_equals_the_plain_reference(way, backbone, assistant):
    """Greedy answers, token for token, against repeated whole passes."""
    parts = parts_of(backbone, WAYS[way](), assistant)
    encoded = encode(parts, examples(4, seed=4))
    with torch.no_grad():
        written = generate(parts.reasoning, parts, encoded, 6, batch_size=4)
        for e, g in zip(encoded, written, strict=True):
            ids = []
            for _ in range(6):
                e.target_ids = [*ids, 0]
                token = reference_row(parts, e)[1][-1].argmax().item()
                if token == backbone.eos_id:
                    break
                ids.append(token)
            assert g.ids == ids


@pytest.mark.parametrize("way", WAYS)
def test_micro_batches_sum_to_the_batch(way, tmp_path, assistant):
    parts = parts_of(words_model(tmp_path), WAYS[way](), assistant)
    batch = parts.reasoning.collate(encode(parts, examples(7)))
    whole = parts.reasoning.loss(parts, batch)
    pieces = [parts.reasoning.loss(parts, micro) for micro in batch.split(3)]
    assert [len(p.per_example_B) for p in pieces] == [3, 3, 1]
    assert sum(p.n_tokens for p in pieces) == whole.n_tokens
    torch.testing.assert_close(torch.cat([p.per_example_B for p in pieces]), whole.per_example_B, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_builds_the_same_parts(way, tmp_path, assistant):
    backbone = words_model(tmp_path)

    def state(seed):
        torch.manual_seed(random.randrange(1000))  # the global generator has no say
        return parts_of(backbone, WAYS[way](), assistant, seed).reasoning.state_dict()

    one, again, other = state(1), state(1), state(2)
    assert all(torch.equal(one[k], again[k]) for k in one)
    if way.startswith("softcot"):
        assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("way", ["pause", "coconut", "softcot", "softcot_mlp", "softcot_free", "softcot_random"])
def test_a_frozen_backbone_gets_no_gradient_and_the_parts_the_right_one(way, backbone, assistant):
    """The prompt runs without gradients there; that must not change the gradient of what is trained."""
    parts = parts_of(backbone, WAYS[way](), assistant)
    batch = parts.reasoning.collate(encode(parts, examples(5, seed=6)))
    everything = trainable(parts)
    parts.reasoning.loss(parts, batch).loss_sum.backward()
    full = gradients(everything)
    backbone.model.requires_grad_(False)
    owned = dict(parts.reasoning.named_parameters())
    before = backbone.weights_sha256(), assistant.weights_sha256()
    parts.reasoning.loss(parts, batch).loss_sum.backward()
    assert owned
    assert all(p.grad is None for p in backbone.model.parameters())
    assert all(p.grad is None for p in assistant.model.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in owned.values())
    got = gradients(owned)
    assert_same_gradients(got, {n: full[n] for n in owned})
    assert (backbone.weights_sha256(), assistant.weights_sha256()) == before


# ------------------------------------------------------------------------------------------------------- coconut


def test_coconut_rows_with_different_numbers_of_latents(backbone):
    """Stages 0 to 3 in one batch equal the reference, gradients included."""
    reasoning = Coconut(Coconut.Settings(thoughts_per_step=2, max_stage=3))
    parts = parts_of(backbone, reasoning)
    encoded = [encode(parts, [e], Phase(i % 4, 0))[0] for i, e in enumerate(examples(8, seed=7))]
    latent = backbone.special["latent"]
    assert {e.prefix_ids.count(latent) for e in encoded} == {0, 2, 4, 6}
    named = trainable(parts)
    loss = reasoning.loss(parts, reasoning.collate(encoded))
    loss.loss_sum.backward()
    got = gradients(named)
    rows = [reference_row(parts, e)[0] for e in encoded]
    torch.testing.assert_close(loss.per_example_B, torch.stack(rows), atol=1e-4, rtol=1e-5)
    sum(rows).backward()
    assert_same_gradients(got, gradients(named))


def test_coconut_sequence_at_each_stage(tmp_path):
    backbone = words_model(tmp_path)
    reasoning = Coconut(Coconut.Settings(thoughts_per_step=2, max_stage=2, drop_all_after_last=True))
    parts = parts_of(backbone, reasoning)
    item = Example("x", "t", "a b ?", ("a is b", "b is c", "c is d"), "d")

    def written(stage):
        e = encode(parts, [item], Phase(stage, 0))[0]
        return " ".join(backbone.tokenizer.convert_ids_to_tokens(e.prefix_ids + e.target_ids)).split(" <bot> ")[1]

    assert written(0) == "<bol> <eol> a is b ; b is c ; c is d ; answer d <eos>"
    assert written(1) == "<bol> <lat> <lat> <eol> b is c ; c is d ; answer d <eos>"
    assert written(2) == "<bol> <lat> <lat> <lat> <lat> <eol> c is d ; answer d <eos>"
    assert written(3) == "<bol> <lat> <lat> <lat> <lat> <eol> answer d <eos>"
    assert reasoning.final_phase().stage == 3
    assert reasoning.thoughts_per_answer() == 4


def test_coconut_evaluates_without_the_gold_number_of_steps(tmp_path):
    parts = parts_of(words_model(tmp_path), Coconut(Coconut.Settings(max_stage=3)))
    counts = {e.prefix_ids.count(parts.backbone.special["latent"]) for e in encode(parts, examples(20))}
    assert counts == {3}


def test_coconut_passes_of_the_backbone(tmp_path):
    """One more than latents: the last thought goes together with what follows it."""
    parts = parts_of(words_model(tmp_path), Coconut(Coconut.Settings(thoughts_per_step=2, max_stage=2)))
    batch = parts.reasoning.collate(encode(parts, examples(4)))
    with torch.no_grad():
        assert parts.reasoning.begin(parts, batch).forward_passes == 5


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({}, 100, [(0, 20), (1, 20), (2, 20), (3, 40)]),
        ({"max_stage": 1, "stage_steps": [1, 3]}, 100, [(0, 25), (1, 75)]),
        ({"curriculum": "none"}, 7, [(3, 7)]),
        ({"curriculum": [0, 3]}, 9, [(0, 3), (3, 6)]),
        ({"max_stage": 1, "drop_all_after_last": True}, 8, [(0, 2), (1, 2), (2, 4)]),
        ({"thoughts_per_step": 0}, 11, [(0, 2), (1, 2), (2, 3), (3, 4)]),
    ],
)
def test_coconut_curricula_use_every_step(settings, steps, expected):
    phases = Coconut(Coconut.Settings(**settings)).phases(steps)
    assert [(p.stage, p.steps) for p in phases] == expected
    assert all(sum(p.steps for p in Coconut(Coconut.Settings(**settings)).phases(n)) == n for n in range(1, 40))


def test_coconut_without_thoughts_is_the_no_thought_control(backbone):
    """c = 0: steps are dropped all the same and nothing stands between the markers."""
    reasoning = Coconut(Coconut.Settings(thoughts_per_step=0, max_stage=2))
    parts = parts_of(backbone, reasoning)
    item = examples(1, seed=9)[0]
    e = encode(parts, [item])[0]
    marks = [backbone.special[n] for n in ("latent-start", "latent-end")]
    assert e.prefix_ids[-2:] == marks and backbone.special["latent"] not in e.prefix_ids
    assert e.target_ids == backbone.text.target_ids(item.steps[2:], item.answer)
    loss = reasoning.loss(parts, reasoning.collate([e]))
    torch.testing.assert_close(loss.loss_sum, reference_row(parts, e)[0], atol=1e-4, rtol=1e-5)
    assert reasoning.thoughts_per_answer() == 0


def test_coconut_mixes_stages_when_asked(tmp_path):
    parts = parts_of(words_model(tmp_path), Coconut(Coconut.Settings(uniform_prob=0.5)))
    rng = random.Random(0)
    item = examples(1)[0]
    latent = parts.backbone.special["latent"]
    encoded = [parts.reasoning.encode(parts.backbone.text, item, Phase(3, 0), rng) for _ in range(200)]
    counts = [e.prefix_ids.count(latent) for e in encoded]
    assert set(counts) == {0, 1, 2, 3} and 100 < counts.count(3) < 150


def test_coconut_can_draw_from_the_chain_as_the_original_does(tmp_path):
    """Beyond the last stage too: 5 steps with max_stage 3 give stages 0 to 5, and from 4 on nothing is written."""
    item = Example("x", "t", "a b ?", tuple("a is b|b is c|c is d|d is e|e is f".split("|")), "f")
    parts = parts_of(words_model(tmp_path), Coconut(Coconut.Settings(uniform_prob=1.0, uniform_over="chain")))
    rng, text = random.Random(0), parts.backbone.text
    encoded = [parts.reasoning.encode(text, item, Phase(1, 0), rng) for _ in range(300)]
    drawn = [(e.prefix_ids.count(parts.backbone.special["latent"]), text.decode(e.target_ids).count(" is ")) for e in encoded]
    assert {d: round(drawn.count(d) / 300, 1) for d in set(drawn)} == {
        (0, 5): 0.2,
        (1, 4): 0.2,
        (2, 3): 0.2,
        (3, 2): 0.2,
        (3, 0): 0.3,
    }


def test_coconut_answers_at_its_last_stage_whatever_training_draws(tmp_path):
    """A draw, or the length of the gold chain, would make the same question's thoughts differ."""
    settings = Coconut.Settings(uniform_prob=1.0, pad_latent_to_max=False, drop_all_after_last=True)
    parts = parts_of(words_model(tmp_path), Coconut(settings))
    text, items, latent = parts.backbone.text, examples(20), parts.backbone.special["latent"]
    policy = MethodPolicy(parts, None)
    assert {e.prefix_ids.count(latent) for e in policy._encode(items)} == {3}
    rng = random.Random(0)
    assert len({parts.reasoning.encode(text, e, Phase(4, 1), rng).prefix_ids.count(latent) for e in items}) > 1


@pytest.mark.parametrize("model", [chat_model, gpt2_model])
def test_markers_of_the_table_are_in_the_softmax_and_nothing_else_is(model, tmp_path):
    """Added in the original's order: start, end, latent; slot and pause, which it does not have, behind them and left out."""
    own, table = model(tmp_path), model(tmp_path)
    added = [own.special[name] for name in ("latent-start", "latent-end", "latent", "slot", "pause")]
    assert added == list(range(own.vocab_size, own.vocab_size + 5))
    parts_of(own, Coconut())
    parts_of(table, Coconut(Coconut.Settings(markers="table")))
    assert table.vocab_size == own.vocab_size + 3 == added[2] + 1
    hidden = torch.randn(2, own.width)
    torch.testing.assert_close(table.logits(hidden)[:, : own.vocab_size], own.logits(hidden))


def test_markers_that_nobody_would_train_are_refused():
    refuses = Coconut.refuses
    assert "markers: table" in refuses(Coconut.Settings(markers="table"), "lora")
    assert "markers: none" in refuses(Coconut.Settings(markers="none"), "frozen_backbone")
    assert "markers: table" in refuses(Coconut.Settings(markers="table"), "frozen_backbone")
    assert refuses(Coconut.Settings(markers="table"), "full_finetune") is None
    assert refuses(Coconut.Settings(markers="none"), "lora") is None
    assert all(refuses(Coconut.Settings(), name) is None for name in ("full_finetune", "lora", "frozen_backbone"))


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_made_only_where_there_is_a_label(way, tmp_path, assistant, monkeypatch):
    """The originals make them at every position, for the whole vocabulary."""
    parts = parts_of(words_model(tmp_path), WAYS[way](), assistant)
    encoded = encode(parts, examples(5))
    places, real = [], parts.backbone.logits
    monkeypatch.setattr(parts.backbone, "logits", lambda hidden: places.append(hidden.shape[:-1].numel()) or real(hidden))
    loss = parts.reasoning.loss(parts, parts.reasoning.collate(encoded))
    assert sum(places) == loss.n_tokens == sum(len(e.target_ids) for e in encoded)


@pytest.mark.parametrize("bad", [{"curriculum": [4]}, {"curriculum": []}, {"stage_steps": [1, 1]}, {"stage_steps": [1, 1, 1, 0]}])
def test_coconut_refuses_impossible_curricula(bad):
    with pytest.raises(ValueError):
        Coconut.Settings(**bad)


# ------------------------------------------------------------------------------------------------------- softcot


def test_slots_are_found_by_id_wherever_they_stand(tmp_path, assistant):
    """Slots before, between and behind other tokens, in rows of different lengths, all get their own thought."""
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Softcot(Softcot.Settings(soft_thoughts=3)), assistant)
    encoded = encode(parts, examples(4))
    slot = backbone.special["slot"]
    for shift, e in enumerate(encoded):
        bare = [i for i in e.prefix_ids if i != slot]
        e.prefix_ids = bare[:shift] + [slot] + bare[shift:-1] + [slot, slot] + bare[-1:]
    with torch.no_grad():
        loss = parts.reasoning.loss(parts, parts.reasoning.collate(encoded))
        rows = torch.stack([reference_row(parts, e)[0] for e in encoded])
    torch.testing.assert_close(loss.per_example_B, rows, atol=1e-4, rtol=1e-5)


def test_soft_thoughts_start_at_the_scale_of_the_embeddings(tmp_path, assistant):
    backbone = words_model(tmp_path)
    for way in ("softcot", "softcot_mlp", "softcot_random", "softcot_free"):
        parts = parts_of(backbone, WAYS[way](), assistant)
        thoughts = parts.reasoning.soft_thoughts(parts.reasoning.collate(encode(parts, examples(20))))
        assert 0.4 < thoughts.std().item() / backbone.embedding_std() < 2.5, way


def test_thoughts_differ_between_questions_unless_they_are_free(tmp_path, assistant):
    backbone = words_model(tmp_path)
    for way, differ in (("softcot", True), ("softcot_random", True), ("softcot_free", False)):
        parts = parts_of(backbone, WAYS[way](), assistant)
        thoughts = parts.reasoning.soft_thoughts(parts.reasoning.collate(encode(parts, examples(2))))
        assert torch.equal(thoughts[0], thoughts[1]) != differ


def test_softcot_without_an_assistant_tells_the_way_out(tmp_path):
    for source in ("assistant", "random"):
        settings = Softcot.Settings(source=source)
        assert Softcot.needs_assistant(settings)
        with pytest.raises(UserError, match="needs an assistant"):
            parts_of(words_model(tmp_path), Softcot(settings))
    assert not Softcot.needs_assistant(Softcot.Settings(source="free"))
    with pytest.raises(ValueError):
        Softcot.Settings(hidden=8)


@pytest.mark.parametrize("way", ["coconut", "softcot", "softcot_free", "pause"])
def test_edits_reach_the_thoughts(way, tmp_path, assistant):
    parts = parts_of(words_model(tmp_path), WAYS[way](), assistant)
    batch = parts.reasoning.collate(encode(parts, examples(3)))
    seen = []

    def zero(thoughts_BKD, place):
        seen.append(tuple(thoughts_BKD.shape))
        assert place.batch is batch and place.index_BK.shape == thoughts_BKD.shape[:2]
        return torch.zeros_like(thoughts_BKD)

    with torch.no_grad():
        plain = parts.reasoning.begin(parts, batch).logits_BV
        same = parts.reasoning.begin(parts, batch, edit=lambda t, place: t).logits_BV
        zeroed = parts.reasoning.begin(parts, batch, edit=zero).logits_BV
    assert torch.equal(plain, same) and not torch.allclose(plain, zeroed)
    assert seen == ([(3, 1, 32)] * 4 if way == "coconut" else [(3, 3, 32)])


@pytest.mark.parametrize("model", [chat_model, gpt2_model])
def test_a_target_is_its_pieces(model, tmp_path):
    """Steps are tokenized as a whole; the original tokenizes each with its line's end, and the ids must be the same."""
    text = model(tmp_path).text
    steps = ("Every step is one. two", "<<3+2=5>>", "think,  step", "one\ttwo?!")

    def ids(piece):
        return text.tokenizer(piece, add_special_tokens=False)["input_ids"]

    pieces = [i for step in steps for i in ids(step + "\n")] + ids("### the answer 42")
    assert text.target_ids(steps, "the answer 42") == [*pieces, text.eos_id]
    later = text.target_ids(steps[2:], "the answer 42")  # as a later stage has them
    assert later == [*pieces, text.eos_id][-len(later) :]


# ------------------------------------------------------------------------------------------------ batch, policy


def test_batch_answers_to_avalanche(tmp_path):
    parts = parts_of(words_model(tmp_path), Cot())
    encoded = encode(parts, examples(5))
    for i, e in enumerate(encoded):
        e.task_id = i
    batch = parts.reasoning.collate(encoded)
    assert batch[0] is batch and batch[1] is batch["labels"] and batch[-1].tolist() == [0, 1, 2, 3, 4]
    assert len(batch) == 5 and isinstance(batch.to("cpu"), Batch)
    assert [m[-1].tolist() for m in batch.split(2)] == [[0, 1], [2, 3], [4]]
    assert [len(m) for m in batch.split(None)] == [5]


@pytest.mark.parametrize("way", ["cot", "coconut", "softcot"])
def test_policy_states_predict_given_continuations(way, backbone, assistant):
    parts = parts_of(backbone, WAYS[way](), assistant)
    items = examples(7, seed=8)
    generator = torch.Generator().manual_seed(0)
    continuations = [torch.randint(5, 36, (n,), generator=generator).tolist() for n in (3, 0, 5, 1, 9, 2, 4)]
    policy = MethodPolicy(parts, None, batch_size=3)
    states = policy.hidden_states(items, continuations)
    assert [len(s) for s in states] == [3, 0, 5, 1, 9, 2, 4]
    for e, c, state in zip(encode(parts, items), continuations, states, strict=True):
        if c:
            e.target_ids = c
            with torch.no_grad():
                torch.testing.assert_close(policy.head(state), reference_row(parts, e)[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", [chat_model, gpt2_model])
def test_drift_runs_over_the_tokens_that_both_vocabularies_have(model, tmp_path):
    """A method that can write its markers has three tokens more than the base. Untrained it says what the base says, so over
    the shared tokens, renormalised, only the thoughts move it; the markers' own probability is no drift."""
    items, base = examples(4), BasePolicy(model(tmp_path))
    parts = parts_of(model(tmp_path), Coconut(Coconut.Settings(max_stage=0, markers="table")))
    policy = MethodPolicy(parts, None)
    V = parts.backbone.vocab_size - 3
    reference = DriftReference.build("own", base, items, 6)
    alone = dataclasses.replace(parts, reasoning=Cot())  # its larger softmax without its markers in the prompt: no drift at all
    same = drift(MethodPolicy(alone, None), base, [reference], max_new_tokens=6, measure_identical=True)
    assert same["forward_kl/own"] == pytest.approx(0.0, abs=1e-6) and same["reverse_kl/own"] == pytest.approx(0.0, abs=1e-6)

    found = drift(policy, base, [reference], max_new_tokens=6)
    nats = tokens = 0
    for item, ids in zip(items, reference.continuations, strict=True):
        p_TV = base.head(base.hidden_states([item], [ids])[0])
        q_TW = policy.head(policy.hidden_states([item], [ids])[0])
        assert (p_TV.shape[1], q_TW.shape[1]) == (V, V + 3)
        p, q = p_TV.double().log_softmax(-1), q_TW.double()[:, :V].log_softmax(-1)
        nats, tokens = nats + float((p.exp() * (p - q)).sum()), tokens + len(ids)
    assert found["forward_kl/own"] == pytest.approx(nats / tokens, rel=1e-5) and nats > 0
    assert torch.isfinite(torch.tensor(found["reverse_kl/own"]))


class _NoRoom(Cot):
    def prefix(self, parts, batch, edit, room):
        """A cache of the library's own."""
        return new_state(parts.backbone, len(batch)), self.embed(parts, batch["prefix_BT"]), batch["prefix_mask_BT"]


class _OwnBegin(Cot):
    def begin(self, parts, batch, edit=None, room=None):
        """Tells logits, and no hidden states."""
        state, piece_BTD, mask_BT = self.prefix(parts, batch, edit, room)
        state.logits_BV = parts.backbone.logits(forward(parts.backbone, state, piece_BTD, mask_BT)[:, -1])
        return state


class _TwoColumnsMore(Cot):
    def prefix(self, parts, batch, edit, room):
        """Inputs that no token stands for."""
        state, piece_BTD, mask_BT = super().prefix(parts, batch, edit, room)
        more_B2D = piece_BTD.new_full((len(batch), 2, piece_BTD.shape[2]), 0.1)
        return state, torch.cat([more_B2D, piece_BTD], 1), torch.cat([torch.ones_like(mask_BT[:, :2]), mask_BT], 1)


@pytest.mark.parametrize("kind", [Cot, _NoRoom, _OwnBegin, _TwoColumnsMore])
def test_ways_of_thinking_of_anybodys_are_written_and_measured(tmp_path, kind):
    base, items = BasePolicy(words_model(tmp_path / "base")), examples(24)
    parts = parts_of(words_model(tmp_path / "other", seed=3), kind())
    parts.backbone.text.end_ids = (*parts.backbone.text.end_ids, *range(10, 16))  # answers end at different times
    policy = MethodPolicy(parts, None, batch_size=4)
    alone = [policy.generate([e], 14)[0] for e in items]
    assert policy.generate(items, 14) == alone and len({g.n_tokens for g in alone}) > 4
    found = drift(policy, base, [DriftReference.build("own", base, items, 8)], max_new_tokens=8)
    policy.keeps_states = False
    assert found == pytest.approx(drift(policy, base, [DriftReference.build("own", base, items, 8)], max_new_tokens=8), rel=1e-4)


@pytest.mark.parametrize("way", ["cot", "coconut", "softcot"])
def test_drift_in_one_pass_is_drift_in_two(tmp_path, monkeypatch, way, assistant):
    """The policy samples and reads the base's text behind the same prompts; read again one by one, they give the same."""
    base = BasePolicy(words_model(tmp_path / "base"))
    parts = parts_of(words_model(tmp_path / "other", seed=3), WAYS[way](), assistant if way == "softcot" else None)
    policy, sets = MethodPolicy(parts, None, batch_size=5), [DriftReference.build("own", base, examples(11), 8)]
    calls, read = [], policy.hidden_states
    monkeypatch.setattr(policy, "hidden_states", lambda *a: calls.append(1) or read(*a))
    once = drift(policy, base, sets, max_new_tokens=8)
    assert not calls and once["reverse_kl/own"] > 0
    policy.keeps_states = False
    assert once == pytest.approx(drift(policy, base, sets, max_new_tokens=8), rel=1e-4)
    assert len(calls) == 2


def test_policy_generates_reproducibly(tmp_path):
    policy = BasePolicy(words_model(tmp_path))
    items = examples(9)
    assert policy.generate(items, 8) == policy.generate(items, 8)
    assert policy.generate(items, 8, sample_seed=1) == policy.generate(items, 8, sample_seed=1)
    assert policy.generate(items, 8, sample_seed=1) != policy.generate(items, 8, sample_seed=2)
    assert [g.text for g in policy.generate(items[::-1], 8)] == [g.text for g in policy.generate(items, 8)][::-1]


def test_an_example_that_does_not_fit_is_named(tmp_path):
    parts = parts_of(words_model(tmp_path, max_length=20), Cot())
    item = Example("long-one", "t", "a b ?", ("a is b",) * 6, "b")
    with pytest.raises(UserError, match="long-one"):
        encode(parts, [item])


def test_logits_of_many_places_are_made_a_part_at_a_time(tmp_path, monkeypatch):
    parts = parts_of(words_model(tmp_path), Cot())
    backbone = parts.backbone
    backbone.model.requires_grad_(True)
    named = dict(backbone.model.named_parameters())
    batch = parts.reasoning.collate(encode(parts, examples(4)))
    whole = parts.reasoning.loss(parts, batch)
    whole.loss_sum.backward()
    expected = gradients(named)
    monkeypatch.setattr("cl_softcot.models.head.LOGITS_AT_ONCE", 3 * backbone.vocab_size + 1)
    sizes, logits = [], backbone.logits
    monkeypatch.setattr(backbone, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    part = parts.reasoning.loss(parts, batch)
    part.loss_sum.backward()
    assert max(sizes) == 3 and sum(sizes) == 2 * whole.n_tokens  # once forwards, once more on the way back
    torch.testing.assert_close(part.per_example_B, whole.per_example_B)
    assert_same_gradients(gradients(named), expected)


@pytest.mark.parametrize("head", ["plain", "plain in fp64", "scaled", "with a bias"])
def test_a_frozen_heads_logits_are_made_once_or_not_at_all(tmp_path, monkeypatch, head):
    backbone = words_model(tmp_path)
    generator = torch.Generator().manual_seed(0)
    if head == "scaled":
        backbone.config.logits_scaling = 3.0
    elif head == "with a bias":
        backbone.model.lm_head.bias = torch.nn.Parameter(torch.randn(len(backbone.model.lm_head.weight)), requires_grad=False)
    elif head == "plain in fp64":
        backbone.model.double()
    dtype = backbone.model.lm_head.weight.dtype
    labels = torch.randint(0, backbone.vocab_size, (10,), generator=generator)
    factors = torch.rand(10, generator=generator, dtype=dtype)
    whole = torch.randn(10, backbone.width, generator=generator, dtype=dtype).requires_grad_()
    part = whole.detach().clone().requires_grad_()
    expected = token_losses(backbone, whole, labels)
    (expected * factors).sum().backward()
    monkeypatch.setattr("cl_softcot.models.head.LOGITS_AT_ONCE", 8 * 4 * backbone.vocab_size)
    sizes, logits = [], backbone.logits
    monkeypatch.setattr(backbone, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    found = token_losses(backbone, part, labels)
    (found * factors).sum().backward()
    assert sizes == ([] if head.startswith("plain") else [4, 4, 2])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(part.grad, whole.grad)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(backbone, part, labels), expected)


@pytest.fixture
def large_head(tmp_path, monkeypatch):
    backbone = words_model(tmp_path)
    monkeypatch.setattr("cl_softcot.models.head.PACKED", range(1, 2**20))
    return backbone


@pytest.mark.parametrize("shape", [(1,), (8, 1), (3, 5), (100,)], ids=str)
def test_a_large_heads_logits_come_from_a_copy_in_another_layout(large_head, shape):
    hidden = torch.randn(*shape, large_head.width)
    expected = hidden @ large_head.model.lm_head.weight[: large_head.vocab_size].t()
    assert packed_logits(large_head, hidden) is None  # gradients take the usual way
    with torch.no_grad():
        found = packed_logits(large_head, hidden)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(large_head.logits(hidden), found) and found.is_contiguous()
        assert packed_logits(large_head, hidden.double()) is None


@pytest.mark.parametrize("change", ["in place", "another", "fewer words"])
def test_the_copy_of_a_head_is_never_older_than_the_head(large_head, change):
    head, hidden = large_head.model.lm_head, torch.randn(2, large_head.width)
    with torch.no_grad():
        before = packed_logits(large_head, hidden)
        if change == "in place":
            head.weight.mul_(2.0)
        elif change == "another":
            head.weight = torch.nn.Parameter(2.0 * head.weight, requires_grad=False)
        else:
            large_head.vocab_size -= 3
        found = packed_logits(large_head, hidden)
    assert found.shape[-1] == large_head.vocab_size and (found.shape[-1] < before.shape[-1]) == (change == "fewer words")
    torch.testing.assert_close(found, hidden @ head.weight[: large_head.vocab_size].t(), rtol=1e-5, atol=1e-5)
