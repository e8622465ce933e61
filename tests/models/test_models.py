"""Loading, text, and decoding that equals the library's own generation token for token."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from model_fakes import (
    MARKER,
    chat_model,
    examples,
    gpt2_model,
    parts_of,
    save_words_model,
    words_model,
)
from safetensors.torch import load_file, save_file

from cl_softcot.answering.policy import MethodPolicy
from cl_softcot.errors import UserError
from cl_softcot.models.assistant import AssistantStates
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.lean import make_lean
from cl_softcot.models.projector import Projector
from cl_softcot.models.running import forward, new_state
from cl_softcot.models.scratch import make_model_folder
from cl_softcot.models.writing import generate, random_numbers
from cl_softcot.reasoning.base import Parts, Phase
from cl_softcot.reasoning.coconut import Coconut
from cl_softcot.reasoning.cot import Cot
from strategies.lora import Lora

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
    backbone.text.end_ids = (backbone.eos_id,)


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


@pytest.mark.parametrize("sampled", [False, True])
def test_what_few_batches_leave_over_is_written_together(tmp_path, monkeypatch, sampled):
    """Batches of 8 with answers of all lengths; one after the other, each would take as many steps as its longest has words."""
    backbone = words_model(tmp_path)
    parts, limit = parts_of(backbone, Cot()), 24
    encoded = encode(backbone, parts.reasoning, examples(32))
    end_at_different_times(backbone, [one_by_one(backbone, e.prefix_ids, limit) for e in encoded])
    numbers = random_numbers(32, limit, 3) if sampled else None
    alone = [
        generate(parts.reasoning, parts, [e], limit, sample=None if numbers is None else numbers[i : i + 1], drafts=False)[0]
        for i, e in enumerate(encoded)
    ]
    sizes, run = [], backbone.run_core
    monkeypatch.setattr(backbone, "run_core", lambda x, **k: sizes.append(tuple(x.shape[:2])) or run(x, **k))

    def steps() -> list[int]:
        """Rows of each call that adds one token."""
        sizes.clear()
        assert generate(parts.reasoning, parts, encoded, limit, sample=numbers, batch_size=8, drafts=False) == alone
        rows = [rows for rows, columns in sizes if columns == 1]
        assert len(sizes) - len(rows) == 4 and max(rows) <= 8
        return rows

    together = steps()
    monkeypatch.setattr("cl_softcot.models.writing.FEW", 0.0)
    one_after_the_other = steps()
    assert len(together) < len(one_after_the_other)


@pytest.mark.parametrize("places", [1, 40, 10**6])
def test_prompts_are_read_a_few_rows_at_a_time(backbone, monkeypatch, places):
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(9))
    expected = [one_by_one(backbone, e.prefix_ids, 10) for e in encoded]
    monkeypatch.setattr("cl_softcot.models.running.NUMBERS_IN_CACHE", 0)
    monkeypatch.setattr("cl_softcot.models.running.LEAST_PLACES", places)
    rows, run = [], backbone.run_core
    monkeypatch.setattr(backbone, "run_core", lambda x, **k: rows.append(len(x)) or run(x, **k))
    assert [g.ids for g in generate(parts.reasoning, parts, encoded, 10, drafts=False)] == expected
    assert rows[0] == min(9, max(1, places // max(len(e.prefix_ids) for e in encoded)))


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("way", [Cot(), Coconut(Coconut.Settings(max_stage=2))], ids=["cot", "coconut"])
def test_states_that_are_kept_are_those_that_reading_the_text_gives(tmp_path, way, sampled):
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, way)
    policy = MethodPolicy(parts, None, batch_size=5)
    items = examples(12)
    end_at_different_times(backbone, [g.ids for g in policy.generate(items, 10)])
    seed = 3 if sampled else None
    given = [g.ids[: i % 7] for i, g in enumerate(policy.generate(items, 10, sample_seed=3))]  # right and wrong ones, some empty
    written = policy.generate(items, 10, sample_seed=seed, read=given)
    assert written == policy.generate(items, 10, sample_seed=seed)
    texts = [g.ids + [backbone.eos_id] * g.finished for g in written]
    assert len(set(map(len, texts))) > 2
    for kept, expected in (("states_TD", texts), ("draft_states_TD", given)):
        read = policy.hidden_states(items, expected)
        for generation, text, read_TD in zip(written, expected, read, strict=True):
            torch.testing.assert_close(getattr(generation, kept)[: len(text)], read_TD, rtol=1e-4, atol=1e-4)


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
    written = generate(parts.reasoning, parts, encoded, 6, batch_size=12, drafts=False)
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
        return [w.ids for w in generate(parts.reasoning, parts, encoded, 12, sample=random_numbers(10, 12, seed))]

    torch.manual_seed(1)
    first = sampled(7)
    torch.manual_seed(2)  # the global generator has no say
    assert first == sampled(7)
    assert first != sampled(8)
    assert first != [g.ids for g in generate(parts.reasoning, parts, encoded, 12)]


@pytest.mark.parametrize("sampled", [False, True])
def test_no_answer_depends_on_its_draft(tmp_path, sampled):
    """Right drafts, ones that go wrong at every place, too long and too short ones, and none: the same text."""
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(14))
    limit = 12
    numbers = random_numbers(14, limit, 3) if sampled else None
    plain = generate(parts.reasoning, parts, encoded, limit, sample=numbers, drafts=False)
    own = [g.ids + [backbone.eos_id] * g.finished for g in plain]
    assert {len(ids) for ids in own} != {limit}  # some end by themselves
    other = (backbone.eos_id + 1) % backbone.vocab_size
    cuts = [(i + 1) % len(ids) for i, ids in enumerate(own)]  # few at the first token: drafts are not read then
    wrong = [ids[:k] + [other if ids[k] != other else other + 1] + ids for ids, k in zip(own, cuts, strict=True)]
    for drafts in (own, wrong, [ids + ids for ids in own], [ids[:2] for ids in own], [[other]] * 14):
        guessed = [dataclasses.replace(e, target_ids=list(d)) for e, d in zip(encoded, drafts, strict=True)]
        assert generate(parts.reasoning, parts, guessed, limit, sample=numbers, batch_size=5) == plain


def test_a_right_draft_is_read_in_one_call_and_a_wrong_one_in_none(tmp_path, monkeypatch):
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Cot())
    encoded = encode(backbone, parts.reasoning, examples(6))
    plain = generate(parts.reasoning, parts, encoded, 12, drafts=False)
    calls, run = [], backbone.run_core
    monkeypatch.setattr(backbone, "run_core", lambda *a, **k: calls.append(1) or run(*a, **k))
    right = [dataclasses.replace(e, target_ids=g.ids + [backbone.eos_id]) for e, g in zip(encoded, plain, strict=True)]
    assert generate(parts.reasoning, parts, right, 12) == plain
    assert len(calls) == 2  # the prompts, and the drafts
    calls.clear()
    wrong = [dataclasses.replace(e, target_ids=[g.ids[0] + 1] * 9) for e, g in zip(encoded, plain, strict=True)]
    assert generate(parts.reasoning, parts, wrong, 12) == plain
    assert len(calls) == max(g.n_tokens for g in plain)


def test_sampling_follows_the_models_distribution(tmp_path):
    backbone = words_model(tmp_path)
    parts = parts_of(backbone, Cot())
    one = encode(backbone, parts.reasoning, examples(1))
    ids = torch.tensor([one[0].prefix_ids])
    p_V = backbone.model(input_ids=ids).logits[0, -1].softmax(-1)
    written = generate(parts.reasoning, parts, one * 4000, 1, sample=random_numbers(4000, 1, 0), batch_size=4000)
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


TURN = "<|turn_user|>{{ messages[0]['content'] }}<|end_of_turn|>"


def scratch_chat_model(tmp_path, template, **kwargs):
    folder = make_model_folder(tmp_path / "m", "llama", texts=["one is two\n### three"], chat_template=template, bos=True)
    return load_language_model(str(folder), **kwargs)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages[0]['content'][:3] }}", "changes or loses text|loses tokens"),  # cuts
        ("{{ messages[0]['content'][:-4] }}", "loses tokens"),  # cuts into the last slot
        ("{{ messages[0]['content'] | reverse }}", "changes or loses text"),
        ("{{ messages[0]['content'] | replace('<|', '') }}", "loses tokens"),  # drops what looks special
        ("{{ messages[0]['content'] | upper }}", "changes or loses text"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "loses tokens"),  # twice as many slots
        ("{{ raise_exception('no user turn here') }}", "refuses the prompt: no user turn here"),
        ("{{ messages[0]['content'] + 1 }}", "refuses the prompt"),
        ("{{ bos_token + bos_token + messages[0]['content'] }}", "begins the text twice"),
    ],
)
def test_a_chat_template_that_spoils_the_prompt_is_refused(template, told, tmp_path):
    backbone = scratch_chat_model(tmp_path, template)
    with pytest.raises(UserError, match=told) as error:
        backbone.text.prompt_ids("a b ?", "cot", ["slot"] * 3)
    assert backbone.name in str(error.value) and "chat: never" in str(error.value)
    with pytest.raises(UserError, match="chat template"):  # an assistant's prompt just as well
        AssistantStates(backbone, 2).prompt_ids("a b ?")
    plain = load_language_model(backbone.name, chat="never")
    ids = plain.text.prompt_ids("a b ?", "cot", ["slot"] * 3)
    assert ids[0] == plain.tokenizer.bos_token_id and ids[-3:] == [plain.special["slot"]] * 3


def test_templates_may_trim_and_say_more(tmp_path):
    template = "{{ bos_token }}system: be good\n" + TURN.replace("content']", "content'] | trim") + "model:"
    backbone = scratch_chat_model(tmp_path, template)
    ids = backbone.text.prompt_ids("  a b ?  ", "cot", ["slot"] * 3)
    assert ids.count(backbone.special["slot"]) == 3 and ids.count(backbone.tokenizer.bos_token_id) == 1
    assert "a b ?" in backbone.tokenizer.decode(ids)


def test_template_arguments_reach_the_template(tmp_path):
    template = TURN + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    with_it = scratch_chat_model(tmp_path, template)
    without = load_language_model(with_it.name, chat_template_args={"enable_thinking": False})
    tail = with_it.text.prompt_ids("a b ?")[len(without.text.prompt_ids("a b ?")) :]
    assert with_it.tokenizer.decode(tail) == "<think>"
    with pytest.raises(UserError, match="not read with a chat template"):
        load_language_model(with_it.name, chat="never", chat_template_args={"enable_thinking": False})


def test_prompts_do_not_depend_on_the_day(tmp_path):
    backbone = scratch_chat_model(tmp_path, "{{ strftime_now('%Y') }}/{{ date_string }}/{{ strftime_now(\"%d %B\") }}" + TURN)
    assert backbone.tokenizer.decode(backbone.text.prompt_ids("a ?")).startswith("2024/26 Jul 2024/26 July<|turn_user|>")


def test_a_question_with_the_text_of_special_tokens_makes_no_slots(tmp_path):
    backbone = scratch_chat_model(tmp_path, "default")
    question = "what do <|softcot-slot|> and <|end_of_turn|> mean ?"
    for chat in ("auto", "never"):
        backbone = load_language_model(backbone.name, chat=chat)
        ids = backbone.text.prompt_ids(question, "cot", ["slot"] * 2)
        assert ids.count(backbone.special["slot"]) == 2
        assert ids.count(backbone.eos_id) == (1 if chat == "auto" else 0)
        assert question in backbone.tokenizer.decode([i for i in ids if i != backbone.special["slot"]])
        target = backbone.text.target_ids(["a <|softcot-slot|> b"], "<|end_of_text|>")
        assert backbone.text.decode(target) == "a <|softcot-slot|> b\n### <|end_of_text|>"
        assert target.count(backbone.eos_id) == 1 and backbone.special["slot"] not in target
    states = AssistantStates(backbone, 2)
    assert backbone.special["slot"] not in states.prompt_ids(question)


def test_answers_end_at_any_of_the_models_ends_and_train_on_the_turns(tmp_path, monkeypatch):
    """As instruction-tuned Phi and Gemma: the tokenizer's end of text is not what the template ends a turn with."""
    folder = make_model_folder(tmp_path / "m", "llama", texts=["one is two"], chat_template="default", initializer_range=0.3)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<|end_of_text|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    backbone = load_language_model(str(folder))
    turn, end = (backbone.tokenizer.convert_tokens_to_ids(t) for t in ("<|end_of_turn|>", "<|end_of_text|>"))
    assert backbone.tokenizer.eos_token_id == end
    assert backbone.eos_id == turn and backbone.text.target_ids(["a"], "b")[-1] == turn
    assert set(backbone.text.end_ids) == {turn, end} and backbone.text.end_ids[0] == turn
    assert load_language_model(str(folder), chat="never").eos_id == end

    calls = []

    def logits(hidden_ND):
        """61, 60, and then row 0 and row 1 write an end, each another one."""
        found_NV = torch.zeros(len(hidden_ND), backbone.vocab_size)
        found_NV[:, 60 if calls else 61] = 1.0
        if len(calls) == 2:
            found_NV[0, turn] = found_NV[1, end] = 2.0
        calls.append(len(hidden_ND))
        return found_NV

    monkeypatch.setattr(backbone, "logits", lambda hidden: logits(hidden.flatten(0, -2)).reshape(*hidden.shape[:-1], -1))
    parts = parts_of(backbone, Cot())
    item = encode(backbone, parts.reasoning, examples(1))[0]
    first, second, third = generate(parts.reasoning, parts, [item] * 3, 6, drafts=False)
    assert (first.ids, first.finished, first.end_id, first.n_tokens) == ([61, 60], True, turn, 3)
    assert (second.ids, second.finished, second.end_id) == ([61, 60], True, end)
    assert (third.ids, third.finished, third.end_id) == ([61, 60, 60, 60, 60, 60], False, None)


def test_begin_of_text_stands_once_where_the_tokenizer_adds_it(tmp_path):
    for bos in (True, False):
        folder = make_model_folder(tmp_path / f"{bos}", "llama", texts=["one is two"], bos=bos)
        backbone = load_language_model(str(folder))
        ids = backbone.text.prompt_ids("one ?")
        assert ids == backbone.tokenizer("one ?\n")["input_ids"]
        assert ids.count(backbone.tokenizer.bos_token_id) == bos


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
    make_lean(stock)  # other layers round otherwise
    ids = torch.randint(0, stock.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = backbone.logits(backbone.core(input_ids=ids, use_cache=False).last_hidden_state)
    assert logits.shape[-1] == backbone.vocab_size == stock.config.vocab_size
    assert torch.equal(logits, stock(input_ids=ids).logits)
    assert min(backbone.special.values()) >= backbone.vocab_size
    pattern = backbone.tokenizer("<<")["input_ids"][0]
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


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("models") / "llama", "llama", texts=["one is two"])


def spoil(folder, what):
    """Damages a model folder in one way."""
    weights = folder / "model.safetensors"
    if what == "pickled":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif what == "no weights":
        weights.unlink()
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:9000])
    elif what == "a tensor is missing":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        change = {
            "a classifier": {"architectures": ["BertForSequenceClassification"], "model_type": "bert"},
            "unknown kind": {"model_type": "nonesuch", "architectures": ["NonesuchForCausalLM"]},
            "own code": {"model_type": "nonesuch", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}},
        }[what]
        (folder / "config.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("pickled", "can run any code"),
        ("no weights", "no \\*.safetensors"),
        ("truncated", "damaged"),
        ("a tensor is missing", "incomplete: 1 tensors .* model.layers.1.mlp.up_proj.weight"),
        ("no tokenizer", "tokenizer"),
        ("a classifier", "not a causal language model"),
        ("unknown kind", "nonesuch"),
        ("own code", "brings code of its own"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told(what, told, llama_folder, tmp_path):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "m"))
    spoil(folder, what)
    with pytest.raises(UserError, match=told) as error:
        load_language_model(str(folder))
    assert str(folder) in str(error.value)
    assert error.value.message.count("\n") == 0 and len(error.value.message) < 300


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_classes_that_come_up_empty_without_their_tokenizer_are_told(family, tmp_path):
    folder = make_model_folder(tmp_path / "m", family, texts=["one is two"])
    spoil(folder, "no tokenizer")
    with pytest.raises(UserError, match="tokenizer"):
        load_language_model(str(folder))


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (GatedRepoError, "gated: its owner has to grant you access"),
        (RepositoryNotFoundError, "no model 'org/name' on the hub"),
        (RevisionNotFoundError, "no such revision"),
        (LocalEntryNotFoundError, "hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(raised, told, monkeypatch):
    from transformers.utils import hub

    def refuse(*args, **kwargs):
        if raised is LocalEntryNotFoundError:
            raise raised("offline")
        raise raised("no", response=httpx.Response(401, request=httpx.Request("GET", "https://example.org")))

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    monkeypatch.setattr("transformers.models.auto.tokenization_auto.resolve_revision", lambda *a, **k: None)
    monkeypatch.setattr("transformers.models.auto.configuration_auto.resolve_revision", lambda *a, **k: None, raising=False)
    with pytest.raises(UserError, match=told) as error:
        load_language_model("org/name")
    assert error.value.fix


def test_choices_that_exclude_each_other_are_told(llama_folder):
    folder = str(llama_folder)
    for wrong, told in (
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
        ({"init": "random", "quantization": "4bit"}, "whole weights"),
        ({"revision": "main"}, "local folder"),
        ({"quantization": "3bit"}, "unknown quantization '3bit'"),
        ({"init": "randm"}, "did you mean 'random'"),
        ({"device": "cuda:77"}, "no device 'cuda:77' here"),
        ({"attention": "flash_attention_2"}, "flash"),
    ):
        with pytest.raises(UserError, match=told):
            load_language_model(folder, **wrong)


def test_random_weights_need_no_files(llama_folder, tmp_path):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    drawn = [load_language_model(str(folder), init="random", init_seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    hashes = [m.weights_sha256() for m in drawn]
    assert hashes[0] == hashes[1] != hashes[2]
    half = load_language_model(str(folder), "bfloat16", init="random")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.randomised(3).model.parameters()} == {torch.bfloat16}


def test_a_copy_that_shares_weights_leaves_them_alone(llama_folder):
    backbone = load_language_model(str(llama_folder))
    twin, before = backbone.copy(share_weights=True), backbone.weights_sha256()
    mine, theirs = dict(backbone.model.named_parameters()), dict(twin.model.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[n] is theirs[n] for n in mine)
    assert all(a is not b for a, b in zip(backbone.layers, twin.layers, strict=True))
    strategy = Lora(Lora.Settings(rank=2))
    parts = parts_of(twin, Cot())
    strategy.prepare(parts, 0)
    assert not any(".lora_" in name for name, _ in backbone.model.named_parameters())
    with torch.no_grad():
        for name, tensor in strategy.tensors(parts).items():
            assert ".lora_" in name
            tensor.normal_()
    batch = parts.reasoning.collate(encode(twin, parts.reasoning, examples(3)))
    plain = Cot().loss(Parts(backbone, None, Cot()), batch).loss_sum
    with strategy.as_used(parts), torch.no_grad():
        assert backbone.weights_sha256() == before
        assert torch.equal(Cot().loss(Parts(backbone, None, Cot()), batch).loss_sum, plain)
        assert abs(parts.reasoning.loss(parts, batch).loss_sum - plain) > 1
    assert backbone.weights_sha256() == twin.weights_sha256() == before


def test_a_broken_marker_file_is_told(tmp_path):
    folder = save_words_model(tmp_path / "m")
    (folder / "cl_softcot.json").write_text("{not json")
    with pytest.raises(UserError, match="not valid JSON"):
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
    assert torch.equal(states_4, states_8[:, :4])
    assert torch.equal(eight.states(prompts, 4), states_8[:, :4])
    assert torch.equal(four.states(prompts, 8), states_8)  # asked for more: computed anew
    assert torch.equal(AssistantStates(assistant, 1).states(prompts, 2), states_8[:, :2])
    assert torch.equal(four.means(prompts), AssistantStates(assistant).means(prompts))


def test_states_are_the_last_hidden_states_at_the_slots(assistant):
    for n in (3, 10):  # in one forward, and in three
        states = AssistantStates(assistant, n)
        prompts = [states.prompt_ids(e.question) for e in examples(7)]
        found_BKA, means_BA = states.states(prompts), states.means(prompts)
        slot = assistant.special["slot"]
        for row, prompt in enumerate(prompts):
            hidden = assistant.core(input_ids=torch.tensor([prompt + [slot] * n]), use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(found_BKA[row], hidden[-n:], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(means_BA[row], hidden[:-n].mean(0), atol=1e-5, rtol=1e-5)


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
