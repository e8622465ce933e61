"""A model with an adapter merged into it, and a model in a GGUF file: the same numbers as the library's, or one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_fakes import ensure_torchvision
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cl_softcot.config.settings import ModelConfig
from cl_softcot.errors import UserError
from cl_softcot.models.language_model import load_language_model
from cl_softcot.models.scratch import make_model_folder
from cl_softcot.models.shapes import architecture

ensure_torchvision()

from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model  # noqa: E402

TEXTS = ["a b c d e one is two ### three"] * 3
MAPS = ["q_proj", "v_proj", "down_proj"]
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def folder(kind="base", **sizes):
        if kind not in made:
            path = tmp_path_factory.mktemp("bases") / kind
            made[kind] = make_model_folder(path, "llama", texts=TEXTS, **{"width": 32, "initializer_range": 0.3, **sizes})
        return made[kind]

    return folder


def adapter(base, folder, config, rows=None):
    """A saved adapter whose numbers are no longer those of its beginning, and peft's model."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows)
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return str(folder), wrapped.eval()


KINDS = {
    "lora": lambda: LoraConfig(r=4, target_modules=MAPS, task_type="CAUSAL_LM"),
    "dora": lambda: LoraConfig(r=4, target_modules=MAPS, use_dora=True),
    "a head of its own": lambda: LoraConfig(r=4, target_modules=MAPS, modules_to_save=["lm_head"]),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "more tokens": lambda: LoraConfig(r=4, target_modules=MAPS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_pefts_unmerged_one(kind, bases, tmp_path):
    folder, wrapped = adapter(bases(), tmp_path / "a", KINDS[kind](), rows=520 if kind == "more tokens" else None)
    state = torch.random.get_rng_state()
    merged, plain = load_language_model(str(bases()), adapter=folder), load_language_model(str(bases()))
    assert torch.equal(state, torch.random.get_rng_state())
    ids_BT = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = wrapped(input_ids=ids_BT).logits[..., :275]
        found, without = (b.model(input_ids=ids_BT).logits[..., :275] for b in (merged, plain))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 0.1
    assert merged.fingerprint != plain.fingerprint and not merged.brought()
    assert type(merged.model) is type(plain.model) and folder in merged.name
    assert load_language_model(str(bases()), "bfloat16", adapter=folder).model.dtype == torch.bfloat16


def spoil(folder, what):
    settings, weights = folder / SETTINGS, folder / WEIGHTS
    tensors = load_file(weights)
    if what in ("nan", "a tensor lost", "a classifier"):
        first = min(tensors)
        if what == "nan":
            tensors[first][0, 0] = float("nan")
        elif what == "a tensor lost":
            del tensors[first]
        else:
            tensors["base_model.model.score.weight"] = torch.ones(2, 2)
        save_file(tensors, weights)
    elif what == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif what == "pickled":
        torch.save(tensors, folder / "adapter_model.bin")
        weights.unlink()
    elif what == "no weights":
        weights.unlink()
    elif what == "no settings":
        settings.unlink()
    else:
        settings.write_text({"empty": "{}", "not JSON": "{nope", "unknown kind": '{"peft_type": "NEWER"}'}[what])


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("nan", "damaged: 1 tensors hold what is no number"),
        ("a tensor lost", "1 tensors are missing in its file"),
        ("a classifier", "1 tensors have no place there, base_model.model.score.weight"),
        ("truncated", "weights of the adapter .* are damaged"),
        ("pickled", "pickled"),
        ("no weights", f"{WEIGHTS} is missing"),
        ("no settings", f"{SETTINGS} is missing"),
        ("empty", "peft_type is missing"),
        ("not JSON", "cannot be read"),
        ("unknown kind", "knows no kind 'NEWER'"),
    ],
)
def test_a_damaged_adapter_is_told(what, told, bases, tmp_path):
    folder, _ = adapter(bases(), tmp_path / "a", KINDS["lora"]())
    spoil(Path(folder), what)
    with pytest.raises(UserError, match=told) as error:
        load_language_model(str(bases()), adapter=folder)
    assert error.value.fix


def test_an_adapter_for_another_base_is_told(bases, tmp_path, capsys):
    folder, _ = adapter(bases(), tmp_path / "a", KINDS["lora"]())
    for kind, sizes in (("wide", {"width": 64}), ("deep", {"layers": 3}), ("shallow", {"layers": 1})):
        with pytest.raises(UserError, match=f"does not fit the model .*{kind}"):
            load_language_model(str(bases(kind, **sizes)), adapter=folder)
        assert "says that it was made for" in capsys.readouterr().err
    tied = bases("tied", tie_embeddings=True)
    for config in (
        PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        LoraConfig(r=4, target_modules=["embed_tokens"]),
    ):
        unmergeable, _ = adapter(tied, tmp_path / type(config).__name__, config)
        with pytest.raises(UserError, match=r"of a kind \(\w+\) that cannot be merged"):
            load_language_model(str(tied), adapter=unmergeable)


def test_an_adapter_given_as_a_model_is_called_what_it_is(bases, tmp_path):
    folder, _ = adapter(bases(), tmp_path / "a", KINDS["lora"]())
    for files in ((), ("config.json", "tokenizer.json")):
        for name in files:
            shutil.copy(bases() / name, folder)
        with pytest.raises(UserError, match="holds an adapter of peft, which is no model") as error:
            load_language_model(folder)
        assert f"{{path: BASE, adapter: {folder}}}" in error.value.fix
    shutil.copy(bases() / "model.safetensors", folder)  # the library would put the two together without a word
    with pytest.raises(UserError, match="a model and an adapter"):
        load_language_model(folder)


def test_settings_of_adapters_and_files_that_exclude_others_are_told():
    assert ModelConfig(path="m", adapter="a", gguf_file="x.gguf").adapter == "a"
    for wrong, told in (
        ({"adapter": "a", "quantization": "4bit"}, "merged into whole"),
        ({"adapter": "a", "init": "random"}, "merged into whole"),
        ({"gguf_file": "x.gguf", "quantization": "8bit"}, "GGUF"),
        ({"path": "m/X.gguf", "quantization": "8bit"}, "GGUF"),
    ):
        with pytest.raises(ValueError, match=told):
            ModelConfig(**{"path": "m", **wrong})


# ---------------------------------------------------------------------------------------------------------------- GGUF


@pytest.fixture(scope="module")
def gguf_folder(bases, tmp_path_factory):
    pytest.importorskip("gguf", reason="needs gguf: pip install 'cl-softcot[gguf]'")
    from gguf_fakes import write_gguf

    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(bases(), folder / "X.gguf")
    return folder


def test_a_gguf_file_is_the_model_that_it_was_made_of(gguf_folder, bases, tmp_path):
    """Found as a file, by its folder, by its name; saved and read again as safetensors."""
    plain, ids_BT = load_language_model(str(bases())), torch.arange(5, 25)[None]
    again = tmp_path / "saved"
    for spec, name in ((gguf_folder / "X.gguf", None), (gguf_folder, None), (gguf_folder, "X.gguf")):
        found = load_language_model(str(spec), gguf_file=name)
        with torch.no_grad():
            logits = [b.model(input_ids=ids_BT).logits[..., :275] for b in (found, plain)]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
        assert found.text.prompt_ids("a b ?") == plain.text.prompt_ids("a b ?") and found.eos_id == plain.eos_id
        assert not found.quantized and architecture(str(spec), gguf_file=name).hidden_size == 32
    found.model.save_pretrained(again)
    found.tokenizer.save_pretrained(again)
    assert load_language_model(str(again)).fingerprint == found.fingerprint
    half = load_language_model(str(gguf_folder), "bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_blocks_of_few_bits_are_unpacked(bases, gguf_folder, tmp_path):
    from gguf_fakes import write_gguf

    found = load_language_model(str(write_gguf(bases(), tmp_path / "q.gguf", quantized=True)))
    plain = load_language_model(str(bases()))
    name = "model.layers.0.mlp.up_proj.weight"
    mine, theirs = found.own_weights()[name], plain.own_weights()[name]
    assert mine.dtype == torch.float32 and 0 < (mine - theirs).abs().max() < 0.02


def test_a_gguf_file_that_cannot_be_read_is_told(gguf_folder, tmp_path):
    whole = (gguf_folder / "X.gguf").read_bytes()
    for name, data, told in (
        ("text.gguf", b"hello" * 100, "is no GGUF file"),
        ("pointer.gguf", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("head.gguf", whole[:5000], "cannot be loaded"),
        ("tail.gguf", whole[:-20000], "cannot be loaded"),
        ("a-00001-of-00002.gguf", whole, "one of 2 parts"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=told) as error:
            load_language_model(str(tmp_path / name))
        assert error.value.fix


def test_which_gguf_file_is_told_without_reading_any(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no file"):
        load_language_model(str(tmp_path / "no.gguf"))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="holds 2 GGUF files; there are a.gguf, b.gguf") as error:
        load_language_model(str(tmp_path))
    assert "gguf_file: a.gguf" in error.value.fix
    with pytest.raises(UserError, match="there is no file 'c.gguf' .* there are a.gguf, b.gguf"):
        load_language_model(str(tmp_path), gguf_file="c.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package gguf") as error:
        load_language_model(str(tmp_path), gguf_file="b.gguf")
    assert "cl-softcot[gguf]" in error.value.fix
    assert json.loads(ModelConfig(path="m").model_dump_json())["gguf_file"] is None
