"""Models with random weights that are made on the spot: files, sizes, tokenizer, and the command."""

from __future__ import annotations

import json

import pytest
import torch

from cl_softcot.errors import UserError
from cl_softcot.models import scratch
from cl_softcot.models.scratch import FAMILIES, SHAPES, make_model_folder

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # isort: skip

TEXTS = ["Tom has 3 apples and buys 4 more. How many has he?\n3 + 4 = <<3+4=7>>7\n### 7\n"] * 4
ODD = "Grüße — \t 3.14%,  <<a>>\n\n  <|slot|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_by_its_path_and_computes(family, tmp_path):
    folder = make_model_folder(tmp_path / family, family, texts=TEXTS, seed=3, context=64)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(ODD, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == ODD
    text = model.config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (64, 2, 4)
    assert text.max_position_embeddings == 64 and tokenizer.model_max_length == 64
    assert model.get_input_embeddings().weight.shape == (512, 64) and len(tokenizer) < 512
    logits = model(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), 512) and torch.isfinite(logits).all() and logits.std() > 0
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (family in ("gpt2", "gemma2", "gemma3"))
    assert not list(folder.glob("*.bin"))


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path):
    weights = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(weights))
        make_model_folder(tmp_path / name, "llama", texts=TEXTS, seed=seed)
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["a"] == weights["b"] != weights["c"]
    state = torch.random.get_rng_state()
    make_model_folder(tmp_path / "a", "llama", texts=TEXTS)
    assert torch.equal(state, torch.random.get_rng_state())


def test_frequent_words_of_the_texts_are_tokens(tmp_path):
    folder = make_model_folder(tmp_path / "m", "gpt2", texts=TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer(" apples", add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer(" zebras", add_special_tokens=False)["input_ids"]) > 3


def test_a_chat_model_may_end_at_the_turn_or_the_text(tmp_path):
    folder = make_model_folder(tmp_path / "m", "llama", texts=TEXTS, chat_template="default", bos=True, pad=True)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Q"}], add_generation_prompt=True, tokenize=False)
    assert text == "<|begin_of_text|><|turn_user|>\nQ<|end_of_turn|>\n<|turn_model|>\n"
    turn, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|end_of_turn|>", "<|end_of_text|>"))
    assert tokenizer.eos_token_id == turn and model.generation_config.eos_token_id == [turn, end]
    assert tokenizer("Q")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.pad_token_id not in (None, turn, end)
    base = AutoTokenizer.from_pretrained(make_model_folder(tmp_path / "m", "llama", texts=TEXTS))
    assert base.chat_template is None and base.pad_token_id is None and base.bos_token_id is None


def test_without_weights_only_the_architecture_is_written(tmp_path):
    make_model_folder(tmp_path / "m", "llama", texts=TEXTS)
    folder = make_model_folder(tmp_path / "m", "llama", texts=TEXTS, weights=False, **_sizes("llama-8b"))
    assert not list(folder.glob("*.safetensors"))
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == 8_030_261_248


def _sizes(shape):
    return {key: value for key, value in SHAPES[shape].items() if key != "family"}


# Parameters of the published checkpoints, tied matrices once.
PUBLISHED = {
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "llama-1b": 1_235_814_400,
    "llama-3b": 3_212_749_824,
    "qwen-0.5b": 494_032_768,
    "qwen-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma2-2b": 2_614_341_888,
    "gemma3-1b": 999_885_952,
    "phi-2": 2_779_683_840,
    "phi3-mini": 3_821_079_552,
}


@pytest.mark.parametrize("shape", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(shape, tmp_path):
    folder = make_model_folder(tmp_path / "m", SHAPES[shape]["family"], texts=TEXTS, weights=False, **_sizes(shape))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    assert model.num_parameters() == PUBLISHED[shape]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"family": "lama"}, "did you mean 'llama'"),
        ({"width": 66}, "66 is not 4 heads"),
        ({"layers": 0}, "layers should be at least 1"),
        ({"kv_heads": 3}, "3 key and value heads"),
        ({"vocabulary": 100}, "too small"),
        ({"texts": []}, "no text"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"initializer_rang": 1.0}, "did you mean 'initializer_range'"),
    ],
)
def test_what_cannot_be_is_told(wrong, told, tmp_path):
    with pytest.raises(UserError, match=told):
        make_model_folder(tmp_path / "m", **{"family": "llama", "texts": TEXTS, **wrong})
    assert not (tmp_path / "m").exists()


def test_the_command_makes_a_model_of_a_shape_from_an_experiment(tmp_path, capsys):
    (tmp_path / "e.yaml").write_text(
        "backbone: builtin:tiny\ntasks: [arithmetic]\ntrain: {examples: 20}\n"
        "methods: [{name: cot, reasoning: cot, strategy: full_finetune}]\n"
    )
    folder = tmp_path / "m"
    command = [str(folder), "--shape", "gpt2-small", "--experiment", str(tmp_path / "e.yaml"), "--layers", "1", "--no-weights"]
    assert scratch.main(command) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    config = json.loads((folder / "config.json").read_text())
    assert (config["n_embd"], config["n_layer"], config["vocab_size"]) == (768, 1, 50257)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) > 270 and tokenizer.decode(tokenizer("3 plus 4")["input_ids"]) == "3 plus 4"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--text FILE"),
        (["--text", "nowhere.txt"], "nowhere.txt: not a readable text file"),
        (["--shape", "lama-8b"], "did you mean 'llama-8b'"),
        (["--shape", "llama-8b", "--family", "gpt2"], "of the family llama"),
        (["--experiment", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_the_command_tells_what_is_wrong(arguments, told, tmp_path, capsys):
    assert scratch.main([str(tmp_path / "m"), *arguments]) == 2
    message = capsys.readouterr().err
    assert told in message and "Traceback" not in message
