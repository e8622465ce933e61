"""Floating-point operations by formula: what an implementation computes, and what has to be computed.

A product of [m, k] and [k, n] counts 2 m k n. With P the weights of the decoder layers' linear maps, W the width of all heads of
a layer together, L layers, and H = D V the head's weights, one call with n new columns behind m earlier ones costs, a row::

    forward    2 P n  +  4 W L (pairs of places)  +  2 H (places with logits)
    backward   the same for the gradients of the inputs, where something in front of them is trained (attention twice: its
               two products have two inputs each), and 2 P n + 2 H (places) for the gradients of the weights

Implementations compute all n (m + n) pairs of places; a causal map has n m + n (n + 1) / 2. Norms, activations and softmax are
left out: they are memory traffic, not arithmetic. Checked against torch's counter in tests/house/test_speed_references.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Gradient = Literal["none", "inputs", "weights"]  # weights: of the inputs too


@dataclass(frozen=True)
class Shape:
    """Numbers in a model that decide its costs (not bytes).

    Attributes:
        linear: weights of the linear maps of all decoder layers (P).
        head: weights of the head (H).
        depth: decoder layers (L).
        attention: width of all heads of a layer together (W).
        kv: keys and values that a token leaves in all layers.
        total: all weights, tied ones once.
    """

    linear: int
    head: int
    depth: int
    attention: int
    kv: int
    total: int


def shape_of(model: Any) -> Shape:
    """Of a Llama-like model or a GPT-2 of transformers; tensors without memory do."""
    config = model.config.get_text_config(decoder=True)
    layers = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Shape(
        linear=sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2),
        head=model.get_output_embeddings().weight.numel(),
        depth=len(layers),
        attention=config.num_attention_heads * head_dim,
        kv=2 * len(layers) * kv_heads * head_dim,
        total=sum(p.numel() for p in model.parameters()),
    )


@dataclass(frozen=True)
class Call:
    """One call of a transformer for one row.

    Attributes:
        new: columns that go in.
        before: columns in the cache.
        logits: places whose logits are made.
        gradient: what the backward pass computes.
        frozen: how many of the columns before have keys and values without a gradient.
        times: how many such calls.
    """

    new: int
    before: int = 0
    logits: int = 0
    gradient: Gradient = "none"
    frozen: int = 0
    times: int = 1


def operations(shape: Shape, calls: Iterable[Call], *, causal: bool) -> float:
    """Floating-point operations of calls.

    Args:
        causal: True: pairs of places that see each other, and gradients of keys that need one: what has to be computed.
            False: whole rectangles, as implementations compute.
    """
    return float(sum(call.times * _operations(shape, call, causal) for call in calls))


def _operations(shape: Shape, call: Call, causal: bool) -> float:
    maps = 2 * shape.linear * call.new + 2 * shape.head * call.logits
    inside = call.new * (call.new + 1) / 2 if causal else call.new**2
    pairs = call.new * call.before + inside
    attention = 4 * shape.attention * shape.depth * pairs
    if call.gradient == "none":
        return maps + attention
    without = call.new * call.frozen if causal else 0
    back = 2 * attention - 4 * shape.attention * shape.depth * without
    return (3 if call.gradient == "weights" else 2) * maps + attention + back


@dataclass(frozen=True)
class Work:
    """A part of a job that has to be done: at least ``flops`` operations, and ``moved`` bytes to and from memory."""

    what: str
    flops: float
    moved: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The floor: whichever takes longer."""
        return max(self.flops / flops_per_second, self.moved / bytes_per_second)


def training_work(
    shape: Shape, calls: Sequence[Call], *, trained: int, causal: bool = True, bytes_a_number: int = 4
) -> list[Work]:
    """One optimiser step: passes that read the weights at least twice, and AdamW's update of ``trained`` numbers."""
    passes = Work("passes", operations(shape, calls, causal=causal), 2.0 * shape.total * bytes_a_number)
    # Weight, gradient and two means are read; weight and means are written: in fp32 whatever the passes run in.
    return [passes, Work("update", 12.0 * trained, 7 * 4.0 * trained)]


def answering_work(
    shape: Shape, prompts: Sequence[int], written: Sequence[int], *, passes: int = 1, bytes_a_number: int = 4
) -> list[Work]:
    """What has to be done for prompts of so many columns (thoughts included) and so many tokens written, side by side.

    Args:
        passes: calls that the prompts take, one after the other (Coconut's thoughts).
    """
    reading = [Call(new=n, logits=1) for n in prompts]
    steps = [Call(new=1, before=n + t, logits=1) for n, m in zip(prompts, written, strict=True) for t in range(m - 1)]
    weights = (shape.linear + shape.head) * bytes_a_number
    cache = sum(call.before for call in steps) * shape.kv * bytes_a_number
    return [
        Work("reading", operations(shape, reading, causal=True), float(passes * weights)),
        Work("writing", operations(shape, steps, causal=True), float((max(written) - 1) * weights + cache)),
    ]


def padded_answering_work(
    shape: Shape, prompts: Sequence[int], written: Sequence[int], *, passes: int = 1, bytes_a_number: int = 4
) -> list[Work]:
    """The same for all rows as long as the longest, none dropped, with logits at all places of the prompts."""
    B, T, longest = len(prompts), max(prompts), max(written)
    needed = answering_work(shape, [T] * B, [longest] * B, passes=passes, bytes_a_number=bytes_a_number)
    calls = [Call(T, logits=T, times=B)], [Call(1, T + t, logits=1, times=B) for t in range(longest - 1)]
    return [Work(w.what, operations(shape, c, causal=False), w.moved) for w, c in zip(needed, calls, strict=True)]
