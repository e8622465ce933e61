"""Loading, text, and decoding that equals the library's own generation token for token."""

from __future__ import annotations

import json

import pytest
import torch
from model_fakes import (
    MARKER,
    chat_model,
    examples,
    gpt2_model,
    parts_of,
    save_words_model,
    words_model,
)

from cl_softcot.errors import UserError
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.decoding import forward, generate, new_state
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.projector import Projector
from cl_softcot.reasoning.base import Phase
from cl_softcot.reasoning.cot import Cot

MODELS = {"words": words_model, "chat": chat_model, "gpt2": gpt2_model}


@pytest.fixture(params=sorted(MODELS))
def backbone(request, tmp_path):
    return MODELS[request.param](tmp_path)


def encode(backbone, reasoning, items, phase=None):
    import random

    phase = phase or reasoning.final_phase()
    return [reasoning.encode(backbone.text, e, phase, random.Random(0)) for e in items]


def one_by_one(backbone, prompt_ids, n):
    """Greedy generation by the library itself, one prompt, no padding."""
    ids = torch.tensor([prompt_ids])
    unwritable = list(range(backbone.vocab_size, backbone.model.get_output_embeddings().weight.shape[0]))
    out = backbone.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=backbone.eos_id,
        pad_token_id=backbone.eos_id,
        suppress_tokens=unwritable or None,
    )[0, len(prompt_ids) :].tolist()
    return out[: out.index(backbone.eos_id)] if backbone.eos_id in out else out


def end_at_different_times(backbone, written):
    """Take that token for end-of-text that these answers first write at the most different places."""
    places = {t: {ids.index(t) for ids in written if t in ids} for ids in written for t in ids}
    backbone.eos_id = backbone.text.eos_id = max(sorted(places), key=lambda token: len(places[token]))


# ------------------------------------------------------------------------------------------------------- decoding


def test_batched_decoding_equals_one_by_one_generation(backbone):
    """Left padding, dropped finished rows and the roomy cache change no token."""
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(40))
    end_at_different_times(backbone, [one_by_one(backbone, e.prefix_ids, 24) for e in encoded])
    written = generate(parts.reasoning, parts, encoded, 24, batch_size=16)
    expected = [one_by_one(backbone, e.prefix_ids, 24) for e in encoded]
    assert [g.ids for g in written] == expected
    assert len({len(g.ids) for g in written}) > 2, "the fake model should end its answers at different times"
    assert len({tuple(g.ids) for g in written}) > 10, "the fake model should answer differently"
    for g in written:
        assert g.n_tokens == len(g.ids) + g.finished
        assert g.forward_passes == g.n_tokens  # one for the prompt, one for each token but the last
        assert g.text == backbone.text.decode(g.ids)


def test_batch_size_changes_no_answer(backbone):
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(20, seed=3))
    whole = generate(parts.reasoning, parts, encoded, 12, batch_size=32)
    assert [g.ids for g in whole] == [g.ids for g in generate(parts.reasoning, parts, encoded, 12, batch_size=3)]


def test_end_of_text_as_the_first_token_is_an_empty_answer(tmp_path):
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(12))
    real = type(backbone).logits
    first_eos = {"calls": 0}

    def logits(self, hidden):
        out = real(self, hidden)
        if out.dim() == 2:  # what predicts the first token, in `begin`
            first_eos["calls"] += 1
            out = out.clone()
            out[::2, backbone.eos_id] = 1e4
        return out

    backbone.logits = logits.__get__(backbone)
    written = generate(parts.reasoning, parts, encoded, 6, batch_size=12)
    by_length = sorted(range(12), key=lambda i: (len(encoded[i].prefix_ids), i))
    assert first_eos["calls"] == 1
    for place, i in enumerate(by_length):
        if place % 2 == 0:
            assert (written[i].ids, written[i].n_tokens, written[i].finished) == ([], 1, True)
        else:
            assert written[i].ids == one_by_one(backbone, encoded[i].prefix_ids, 6)


def test_sampling_is_reproducible_from_its_generator(tmp_path):
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(10))

    def sampled(seed):
        g = torch.Generator().manual_seed(seed)
        return [w.ids for w in generate(parts.reasoning, parts, encoded, 12, sample=g)]

    torch.manual_seed(1)
    first = sampled(7)
    torch.manual_seed(2)  # the global generator has no say
    assert first == sampled(7)
    assert first != sampled(8)
    assert first != [g.ids for g in generate(parts.reasoning, parts, encoded, 12)]


def test_sampling_follows_the_models_distribution(tmp_path):
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Cot())
    one = encode(backbone, parts.reasoning, examples(1))
    ids = torch.tensor([one[0].prefix_ids])
    p_V = backbone.model(input_ids=ids).logits[0, -1].softmax(-1)
    written = generate(parts.reasoning, parts, one * 4000, 1, sample=torch.Generator().manual_seed(0), batch_size=4000)
    firsts = torch.tensor([g.ids[0] if g.ids else backbone.eos_id for g in written])
    assert (firsts.bincount(minlength=len(p_V)) / 4000 - p_V).abs().max() < 0.04


@pytest.mark.parametrize("room", [None, 64])
def test_pieces_equal_one_pass(backbone, room):
    """Any split of a sequence into pieces, behind any padding, gives the hidden states of one plain pass."""
    ids_BT = torch.randint(5, backbone.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    pads = [0, 4, 7]
    mask_BT = torch.ones(3, 20, dtype=torch.bool)
    for row, pad in enumerate(pads):
        mask_BT[row, :pad] = False
    with torch.no_grad():
        state = new_state(backbone, 3, room)
        pieces = []
        for start, end in ((0, 9), (9, 10), (10, 16), (16, 20)):
            pieces.append(forward(backbone, state, backbone.embed(ids_BT[:, start:end]), mask_BT[:, start:end]))
        hidden_BTD = torch.cat(pieces, 1)
        for row, pad in enumerate(pads):
            plain = backbone.core(input_ids=ids_BT[row : row + 1, pad:], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(hidden_BTD[row, pad:], plain, atol=1e-5, rtol=1e-5)
    assert state.forward_passes == 4
    assert state.position_B.tolist() == [20, 16, 13]


def test_ready_made_mask_equals_the_librarys_own(backbone):
    assert backbone.ready_mask
    ids_BT = torch.randint(5, backbone.vocab_size, (2, 12))
    mask_BT = torch.ones(2, 12, dtype=torch.bool)
    mask_BT[1, :5] = False

    def run():
        state = new_state(backbone, 2)
        first = forward(backbone, state, backbone.embed(ids_BT[:, :8]), mask_BT[:, :8])
        return torch.cat([first, forward(backbone, state, backbone.embed(ids_BT[:, 8:]), mask_BT[:, 8:])], 1)[mask_BT]

    ready = run()
    backbone.ready_mask = False
    torch.testing.assert_close(ready, run(), atol=1e-5, rtol=1e-5)


def test_a_prompt_beyond_the_context_names_its_example(tmp_path):
    backbone = words_model(tmp_path, max_length=32)
    parts = parts_of(backbone, Cot())
    item = examples(1)[0]
    encoded = encode(backbone, parts.reasoning, [item])
    with pytest.raises(UserError, match=item.id):
        generate(parts.reasoning, parts, encoded, 32)
    generate(parts.reasoning, parts, encoded, 32 - len(encoded[0].prefix_ids))


# ----------------------------------------------------------------------------------------------------------- text


def test_words_equal_the_tokenizer_and_pieces_make_the_whole(tmp_path):
    backbone = words_model(tmp_path)
    text = backbone.text
    prompt = text.prompt_ids("a b ?", "cot", ["slot"] * 2, "before_turn")
    target = text.target_ids(("a is b", "b is c"), "c")
    whole = "<user> think aloud : a b ? <slot> <slot> <bot> a is b ; b is c ; answer c <eos>"
    assert prompt + target == backbone.tokenizer(whole, add_special_tokens=False)["input_ids"]
    behind = text.prompt_ids("a b ?", "direct", ["latent-start", "latent", "latent-end"], "after_turn")
    assert backbone.tokenizer.convert_ids_to_tokens(behind)[-4:] == ["<bot>", "<bol>", "<lat>", "<eol>"]
    assert text.target_ids((), "c") == backbone.tokenizer("answer c <eos>", add_special_tokens=False)["input_ids"]
    assert text.decode(target) == "a is b ; b is c ; answer c"
    assert text.answer_of(text.decode(target)) == "c"


def test_an_unknown_word_is_named(tmp_path):
    with pytest.raises(UserError, match="'zebra'"):
        words_model(tmp_path).text.prompt_ids("a zebra ?")


def test_chat_slots_stand_at_the_end_of_the_users_turn(tmp_path):
    backbone = chat_model(tmp_path)
    slot = backbone.special["slot"]
    ids = backbone.text.prompt_ids("a b ?", "cot", ["slot"] * 3, "before_turn")
    assert ids.count(slot) == 3
    last = max(i for i, token in enumerate(ids) if token == slot)
    assert backbone.tokenizer.decode(ids[last + 1 :]) == "<|im_end|>\n<|im_start|>assistant\n"
    without = backbone.text.prompt_ids("a b ?", "cot")
    assert [i for i in ids if i != slot] == without
    target = backbone.text.target_ids(("one is two", "two is one"), "one")
    assert backbone.text.decode(target) == "one is two\ntwo is one\n### one"
    assert backbone.text.answer_of("one\n### two\n### one") == "one"
    behind = backbone.text.prompt_ids("a b ?", "direct", ["pause"] * 2, "after_turn")
    assert behind[-2:] == [backbone.special["pause"]] * 2


def test_a_chat_template_that_loses_slots_is_refused(tmp_path):
    backbone = chat_model(tmp_path)
    backbone.tokenizer.chat_template = "{{ messages[0]['content'][:3] }}"
    with pytest.raises(UserError, match="loses tokens"):
        backbone.text.prompt_ids("a b ?", "cot", ["slot"] * 3)


def test_text_that_cannot_be_decoded_again_is_refused(tmp_path):
    backbone = gpt2_model(tmp_path)
    real = backbone.tokenizer

    class Lossy:
        def __call__(self, text, **kwargs):
            return real(text.replace("q", ""), **kwargs)

        def __getattr__(self, name):
            return getattr(real, name)

    backbone.text.tokenizer = Lossy()
    with pytest.raises(UserError, match="cannot write"):
        backbone.text.target_ids(("quiet",), "a")


# --------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("make", [chat_model, gpt2_model])
def test_added_tokens_leave_the_distribution_as_it_was(make, tmp_path):
    from transformers import AutoModelForCausalLM

    backbone = make(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(backbone.name)
    ids = torch.randint(0, stock.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = backbone.logits(backbone.core(input_ids=ids, use_cache=False).last_hidden_state)
    assert logits.shape[-1] == backbone.vocab_size == stock.config.vocab_size
    assert torch.equal(logits, stock(input_ids=ids).logits)
    assert min(backbone.special.values()) >= backbone.vocab_size
    pattern = backbone.tokenizer("\n")["input_ids"][-1]
    for row in backbone.special.values():
        assert torch.equal(backbone.embed(torch.tensor(row)), backbone.embed(torch.tensor(pattern)))


def test_a_missing_model_tells_the_way_out(tmp_path):
    for spec in ("./nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="no folder"):
            load_language_model(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="config.json"):
        load_language_model(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="dtype"):
        load_language_model(str(tmp_path / "empty"), dtype="int4")


def test_a_broken_marker_file_is_told(tmp_path):
    folder = save_words_model(tmp_path / "m")
    (folder / "cl_softcot.json").write_text("{not json")
    with pytest.raises(UserError, match="not JSON"):
        load_language_model(str(folder))
    (folder / "cl_softcot.json").write_text(json.dumps({k: v for k, v in MARKER.items() if k != "instructions"}))
    with pytest.raises(UserError, match="instructions"):
        load_language_model(str(folder))


def test_the_hash_sees_every_bit_and_copies_are_independent(tmp_path):
    backbone = words_model(tmp_path)
    twin = backbone.copy()
    before = backbone.weights_sha256()
    assert twin.weights_sha256() == before == backbone.fingerprint
    with torch.no_grad():
        weight = twin.model.get_input_embeddings().weight
        weight[7, 3] = torch.nextafter(weight[7, 3], torch.tensor(9.0))
    assert twin.weights_sha256() != before
    assert backbone.weights_sha256() == before


def test_half_precision_computes_close_to_full(tmp_path):
    folder = save_words_model(tmp_path / "m")
    full, half = load_language_model(str(folder)), load_language_model(str(folder), dtype="bfloat16")
    items = examples(6)
    for backbone in (full, half):
        parts = parts_of(backbone, Cot())
        batch = parts.reasoning.collate(encode(backbone, parts.reasoning, items))
        backbone.measured = parts.reasoning.loss(parts, batch)
    assert half.measured.loss_sum.dtype == torch.float32
    assert abs(half.measured.loss_sum / full.measured.loss_sum - 1) < 0.05


# ------------------------------------------------------------------------------------------- assistant, projector


@pytest.fixture(params=["words", "chat"])
def assistant(request, tmp_path):
    return MODELS[request.param](tmp_path)


def test_states_for_four_slots_begin_those_for_eight(assistant):
    questions = [e.question for e in examples(9)]
    four, eight = AssistantStates(assistant, 4), AssistantStates(assistant, 8)
    prompts = [four.prompt_ids(q) for q in questions]
    states_4, states_8 = four.states(prompts, 4), eight.states(prompts, 8)
    assert states_4.shape == (9, 4, assistant.width)
    torch.testing.assert_close(states_4, states_8[:, :4], atol=1e-5, rtol=1e-5)
    assert torch.equal(eight.states(prompts, 4), states_8[:, :4])
    torch.testing.assert_close(four.states(prompts, 8), states_8, atol=1e-5, rtol=1e-5)  # asked for more: computed anew


def test_states_are_the_last_hidden_states_at_the_slots(assistant):
    states = AssistantStates(assistant, 3)
    prompts = [states.prompt_ids(e.question) for e in examples(7)]
    found_BKA, means_BA = states.states(prompts), states.means(prompts)
    slot = assistant.special["slot"]
    for row, prompt in enumerate(prompts):
        hidden = assistant.core(input_ids=torch.tensor([prompt + [slot] * 3]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(found_BKA[row], hidden[-3:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(means_BA[row], hidden[:-3].mean(0), atol=1e-5, rtol=1e-5)


def test_registered_prompts_have_the_same_bits_in_any_order_of_asking(assistant):
    prompts = [AssistantStates(assistant, 4).prompt_ids(e.question) for e in examples(100)]
    one, two = AssistantStates(assistant, 4), AssistantStates(assistant, 4)
    one.register(prompts)
    two.register(prompts)
    whole = one.states(prompts)
    assert torch.equal(whole[90:], two.states(prompts[90:]))
    assert torch.equal(whole[::7], two.states(prompts[::7]))


def test_each_prompt_is_computed_once(assistant, monkeypatch):
    states = AssistantStates(assistant, 4)
    prompts = [states.prompt_ids(e.question) for e in examples(10)]
    rows = []
    real = states._compute
    monkeypatch.setattr(states, "_compute", lambda keys: (rows.extend(keys), real(keys)))
    states.states(prompts)
    states.states(prompts[:5], 2)
    states.means(prompts)
    assert sorted(rows) == sorted({tuple(p) for p in prompts})


def test_a_random_assistant_has_the_same_shape_and_other_weights(tmp_path):
    assistant = words_model(tmp_path)
    random_one = assistant.randomised(3)
    assert random_one.weights_sha256() == assistant.randomised(3).weights_sha256()
    assert random_one.weights_sha256() not in (assistant.weights_sha256(), assistant.randomised(4).weights_sha256())
    assert random_one.width == assistant.width


@pytest.mark.parametrize("hidden", [None, 24])
def test_projector_starts_at_the_wanted_scale(hidden):
    torch.manual_seed(0)
    projector = Projector(16, 32, hidden)
    states = torch.randn(2, 8, 16) * 3
    projector.calibrate(states, 0.05)
    assert abs(projector(states).std(correction=0).item() - 0.05) < 1e-6
    assert projector(states).shape == (2, 8, 32)


def test_evaluation_phase_is_a_phase(tmp_path):
    assert Cot().final_phase() == Phase(0, 0)
