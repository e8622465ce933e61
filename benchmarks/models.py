"""Random models and examples of any size, without a download: texts are numbers, each of them one token."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch

from cl_softcot.machine.torchvision import ensure_torchvision

ensure_torchvision()

from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig  # noqa: E402

from cl_softcot.models.language_model import LanguageModel  # noqa: E402
from cl_softcot.models.lean import make_lean  # noqa: E402
from cl_softcot.tasks.base import Example  # noqa: E402


@dataclass(frozen=True)
class ModelSize:
    """An architecture: 'gpt2' (learned positions, tied head) or 'llama' (rotary positions, a head of its own)."""

    family: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int = 1024
    kv_heads: int | None = None
    feed_forward: int | None = None  # default: 4 D

    def config(self) -> Any:
        """The architecture as transformers describes it."""
        end = self.vocabulary - 1
        if self.family == "gpt2":
            return GPT2Config(
                vocab_size=self.vocabulary,
                bos_token_id=end,
                eos_token_id=end,
                n_embd=self.width,
                n_layer=self.layers,
                n_head=self.heads,
                n_inner=self.feed_forward,
                n_positions=self.context,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=0.1,  # wide enough that answers differ from prompt to prompt
            )
        return LlamaConfig(
            vocab_size=self.vocabulary,
            bos_token_id=end,
            eos_token_id=end,
            hidden_size=self.width,
            intermediate_size=self.feed_forward or 4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=self.context,
            initializer_range=0.1,
        )


class NumberTokenizer:
    """Token 17 is the word '17'. The last ids are those of the special tokens, of the answer's marker and of the end of text."""

    chat_template = bos_token_id = None
    all_special_tokens: list[str] = []

    def __init__(self, vocabulary: int):
        names = ["<bol>", "<eol>", "<lat>", "<slot>", "<pause>", "###", "<eos>"]
        self.words = {name: vocabulary - len(names) + i for i, name in enumerate(names)}
        self.text_tokens = vocabulary - len(names)  # ids below are text
        self.eos_token_id = self.pad_token_id = self.words["<eos>"]
        self.all_special_ids = [self.eos_token_id]
        self._names = {i: name for name, i in self.words.items()}

    def get_vocab(self) -> dict[str, int]:
        return {name: i for name, i in self.words.items() if name.startswith("<")}

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.words[w] if w in self.words else int(w) if w.isdigit() else 0 for w in text.split()]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(self._names.get(i, str(i)) for i in ids)


def random_model(
    size: ModelSize,
    *,
    seed: int = 0,
    answer_tokens: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> LanguageModel:
    """A model with random weights, drawn on the device ('meta': without any, to encode with and to count).

    Args:
        answer_tokens: about how many tokens a greedy answer has on average; None: answers hardly ever end by themselves.
    """
    options = {"attn_implementation": attention} if attention else {}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(size.config(), dtype=dtype, **options)
    tokenizer = NumberTokenizer(size.vocabulary)
    if answer_tokens and device != "meta":
        with torch.no_grad():
            row = model.get_output_embeddings().weight[tokenizer.eos_token_id]
            row.mul_(_end_scale(size.vocabulary, answer_tokens))
    make_lean(model)  # as in loading
    return LanguageModel(model, tokenizer, f"random {size.family}", None, dtype)


def plain(model: LanguageModel) -> Any:
    """A model of transformers' own classes with the same weights: a loaded one may have faster layers of ours."""
    inner = model.model
    with torch.device(model.device):
        twin = AutoModelForCausalLM.from_config(
            inner.config, dtype=next(inner.parameters()).dtype, attn_implementation=inner.config._attn_implementation
        )
    twin.load_state_dict(inner.state_dict())
    return twin.eval().requires_grad_(False)


def _end_scale(vocabulary: int, answer_tokens: int) -> float:
    """Logits of a random model are about normal: one that is this much wider is the largest of all once in so many tokens."""
    largest = math.sqrt(2 * math.log(vocabulary))
    return largest / NormalDist().inv_cdf(1 - 1 / answer_tokens)


def random_examples(
    n: int,
    vocabulary: int,
    *,
    question: tuple[int, int],
    steps: int = 4,
    step_tokens: int = 8,
    answer_tokens: int = 10,
    seed: int = 0,
) -> list[Example]:
    """Examples of given lengths in tokens.

    Args:
        question: shortest and longest; the lengths are spread evenly between them.
        step_tokens: of each step. The target has ``answer_tokens``, the marker and the end of text beside its steps.
    """
    rng, text = random.Random(seed), NumberTokenizer(vocabulary).text_tokens

    def words(count: int) -> str:
        return " ".join(str(rng.randrange(text)) for _ in range(count))

    low, high = question
    lengths = [round(low + (high - low) * i / max(1, n - 1)) for i in range(n)]
    rng.shuffle(lengths)
    return [
        Example(f"random/{i}", "random", words(length), tuple(words(step_tokens) for _ in range(steps)), words(answer_tokens))
        for i, length in enumerate(lengths)
    ]
