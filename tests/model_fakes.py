"""Small random models in the hub's format, made in a moment: word-level with a marker file, chat template, learned positions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from cl_softcot.models.language_model import LanguageModel, load_language_model  # noqa: E402
from cl_softcot.reasoning.base import Parts, Reasoning  # noqa: E402
from cl_softcot.tasks.base import Example  # noqa: E402

SPECIALS = ["<pad>", "<eos>", "<user>", "<bot>", "<slot>", "<pause>", "<bol>", "<lat>", "<eol>"]
LETTERS = [*"abcdefghijklmnop"]
WORDS = [*SPECIALS, *LETTERS, *"think aloud : only answer ; is then so ? one two three".split()]
MARKER = {
    "style": "words",
    "instructions": {"cot": "think aloud :", "direct": "only answer :"},
    "step_separator": " ; ",
    "answer_marker": "answer",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _llama(vocab_size: int, pad: int, eos: int, *, width: int, seed: int, tie: bool, max_length: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        attention_bias=True,
        rope_theta=500.0,
        tie_word_embeddings=tie,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
        initializer_range=0.3,  # wide enough for answers that differ from prompt to prompt
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


def save_words_model(folder: Path, *, width: int = 32, seed: int = 0, max_length: int = 128) -> Path:
    """A word-level Llama with every special token, tied embeddings and a cl_softcot.json."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder)
    _llama(len(WORDS), 0, 1, width=width, seed=seed, tie=True, max_length=max_length).save_pretrained(folder)
    (folder / "cl_softcot.json").write_text(json.dumps(MARKER))
    return folder


def _bpe(folder: Path, chat: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["think step by step, one is two ### answer\n" * 5], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>" if chat else "<|end|>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def save_chat_model(folder: Path, *, seed: int = 0) -> Path:
    """A byte-level BPE Llama with a chat template, an untied head, and neither marker file nor special tokens for thoughts."""
    fast = _bpe(folder, chat=True)
    _llama(len(fast), 0, fast.eos_token_id, width=32, seed=seed, tie=False, max_length=512).save_pretrained(folder)
    return folder


def save_gpt2_model(folder: Path, *, seed: int = 0) -> Path:
    """A GPT-2 with learned absolute positions, Conv1D maps and tied embeddings; plain text style."""
    fast = _bpe(folder, chat=False)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(fast),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=fast.eos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def words_model(tmp_path: Path, name: str = "words", **kwargs) -> LanguageModel:
    return load_language_model(str(save_words_model(tmp_path / name, **kwargs)))


def chat_model(tmp_path: Path, **kwargs) -> LanguageModel:
    return load_language_model(str(save_chat_model(tmp_path / "chat", **kwargs)))


def gpt2_model(tmp_path: Path, **kwargs) -> LanguageModel:
    return load_language_model(str(save_gpt2_model(tmp_path / "gpt2", **kwargs)))


def examples(n: int, seed: int = 0, task: str = "task") -> list[Example]:
    """Questions, chains and answers of different lengths, in words that every fake knows."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        question = " ".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 12))) + " ?"
        steps = tuple(f"{rng.choice(LETTERS)} is {rng.choice(LETTERS)}" for _ in range(rng.randint(1, 4)))
        found.append(Example(f"{task}/train/{i}", task, question, steps, rng.choice(LETTERS)))
    return found


def parts_of(backbone: LanguageModel, reasoning: Reasoning, assistant: LanguageModel | None = None, seed: int = 0) -> Parts:
    """Built parts, ready for a strategy."""
    parts = Parts(backbone, assistant, reasoning)
    reasoning.build(parts, seed)
    return parts
