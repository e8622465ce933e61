"""A model is used only if it computes the library's numbers in the way in which it is run here: seen when it is loaded."""

from __future__ import annotations

import json

import pytest
import torch
from model_fakes import examples, parts_of, save_chat_model, save_gpt2_model, save_words_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cl_softcot import registry
from cl_softcot.errors import UserError
from cl_softcot.models import agreement, head
from cl_softcot.models.agreement import check_agreement
from cl_softcot.models.language_model import LanguageModel, load_language_model
from cl_softcot.models.running import forward, new_state
from cl_softcot.models.scratch import _tokenizer, make_model_folder
from cl_softcot.models.token_ids import check_rows

TEXTS = ["a b c d e f g is h ?\n### one <<1+2=3>>\n"] * 4
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
_KV = {**_SIZES, "num_key_value_heads": 2}
_LINEAR = {f"linear_num_{x}_heads": 2 for x in ("value", "key")} | {f"linear_{x}_head_dim": 8 for x in ("value", "key")}
RIGHT = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16},
    "cohere": _KV,
    "granite": {**_KV, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "qwen3_moe": {**_KV, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "lfm2": {**_KV, "layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {**_KV, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], **_LINEAR},
}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
WRONG = {
    "mamba": _MAMBA,
    "mamba2": {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "recurrent_gemma": {**_SIZES, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "jamba": {**_KV, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
    "bert": {**_SIZES, "is_decoder": True},
    "roberta": {**_SIZES, "is_decoder": True},
    "llama4_text": {**_KV, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
}


def made(kind, settings, folder):
    tokenizer = _tokenizer(TEXTS, 512, chat=False, bos=False, pad=False)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    config = CONFIG_MAPPING[kind](vocab_size=512, **ids, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for p in model.parameters():
            if p.dim() > 1:
                torch.nn.init.normal_(p, 0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", WRONG)
def test_kinds_that_would_be_computed_wrongly_are_refused_by_name(kind, dtype, tmp_path):
    with pytest.raises(UserError, match=rf"of a kind \({kind}\) that (is computed wrongly|cannot be run) here") as error:
        load_language_model(made(kind, WRONG[kind], tmp_path), dtype)
    assert str(tmp_path) in str(error.value) and error.value.fix


@pytest.mark.parametrize("kind", RIGHT)
def test_kinds_that_are_right_load_and_are_right(kind, tmp_path):
    """Behind padding, in pieces, with rows dropped on the way."""
    load_language_model(made(kind, RIGHT[kind], tmp_path), "bfloat16")
    backbone = load_language_model(str(tmp_path))
    ids_BT = torch.randint(5, 200, (3, 24), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.arange(24) >= torch.tensor([7, 0, 2])[:, None]
    with torch.no_grad():
        state = new_state(backbone, 3, 24)
        first = backbone.logits(forward(backbone, state, backbone.embed(ids_BT[:, :12]), mask_BT[:, :12]))
        state.keep(torch.tensor([2, 0]))
        rest = [backbone.logits(forward(backbone, state, backbone.embed(ids_BT[[2, 0], a:b]))) for a, b in ((12, 13), (13, 24))]
        found_BTV = torch.cat([first[[2, 0]], *rest], 1)
        for found_TV, ids_T, padding in zip(found_BTV, ids_BT[[2, 0]], (2, 7), strict=True):
            expected_TV = backbone.model(input_ids=ids_T[None, padding:]).logits[0, :, : backbone.vocab_size]
            torch.testing.assert_close(found_TV[padding:], expected_TV, atol=2e-4, rtol=2e-4)


def test_no_gradient_goes_through_a_recurrent_state(tmp_path):
    """The library overwrites it: torch would say so in the backward pass, in words of its own."""
    backbone = load_language_model(made("qwen3_5_text", RIGHT["qwen3_5_text"], tmp_path))
    backbone.model.requires_grad_(True)
    for name, settings in (("cot", {}), ("coconut", {"thoughts_per_step": 1, "max_stage": 2, "curriculum": "none"})):
        kind = registry.find("reasoning", name)
        parts = parts_of(backbone, kind(kind.Settings(**settings)))
        phase = parts.reasoning.final_phase()
        batch = parts.reasoning.collate([parts.reasoning.encode(backbone.text, e, phase, None) for e in examples(3)])
        if name == "cot":
            parts.reasoning.loss(parts, batch).loss_sum.backward()
        else:
            with pytest.raises(UserError, match=r"\(qwen3_5_text\) with recurrent layers"):
                parts.reasoning.loss(parts, batch)


# ------------------------------------------------------------------------------------------------ what is seen, and left alone


@pytest.fixture
def backbone(tmp_path):
    return load_language_model(str(make_model_folder(tmp_path / "m", "gemma2", texts=TEXTS, width=32, initializer_range=0.3)))


def _core(change):
    """A core that is given other arguments."""

    def fault(patch, backbone):
        before = backbone.model.base_model.forward
        patch.setattr(backbone.model.base_model, "forward", lambda **given: before(**change(given)))

    return fault


def _logits(change):
    return lambda patch, b: patch.setattr(b, "logits", lambda hidden: change(LanguageModel.logits(b, hidden)))


def _later(given):
    places = given.get("position_ids")
    return given if places is None else {**given, "position_ids": places + (places > 8)}


FAULTS = {
    "scaled logits": _logits(lambda logits: 1.001 * logits),
    "no numbers": _logits(lambda logits: logits * float("nan")),
    "another vocabulary": _logits(lambda logits: logits[..., :-1]),
    "an error inside": _logits(lambda logits: logits.nonsense()),
    "embeddings at another scale": lambda patch, b: patch.setattr(b, "embed", lambda ids: 1.01 * LanguageModel.embed(b, ids)),
    "no soft cap": lambda patch, b: patch.setattr(b.config, "final_logit_softcapping", 0.0),
    "a gap in the positions": _core(_later),
    "padding is read": _core(lambda given: {**given, "attention_mask": None}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_differs_is_seen(fault, backbone, monkeypatch):
    check_agreement(backbone)
    if fault == "no soft cap":  # the library reads the same setting
        plain = agreement._plain(backbone, agreement._random_ids(backbone)).detach()
        monkeypatch.setattr(agreement, "_plain", lambda backbone, ids_T: plain)
    FAULTS[fault](monkeypatch, backbone)
    with pytest.raises(UserError, match="gemma2"):
        check_agreement(backbone)


def test_a_token_that_goes_to_another_expert_is_no_fault_in_half_precision():
    expected_TV = torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
    found_TV = expected_TV.clone()
    found_TV[3] += 1
    difference = agreement._difference(found_TV, expected_TV, agreement._TOKENS_APART)
    assert difference == 0 and agreement._difference(found_TV, expected_TV, 0.0) > 0.1
    found_TV[10:] += 1  # what follows a lost state is wrong in all tokens
    assert agreement._difference(found_TV, expected_TV, agreement._TOKENS_APART) > 0.1


@pytest.mark.parametrize("save", [save_words_model, save_chat_model, save_gpt2_model])
def test_the_check_leaves_everything_as_it_was(save, tmp_path, monkeypatch):
    folder = str(save(tmp_path / "m"))
    with monkeypatch.context() as unchecked:
        unchecked.setattr("cl_softcot.models.language_model.check_agreement", lambda backbone: None)
        plain = load_language_model(folder)
    monkeypatch.setattr(head, "PACKED", range(1, 2**27))
    checked = load_language_model(folder)
    state = torch.random.get_rng_state()
    check_agreement(checked)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not len(head._copies)
    assert checked.weights_sha256() == plain.weights_sha256()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in checked.model.modules())
    assert not any(p.requires_grad or p.grad is not None or p.is_inference() for p in checked.model.parameters())
    ids_BT = torch.randint(5, 25, (2, 20), generator=torch.Generator().manual_seed(0))
    logits = [b.logits(forward(b, new_state(b, 2), b.embed(ids_BT))) for b in (plain, checked)]
    assert torch.equal(*logits)


def test_quantized_weights_are_not_compared_and_that_is_said(tmp_path, monkeypatch, capsys):
    from cl_softcot.models import language_model

    folder = str(save_chat_model(tmp_path / "m"))
    monkeypatch.setattr(language_model, "check_agreement", None)
    monkeypatch.setattr(language_model, "read_model", lambda *a, quantization, **k: AutoModelForCausalLM.from_pretrained(folder))
    assert load_language_model(folder, quantization="8bit").quantized
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and folder in line and "quantized" in line


# ---------------------------------------------------------------------------------------------------------- token ids


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "eos_token_id", -1),
        ("config.json", "eos_token_id", 512),
        ("generation_config.json", "eos_token_id", [0, 99999]),
        ("config.json", "bos_token_id", 600),
        ("generation_config.json", "pad_token_id", -1),
    ],
)
def test_a_token_outside_of_the_model_is_refused_with_its_number(file, field, value, tmp_path):
    folder = make_model_folder(tmp_path / "m", "llama", texts=TEXTS, width=32)
    edit(folder / file, **{field: value})
    outside = value[-1] if isinstance(value, list) else value
    with pytest.raises(UserError, match=f"the tokens 0 to 511, but names others: {field} {outside} in {file}"):
        load_language_model(str(folder))


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path):
    folder = make_model_folder(tmp_path / "m", "llama", texts=TEXTS, width=32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(200)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="has 275 tokens, but the model has 200 rows: 75 tokens have none"):
        load_language_model(str(folder))


def test_special_tokens_that_no_text_holds_need_no_row(tmp_path):
    """Gemma 3's tokenizer has one for images, which its text models do not; a template's own have to be there."""
    folder = make_model_folder(tmp_path / "m", "llama", texts=TEXTS, width=32, vocabulary=275)
    backbone = load_language_model(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    backbone = load_language_model(str(folder))
    tokenizer = backbone.tokenizer  # with our own, which are special too
    check_rows(tokenizer, model, "m", ["<lat>"])
    tokenizer.chat_template = "<|softcot-slot|>{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="1 tokens have none, '<|softcot-slot|>'".replace("|", r"\|")):
        check_rows(tokenizer, model, "m", [])
    tokenizer.chat_template = None
    tokenizer.add_tokens(["ordinary"])
    with pytest.raises(UserError, match="'ordinary'"):
        check_rows(tokenizer, model, "m", [])
