"""A causal language model of the hub's format, with the few things that thoughts need.

Models are run through their inner transformer with ``inputs_embeds``, explicit positions and a cache; the head is applied only
where logits are needed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cl_softcot.errors import UserError
from cl_softcot.models.text import TextFormat, read_marker

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BUILTIN_TOKENS = {"slot": "<slot>", "latent-start": "<bol>", "latent": "<lat>", "latent-end": "<eol>", "pause": "<pause>"}
# Architectures whose attention is plain causal in every layer and takes a ready-made 4D mask.
_READY_MASK = frozenset({"llama", "gpt2", "qwen2", "qwen3", "mistral", "olmo2", "smollm3"})
_NO_LIMIT = 1 << 30


class LanguageModel:
    """A loaded model, its tokenizer and its text format.

    Attributes:
        model: the Hugging Face model, in eval mode; nothing requires a gradient until a strategy says so.
        special: ids of slot, latent-start, latent, latent-end, pause.
        vocab_size: V, the number of tokens that can be written. Tokens that were added for thoughts are never written, so
            adding them leaves the model's distribution as it was.
        compute_dtype: what matrix products run in. Weights that a strategy trains are kept in fp32 whatever this is.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, marker: dict[str, Any] | None, dtype: torch.dtype):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.marker = marker
        self.compute_dtype = dtype
        self.config = model.config.get_text_config(decoder=True)
        self.width: int = model.get_input_embeddings().weight.shape[1]
        self.max_length: int = getattr(self.config, "max_position_embeddings", None) or _NO_LIMIT
        self.eos_id = _eos_id(tokenizer, model, name)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.special, first_added = _special_tokens(model, tokenizer)
        rows = model.get_output_embeddings().weight.shape[0]
        self.vocab_size: int = min(rows, first_added) if first_added is not None else rows
        self.text = TextFormat(tokenizer, self.special, self.eos_id, max_length=self.max_length, model_name=name, marker=marker)
        sliding = getattr(self.config, "sliding_window", None) and getattr(self.config, "use_sliding_window", True)
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        eager = self.config._attn_implementation in ("eager", "sdpa")
        self.ready_mask: bool = self.config.model_type in _READY_MASK and not sliding and kinds == {"full_attention"} and eager

    # ------------------------------------------------------------------------------------------------ parts
    @property
    def core(self) -> nn.Module:
        """The transformer without its head; its output is the hidden state after the final norm."""
        return self.model.base_model

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        count = self.config.num_hidden_layers
        for module in self.model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise UserError(f"the decoder layers of {self.name} were not found")

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def frozen(self) -> bool:
        """True if no parameter of the model wants a gradient."""
        return not any(p.requires_grad for p in self.model.parameters())

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids of any shape -> embeddings [..., D]."""
        return self.model.get_input_embeddings()(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm [..., D] -> logits [..., V]."""
        with self.autocast():
            logits = self.model.get_output_embeddings()(hidden)
        logits = logits[..., : self.vocab_size]
        # What some architectures do behind their head (Granite, Cohere, Gemma).
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision where the model computes in half precision; nothing in fp32."""
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def embedding_std(self) -> float:
        """The scale of the embedding rows; soft thoughts start out at it."""
        return self.model.get_input_embeddings().weight[: self.vocab_size].detach().float().std().item()

    # ---------------------------------------------------------------------------------------------- identity
    @cached_property
    def fingerprint(self) -> str:
        """``weights_sha256`` as it was when first asked for: read it before training."""
        return self.weights_sha256()

    def weights_sha256(self) -> str:
        """Hash of the weights as they are now, adapters left out and tied weights counted once."""
        digest = hashlib.sha256()
        for name, weight in sorted(_bare_weights(self.model), key=lambda item: item[0]):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def copy(self) -> LanguageModel:
        """An independent copy of the weights, sharing the tokenizer and the text format."""
        twin = copy.copy(self)
        for name in ("layers", "fingerprint"):
            twin.__dict__.pop(name, None)
        twin.model = copy.deepcopy(self.model)
        return twin

    def randomised(self, seed: int) -> LanguageModel:
        """The same architecture with freshly drawn weights: the control for what an assistant's knowledge adds."""
        twin = self.copy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.model)(self.model.config)
        fresh.resize_token_embeddings(self.model.get_input_embeddings().weight.shape[0], mean_resizing=False)
        weight = self.model.get_input_embeddings().weight
        twin.model = fresh.to(weight.device, weight.dtype).eval().requires_grad_(False)
        twin.name = f"{self.name} (random weights, seed {seed})"
        return twin


def _bare_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Named parameters under the names that they have without adapters, and without the adapters' own."""
    for name, weight in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), weight


# ------------------------------------------------------------------------------------------------------- loading


def load_language_model(
    spec: str,
    dtype: str = "float32",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load ``builtin:NAME``, a local folder or a hub id.

    Args:
        dtype: float32, bfloat16 or float16.
        attention: eager, sdpa, or None for the faster of the two (eager for the embedded models).

    Raises:
        UserError: the model is not there, or is not a causal language model.
    """
    if dtype not in _DTYPES:
        raise UserError(f"unknown dtype {dtype!r}", fix=f"known: {', '.join(_DTYPES)}")
    folder = _resolve(spec)
    marker = read_marker(folder) if folder is not None else None
    # Measured on CPU: level in fp32 at these lengths; under bf16 autocast sdpa takes twice as long.
    implementation = attention or ("eager" if marker is not None else None)
    source = str(folder) if folder is not None else spec
    kwargs = {"trust_remote_code": trust_remote_code}
    if implementation:
        kwargs["attn_implementation"] = implementation
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=_DTYPES[dtype], **kwargs)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(
            f"the model {spec!r} cannot be loaded: {str(error).strip().splitlines()[0]}",
            fix="give builtin:tiny, a folder with config.json, weights and tokenizer, or a hub id that is reachable",
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    return LanguageModel(model, tokenizer, spec, marker, _DTYPES[dtype])


def _resolve(spec: str) -> Path | None:
    """The local folder of a specification, or None for a hub id."""
    if spec.startswith("builtin:"):
        return Path(importlib.import_module("cl_softcot.tiny").resolve(spec.removeprefix("builtin:")))
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"the folder {spec!r} holds no model: config.json is missing")
        return path
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UserError(f"there is no folder {spec!r}", fix="check the path, or give a hub id such as organisation/model")
    return None


def _eos_id(tokenizer: Any, model: Any, name: str) -> int:
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    configured = model.config.eos_token_id
    configured = configured[0] if isinstance(configured, list) else configured
    if configured is None:
        raise UserError(f"{name} has no end-of-text token, so an answer would never end")
    return configured


def _special_tokens(model: Any, tokenizer: Any) -> tuple[dict[str, int], int | None]:
    """Ids of the tokens that thoughts need, and the first id that had to be added (None if the model brings them).

    New embedding rows start as copies of an existing token's row, as Coconut does.
    """
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in _BUILTIN_TOKENS.values()):
        return {name: vocabulary[token] for name, token in _BUILTIN_TOKENS.items()}, None
    tokens = {name: f"<|softcot-{name}|>" for name in _BUILTIN_TOKENS}
    pattern = (tokenizer("\n", add_special_tokens=False)["input_ids"] or [0])[-1]
    tokenizer.add_tokens(list(tokens.values()), special_tokens=True)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    if max(ids.values()) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    rows = list(ids.values())
    with torch.no_grad():
        for weight in {id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}.values():
            weight[rows] = weight[pattern].clone()
    return ids, min(rows)
