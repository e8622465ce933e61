"""A causal language model of the hub's format, with the few things that thoughts need.

Models are run through their inner transformer with ``inputs_embeds``, explicit positions and a cache; the head is applied only
where logits are needed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cl_softcot.errors import UserError
from cl_softcot.machine import processes
from cl_softcot.models.adapter import adapter_folder, merged_with, tokenizer_place
from cl_softcot.models.agreement import check_agreement, kind_named
from cl_softcot.models.head import packed_logits
from cl_softcot.models.lean import make_lean
from cl_softcot.models.loading import DTYPES, check_choices, device_of, located, note, read_model, read_tokenizer
from cl_softcot.models.own_weights import OwnWeights
from cl_softcot.models.recompute import recomputed
from cl_softcot.models.text import TextFormat, read_marker
from cl_softcot.models.token_ids import check_rows, end_ids_of

# Special tokens with a row in the embedding table, in the order in which they are added to a tokenizer without them: those of
# continuous thoughts first, as Coconut adds them, so that they can be put into the softmax without the others (see
# ``write_markers``). A way of thinking may name any others (see ``name_tokens``): they need no row, so no entry here.
_BUILTIN_TOKENS = {"latent-start": "<bol>", "latent-end": "<eol>", "latent": "<lat>", "slot": "<slot>", "pause": "<pause>"}
# Architectures whose attention is plain causal in every layer and takes a ready-made 4D mask.
_READY_MASK = frozenset({"llama", "gpt2", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "phi", "phi3"})
_NO_LIMIT = 1 << 30


class LanguageModel:
    """A loaded model, its tokenizer and its text format.

    Attributes:
        model: the Hugging Face model, in eval mode; nothing requires a gradient until a strategy says so.
        special: ids of the special tokens, by name; see ``name_tokens``.
        vocab_size: V, the number of tokens that can be written. Tokens that were added for thoughts are never written, so
            adding them leaves the model's distribution as it was.
        eos_id: the token that ends an answer, and that is trained to; ``text.end_ids`` are all that answers may stop at.
        gradient_checkpointing: inner activations of layers are computed again in the backward pass.
        quantized: the weights are stored in 8 or 4 bits, and cannot be trained.
        compute_dtype: what matrix products run in. Weights that a strategy trains are kept in fp32 whatever this is.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        marker: dict[str, Any] | None,
        dtype: torch.dtype,
        *,
        chat: str = "auto",
        chat_template_args: Mapping[str, Any] | None = None,
    ):
        if model.get_output_embeddings() is None:
            raise UserError(f"{name} has no head that writes text, so it is not a causal language model")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.marker = marker
        self.compute_dtype = dtype
        self.config = model.config.get_text_config(decoder=True)
        self.width: int = model.get_input_embeddings().weight.shape[1]
        self.max_length: int = getattr(self.config, "max_position_embeddings", None) or _NO_LIMIT
        end_ids = end_ids_of(tokenizer, model, name)
        check_rows(tokenizer, model, name, _BUILTIN_TOKENS.values())
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0]
        self.special, first_added = _special_tokens(model, tokenizer)
        rows = model.get_output_embeddings().weight.shape[0]
        self.vocab_size: int = min(rows, first_added) if first_added is not None else rows
        self.text = TextFormat(
            tokenizer,
            self.special,
            end_ids[0],
            max_length=self.max_length,
            model_name=name,
            marker=marker,
            chat=chat,
            chat_template_args=chat_template_args,
            more_ends=end_ids[1:],
        )
        self.eos_id: int = self.text.eos_id
        self.gradient_checkpointing = False
        self.quantized = False
        sliding = getattr(self.config, "sliding_window", None) and getattr(self.config, "use_sliding_window", True)
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        eager = self.config._attn_implementation in ("eager", "sdpa")
        self.ready_mask: bool = self.config.model_type in _READY_MASK and not sliding and kinds == {"full_attention"} and eager
        self.own = OwnWeights(self.model)

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
        """True if no parameter of the model wants a gradient, and nothing was brought that might stand in a gradient's way."""
        return not any(p.requires_grad for p in self.model.parameters()) and self.own.is_alone()

    @cached_property
    def core_scale(self) -> float:
        """What the core multiplies ``inputs_embeds`` with: transformers 5.0 scales Gemma's there, newer ones in the embedding."""
        scales = self.config.model_type in ("gemma", "gemma2") and not hasattr(self.model.get_input_embeddings(), "embed_scale")
        return self.width**0.5 if scales else 1.0

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids of any shape -> embeddings [..., D], at the scale at which the first layer reads them."""
        ids = ids.to(self.device)
        if len(self.special) > len(_BUILTIN_TOKENS):  # those that were named later have no row
            ids = ids.where(ids < self._rows, self.special["slot"])
        embeddings = self.model.get_input_embeddings()(ids)
        return embeddings if self.core_scale == 1.0 else embeddings * self.core_scale

    def name_tokens(self, names: Iterable[str]) -> None:
        """Special tokens of these names from now on, where there are none.

        They mark places in a prompt and are found by their ids, which lie behind every vocabulary: they can never be written, and
        the weights stay as they are. Where nothing is put in such a place, it is read like a slot.
        """
        new = [name for name in names if name not in self.special]
        if new:
            behind = max(len(self.tokenizer), self._rows, *self.special.values(), *self.text.special.values()) + 1
            self.special = self.special | {name: behind + i for i, name in enumerate(new)}
            self.text = self.text.with_tokens(self.special)

    @property
    def _rows(self) -> int:
        """Of the embedding table."""
        return self.model.get_input_embeddings().weight.shape[0]

    def run_core(self, inputs_BTD: Tensor, **arguments: Any) -> Tensor:
        """The core on inputs at the scale of ``embed``; hidden states after the final norm, [B, T, D], on the inputs' device."""
        inputs_BTD = inputs_BTD if self.core_scale == 1.0 else inputs_BTD / self.core_scale
        again = recomputed(self.layers) if self.gradient_checkpointing else contextlib.nullcontext()
        with self.autocast(), again:
            return self.core(inputs_embeds=inputs_BTD, **arguments).last_hidden_state.to(inputs_BTD.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm [..., D] -> logits [..., V]."""
        logits = packed_logits(self, hidden)
        if logits is not None:
            return logits
        head = self.model.get_output_embeddings()
        with self.autocast():
            logits = head(hidden.to(head.weight.device))
        logits = logits[..., : self.vocab_size]
        # What some architectures do behind their head (Granite, Cohere, Gemma).
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits.to(self.device)

    def write_markers(self) -> None:
        """Give latent-start, latent-end and latent their place in the softmax, as the original Coconut has it: from now on
        they take a share of the probability, a tied head sends gradients to their rows, and they can be written.
        """
        self.vocab_size = max(self.vocab_size, 1 + max(self.special[n] for n in ("latent-start", "latent-end", "latent")))

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision where the model computes in half precision; nothing in fp32 (and fp64)."""
        if self.compute_dtype in (torch.float32, torch.float64):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def embedding_std(self) -> float:
        """The scale of the embeddings as the first layer reads them; soft thoughts start out at it."""
        rows_VD = self.model.get_input_embeddings().weight[: self.vocab_size].detach()
        some = torch.arange(min(8, len(rows_VD)), device=rows_VD.device)
        scale = self.embed(some).float().norm() / rows_VD[some].float().norm()
        return (rows_VD.float().std() * scale).item()

    # ---------------------------------------------------------------------------------------------- identity
    @cached_property
    def fingerprint(self) -> str:
        """``weights_sha256`` as it was when first asked for: read it before training."""
        return self.weights_sha256()

    def weights_sha256(self) -> str:
        """Hash of the model's own weights as they are now, under their own names, tied ones counted once."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.own_weights().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(processes.whole(weight.detach()).contiguous().cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def own_weights(self) -> dict[str, Tensor]:
        """The weights that the model was loaded with, by their names then, wherever they are now."""
        return self.own.split(self.model)[0]

    def brought(self) -> dict[str, Tensor]:
        """Weights in the model that are not its own: of adapters and of whatever else was put into it."""
        return self.own.split(self.model)[1]

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """In this context nothing that was brought to the model takes part, whatever it is."""
        return self.own.alone()

    def copy(self, *, share_weights: bool = False) -> LanguageModel:
        """A model of its own, sharing the tokenizer and the text format.

        Args:
            share_weights: modules are copied (adapters may be put into them), the weights are not: for methods that leave them
                as they are.
        """
        twin = self._shell()
        shared = {id(p): p for p in self.model.parameters()} if share_weights else {}
        twin.model, twin.own = copy.deepcopy((self.model, self.own), shared)
        return twin

    def _shell(self) -> LanguageModel:
        twin = copy.copy(self)
        for name in ("layers", "fingerprint", "core_scale"):
            twin.__dict__.pop(name, None)
        return twin

    def randomised(self, seed: int) -> LanguageModel:
        """The same architecture with freshly drawn weights: the control for what an assistant's knowledge adds.

        Drawn in fp32 on the CPU, so that they are the same on every device.
        """
        twin = self._shell()
        config = copy.deepcopy(self.model.config)
        config.__dict__.pop("quantization_config", None)  # these weights are whole
        twin.quantized = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.model)(config)
        make_lean(fresh)
        fresh.resize_token_embeddings(self.model.get_input_embeddings().weight.shape[0], mean_resizing=False)
        weight = self.model.get_input_embeddings().weight
        twin.model = fresh.to(weight.device, weight.dtype).eval().requires_grad_(False)
        twin.own = OwnWeights(twin.model)
        twin.name = f"{self.name} (random weights, seed {seed})"
        return twin


# ------------------------------------------------------------------------------------------------------- loading


def load_language_model(
    spec: str,
    dtype: str = "float32",
    attention: str | None = None,
    trust_remote_code: bool = False,
    *,
    revision: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
    gradient_checkpointing: bool = False,
    chat: str = "auto",
    chat_template_args: Mapping[str, Any] | None = None,
    init: str = "pretrained",
    init_seed: int = 0,
    adapter: str | None = None,
    gguf_file: str | None = None,
) -> LanguageModel:
    """Load ``builtin:NAME``, a local folder, a GGUF file or a hub id, and see that it computes the library's numbers.

    Args:
        dtype: float32, bfloat16 or float16.
        attention: eager, sdpa, flash_attention_2, or None for the faster of the first two (eager for the embedded models).
        revision: branch, tag or commit of a hub id.
        device: None: the GPU of this process (``LOCAL_RANK``) if there is one, else the CPU.
        device_map: auto, balanced, sequential, or a map of modules to devices, in place of one device.
        quantization: 8bit or 4bit (bitsandbytes), for weights that are not trained.
        gradient_checkpointing: compute a layer's inner activations again in the backward pass instead of keeping them.
        chat: auto: with the chat template, if the tokenizer has one; never: plain text.
        chat_template_args: variables for the template, such as ``{"enable_thinking": False}``.
        init: pretrained, or random: architecture and tokenizer of ``spec`` with weights drawn from ``init_seed`` (on another
            kind of device the same seed draws other numbers).
        adapter: folder or hub id of a peft adapter, which is merged into the weights: they are the model's own then.
        gguf_file: the file of ``spec`` that holds the model; not needed where it is the only one.

    Raises:
        UserError: the model is not there, or is not a causal language model, or cannot be had in this form, or is of a kind that
            is not computed rightly here.
    """
    check_choices(dtype, attention, quantization, init)
    if device_map is not None and device is not None:
        raise UserError("device and device_map exclude each other", fix="give one of them")
    if init == "random" and (quantization or device_map or adapter):
        raise UserError("init: random draws whole weights on one device", fix="leave quantization, device_map and adapter out")
    if adapter and quantization:
        raise UserError("an adapter is merged into whole weights, not into quantized ones", fix="leave one of the two out")
    folder, gguf_file = located(spec, gguf_file)
    if gguf_file and quantization:
        raise UserError(
            "the weights of a GGUF file are read as whole numbers, and are not quantized anew", fix="leave quantization out"
        )
    if folder is not None and revision is not None:
        raise UserError(f"{spec!r} is a local folder, which has no revisions", fix="leave revision out, or give a hub id")
    marker = read_marker(folder) if folder is not None else None
    source = str(folder) if folder is not None else spec
    where = None if device_map is not None else device_of(device)
    added = adapter_folder(adapter) if adapter else None
    tokenizer = read_tokenizer(spec, tokenizer_place(added) or source, revision, trust_remote_code, gguf_file)
    model = read_model(
        spec,
        source,
        dtype=DTYPES[dtype],
        revision=revision,
        # Measured on CPU: level in fp32 at these lengths; under bf16 autocast sdpa takes twice as long.
        attention=attention or ("eager" if marker is not None else None),
        trust_remote_code=trust_remote_code,
        device=where,
        device_map=device_map,
        quantization=quantization,
        init_seed=init_seed if init == "random" else None,
        gguf_file=gguf_file,
    )
    kind = model.config.get_text_config(decoder=True).model_type
    name = spec if adapter is None else f"{spec} with {adapter}"
    with kind_named(name, kind):
        if added is not None:
            model = merged_with(model, added, adapter=str(adapter), base=spec)
        make_lean(model)
        loaded = LanguageModel(model, tokenizer, name, marker, DTYPES[dtype], chat=chat, chat_template_args=chat_template_args)
    loaded.gradient_checkpointing = gradient_checkpointing
    loaded.quantized = quantization is not None
    if loaded.quantized or getattr(model, "hf_quantizer", None) is not None:
        note(f"the weights of {spec} are quantized: its logits are not compared with the library's own")
    else:
        check_agreement(loaded)
    return loaded


def _special_tokens(model: Any, tokenizer: Any) -> tuple[dict[str, int], int | None]:
    """Ids of the tokens that thoughts need, and the first id that had to be added (None if the model brings them).

    New embedding rows start as copies of the row of ``<<``, as Coconut does (arXiv 2412.06769, its code; GPT-2's id 16791), or of
    its first piece where ``<<`` is several tokens.
    """
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in _BUILTIN_TOKENS.values()):
        return {name: vocabulary[token] for name, token in _BUILTIN_TOKENS.items()}, None
    tokens = {name: f"<|softcot-{name}|>" for name in _BUILTIN_TOKENS}
    pieces = tokenizer("<<", add_special_tokens=False)["input_ids"]
    pattern = next((i for i in pieces if "<" in tokenizer.decode([i])), pieces[0])  # some put a piece of white space in front
    tokenizer.add_tokens(list(tokens.values()), special_tokens=True)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    if max(ids.values()) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(ids.values()) + 1, mean_resizing=False)
    rows = list(ids.values())
    with torch.no_grad():
        for weight in {id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}.values():
            weight[rows] = weight[pattern].clone()
    return ids, min(rows)
