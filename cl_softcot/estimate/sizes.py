"""A model's numbers, and what of them a method trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from cl_softcot.models.own_weights import Trained
from cl_softcot.models.shapes import Unloaded, architecture, is_stack, without_memory
from cl_softcot.reasoning.base import Parts

GB = 1e9
FP32 = 4
# Bytes of a weight of the decoder layers' linear maps; nf4 has one fp32 scale in 64.
QUANTISED_BYTES = {"8bit": 1.0, "4bit": 0.5 + FP32 / 64}


@dataclass(frozen=True)
class Sizes:
    """Numbers (not bytes) in a model.

    Attributes:
        total: all weights, tied ones once.
        linear: those of the linear maps in decoder layers, which quantisation and adapters are about.
        layers: those of the decoder layers.
        active: of these, the ones that a token goes through: in a mixture it meets a few of the experts.
        stacks: those of experts that are one tensor, which adapters are about too.
        largest_layer: those of one decoder layer.
        head: of the output map [V, D] (also where it is tied to the embeddings).
    """

    total: int
    linear: int
    layers: int
    active: int
    stacks: int
    largest_layer: int
    head: int
    depth: int
    width: int
    vocabulary: int
    feed_forward: int
    heads: int
    kv_width: int  # numbers of keys and values a token and layer


@cache
def sizes_of(path: str, trust_remote_code: bool = False, gguf_file: str | None = None) -> Sizes:
    """Sizes of a model by its path or hub id. UserError where its shape is not known."""
    config = architecture(path, trust_remote_code=trust_remote_code, gguf_file=gguf_file)
    with without_memory():
        model = Unloaded(config, torch.bfloat16, None)
        layers = [sum(p.numel() for p in layer.parameters()) for layer in model.layers]
        linear = sum(p.numel() for layer in model.layers for p in layer.parameters() if p.ndim == 2)
        stacks = [p for layer in model.layers for m in layer.modules() for p in m.parameters(recurse=False) if is_stack(m, p)]
        met = _experts_met(config)
        idle = sum(p.numel() * (1 - min(met, p.shape[0]) / p.shape[0]) for p in stacks) if met else 0
        heads = getattr(config, "num_attention_heads", None) or 1
        head_dim = getattr(config, "head_dim", None) or model.width // heads
        return Sizes(
            total=sum(p.numel() for p in model.model.parameters()),
            linear=linear,
            layers=sum(layers),
            active=round(sum(layers) - idle),
            stacks=sum(p.numel() for p in stacks),
            largest_layer=max(layers),
            head=model.vocab_size * model.width,
            depth=len(layers),
            width=model.width,
            vocabulary=model.vocab_size,
            feed_forward=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * model.width,
            heads=heads,
            kv_width=2 * (getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        )


def _experts_met(config: Any) -> int:
    """By a token in a layer, as configurations call it; 0 where they do not say."""
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "experts_per_token")
    said = next((value for name in names if (value := getattr(config, name, None))), 0)
    return max(said) if isinstance(said, list | tuple) else int(said)


def what_is_left_out(method: Any, model_config: Any) -> str | None:
    """What of the layers a method's strategy does not reach, asked of it; None: nothing."""
    if not method.strategy.cls.trains:
        return None

    def ask() -> str | None:
        with without_memory():
            strategy, parts = prepared(method, model_config)
            return strategy.leaves_out(parts)

    found: str | None = once(("leaves out", method.strategy, model_config.path), ask)
    return found


def prepared(method: Any, model_config: Any, layers: int | None = None) -> tuple[Any, Parts]:
    """The method's strategy, prepared on a backbone without numbers and a reasoning that is not built. Use inside of
    ``without_memory``."""
    config = architecture(model_config.path, trust_remote_code=model_config.trust_remote_code, gguf_file=model_config.gguf_file)
    attention = model_config.attention or ("eager" if model_config.path.startswith("builtin:") else None)
    backbone = Unloaded(config, getattr(torch, model_config.dtype), attention, layers, model_config.path)
    backbone.quantized = bool(model_config.quantization)
    strategy = method.strategy.cls(method.strategy.settings)
    parts = Parts(backbone, None, method.reasoning.cls(method.reasoning.settings))
    strategy.prepare(parts, 0)
    backbone.model.train(strategy.trains)
    for module in backbone.model.modules():
        if isinstance(
            getattr(module, "attn_dropout", None), torch.nn.Dropout
        ):  # sdpa's kernels on a GPU keep no attention weights, with dropout either
            module.attn_dropout.p = 0.0
    return strategy, parts


def trained_numbers(method: Any, model_config: Any, assistant_width: int | None) -> Trained:
    """What a method trains, asked of its strategy and its reasoning."""
    if not method.strategy.cls.trains:
        return Trained(0, 0, 0)
    width = sizes_of(model_config.path, model_config.trust_remote_code, model_config.gguf_file).width
    owned = method.reasoning.cls.owned_numbers(method.reasoning.settings, width, assistant_width)
    inside: Trained = once(("trained", method.strategy, model_config.path), lambda: _without_the_reasoning(method, model_config))
    return replace(inside, owned=owned)


def _without_the_reasoning(method: Any, model_config: Any) -> Trained:
    with without_memory():
        strategy, parts = prepared(method, model_config)
        return strategy.trained(parts)


_COUNTED: dict[str, Any] = {}


def once(key: Any, compute: Callable[[], Any]) -> Any:
    """What was counted before is not counted again: advice asks for the same model many times."""
    key = repr(key)  # settings may hold lists
    if key not in _COUNTED:
        _COUNTED[key] = compute()
    return _COUNTED[key]


def assistant_of(config: Any, method: Any) -> Any | None:
    """The assistant, where the method asks for one; `nearest` routing asks too."""
    needs = method.reasoning.cls.needs_assistant(method.reasoning.settings)
    routes = method.per_task is not None and method.per_task.routing == "nearest"
    return config.assistant if config.assistant is not None and (needs or routes) else None


def weight_bytes(sizes: Sizes, model: Any) -> float:
    """Bytes of frozen weights, in their type or quantised."""
    size = getattr(torch, model.dtype).itemsize
    quantised = QUANTISED_BYTES.get(model.quantization or "")
    return sizes.total * size if quantised is None else sizes.linear * quantised + (sizes.total - sizes.linear) * size


def micro_batch(train: Any, processes: int = 1) -> int:
    """Examples that one process computes at a time."""
    return min(train.micro_batch_size or train.global_batch_size, math.ceil(train.global_batch_size / processes))
