"""GPU time of a method, before anything is loaded: floating-point operations and bytes, at stated rates.

Operations a column (a token or a thought), P being the weights of the decoder layers:

    forward 2 P  +  gradients of inputs 2 P (not before a frozen backbone's first slot)  +  gradients of weights 2 P_trained

so 6 P with all weights, 4 P with adapters and less than 4 P in front of a frozen backbone; the head counts at labels only.
A call of the backbone takes at least the time to read its weights, and the time to start its kernels: what Coconut's calls one
after the other, and every written token, are bound by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cl_softcot.estimate.passes import Passes, TextLengths, all_passes_of, passes_of
from cl_softcot.estimate.sizes import FP32, Sizes, assistant_of, micro_batch, sizes_of, trained_numbers, weight_bytes
from cl_softcot.models.own_weights import Trained
from cl_softcot.reasoning.cot import Cot


@dataclass(frozen=True)
class Gpu:
    """What a GPU does, and how much of that is reached. Rates are the maker's data sheet (dense, SXM)."""

    name: str = "H100"
    half_flops: float = 989e12
    fp32_flops: float = 67e12  # torch does not use TF32 unless told to
    bytes_per_second: float = 3.35e12
    utilisation: float = 0.4
    bandwidth_share: float = 0.6
    layer_seconds: float = 0.5e-3  # Python and kernel starts of one decoder layer, forward, without compilation

    def said(self) -> str:
        """The assumptions in one line."""
        return (
            f"{self.name}: {self.utilisation:.0%} of {self.half_flops / 1e12:.0f} TFLOP/s (fp32: {self.fp32_flops / 1e12:.0f}), "
            f"{self.bandwidth_share:.0%} of {self.bytes_per_second / 1e12:g} TB/s, "
            f"{self.layer_seconds * 1e3:g} ms a layer and call"
        )


H100 = Gpu()


@dataclass(frozen=True)
class Hours:
    """GPU hours of one run."""

    training: float
    answering: float

    @property
    def total(self) -> float:
        return self.training + self.answering


def hours_of(config: Any, method: Any, texts: Mapping[str, TextLengths], gpu: Gpu = H100) -> Hours:
    """One run of a method over all tasks.

    Args:
        texts: lengths by the task's name; of retention's too where it has an entry.

    Raises:
        UserError: the shape of a model is not known.
    """
    sizes = sizes_of(config.backbone.path, config.backbone.trust_remote_code, config.backbone.gguf_file)
    helper = assistant_of(config, method)
    width = sizes_of(helper.path, helper.trust_remote_code, helper.gguf_file).width if helper else None
    trained = trained_numbers(method, config.backbone, width)
    names = [task.name for task in config.tasks]
    training = sum(_turn_seconds(config, method, sizes, trained, texts[name], gpu) for name in names) if trained.total else 0.0
    answering = _rows_seconds(config, method, sizes, texts, gpu)
    thinking = sum(_assistant_seconds(config, method, texts[name], gpu) for name in names)
    return Hours((training + (thinking if trained.total else 0.0)) / 3600, answering / 3600)


def base_hours(config: Any, texts: Mapping[str, TextLengths], gpu: Gpu = H100) -> float:
    """The base's own answers to everything: once an experiment, shared by all runs."""
    sizes = sizes_of(config.backbone.path, config.backbone.trust_remote_code, config.backbone.gguf_file)
    return sum(_all_answers_seconds(config, None, sizes, texts, gpu, tasks=1, families=1, drift=1)) / 3600


# ------------------------------------------------------------------------------------------------------ training


def _turn_seconds(config: Any, method: Any, sizes: Sizes, trained: Trained, text: TextLengths, gpu: Gpu) -> float:
    train = config.train_for(method)
    plans = all_passes_of(method, text, train.steps, frozen_backbone=not (trained.backbone or trained.adapters))
    batches = math.ceil(train.global_batch_size / micro_batch(train))
    updates = train.steps * 8 * FP32 * trained.total / (gpu.bytes_per_second * gpu.bandwidth_share)
    return updates + sum(n * batches * step_seconds(config, method, sizes, trained, plan, gpu) for plan, n in plans)


def step_seconds(config: Any, method: Any, sizes: Sizes, trained: Trained, plan: Passes, gpu: Gpu) -> float:
    """Forward and backward pass of one micro-batch."""
    B, again = micro_batch(config.train_for(method)), int(config.backbone.gradient_checkpointing)
    operations = B * step_operations(sizes, trained, plan, again)
    calls = len(plan.pieces) * (3 + again) + bool(plan.frozen)
    return _at_least(operations, calls, weight_bytes(sizes, config.backbone), sizes.depth, config.backbone.dtype, gpu)


def step_operations(sizes: Sizes, trained: Trained, plan: Passes, again: int = 0) -> float:
    """Floating-point operations of one example's forward and backward pass; ``again``: forwards that are repeated."""
    with_gradient = sum(plan.pieces)
    attention = 2 * plan.columns * sizes.width * sizes.depth  # QK and AV of a causal map: 2 x 2 x columns / 2 x D
    weights = sizes.active + trained.adapters + attention / 2
    forward = 2 * weights * plan.columns + 2 * sizes.head * plan.labels
    inputs = 2 * weights * with_gradient + 2 * sizes.head * plan.labels
    own = 2 * (min(trained.backbone, sizes.layers) * sizes.active / sizes.layers + trained.adapters) * plan.columns
    own += 2 * sizes.head * plan.labels if trained.backbone > sizes.layers else 0
    return forward + inputs + own + again * 2 * weights * with_gradient


def _at_least(operations: float, calls: float, weights: float, depth: int, dtype: str, gpu: Gpu) -> float:
    """Seconds: whichever is slowest of computing, reading the weights in every call, and starting kernels."""
    flops = gpu.fp32_flops if dtype == "float32" else gpu.half_flops
    reading = calls * weights / (gpu.bytes_per_second * gpu.bandwidth_share)
    return max(operations / (flops * gpu.utilisation), reading, calls * depth * gpu.layer_seconds)


# ----------------------------------------------------------------------------------------------------- answering


def _rows_seconds(config: Any, method: Any, sizes: Sizes, texts: Mapping[str, TextLengths], gpu: Gpu) -> float:
    """What a run answers that nobody answered before it: answers of equal weights are taken over."""
    if not method.strategy.cls.trains:
        assisted = method.reasoning.cls.needs_assistant(method.reasoning.settings)
        plain = method.reasoning.cls is Cot
        # Prompts of its own: everything once. Plain CoT is the base itself.
        rows: dict[str, float] = {"tasks": 0 if plain else 1, "families": 0 if plain else 1, "drift": 0 if plain else 1}
        own = sum(_all_answers_seconds(config, method, sizes, texts, gpu, **rows))
        return own + (sum(_assistant_seconds(config, method, texts[t.name], gpu) for t in config.tasks) if assisted else 0.0)
    turns = len(config.tasks)
    if method.per_task:  # only the new copy answers anew: its own task's questions; drift samples every copy so far
        rows = {"tasks": 2, "families": 0, "drift": (turns + 1) / 2}
    else:
        changes = method.strategy.learns_as.changes_backbone  # then the bare weights are asked too
        rows = {"tasks": turns + 1, "families": turns * (1 + changes), "drift": turns * (1 + changes)}
    return sum(_all_answers_seconds(config, method, sizes, texts, gpu, **rows))


def _all_answers_seconds(
    config: Any,
    method: Any,
    sizes: Sizes,
    texts: Mapping[str, TextLengths],
    gpu: Gpu,
    *,
    tasks: float,
    families: float,
    drift: float,
) -> tuple[float, float, float]:
    """Seconds for the tasks' questions, retention's, and drift's prompts, each so many times over."""
    settings = config.evaluate
    names = [task.name for task in config.tasks]
    suites = [task.name for task in settings.retention_tasks or ()] if settings.retention else []

    def seconds(name: str, n: int) -> float:
        return answers_seconds(config, method, sizes, texts[name], n, gpu)

    return (
        tasks * sum(seconds(name, settings.test) for name in names),
        families * sum(seconds(name, settings.retention) for name in suites),
        # Sampled text, then both sides read it: little beside the writing.
        drift * sum(seconds(name, settings.drift) for name in names) if settings.drift else 0.0,
    )


def answers_seconds(config: Any, method: Any, sizes: Sizes, text: TextLengths, n: int, gpu: Gpu) -> float:
    """``n`` answers in batches; a batch goes on until its longest is written, taken as twice the mean."""
    settings, backbone = config.evaluate, config.backbone
    plan = Passes(0, (text.prompt + text.steps + text.answer,), text.steps + text.answer)
    if method is not None:
        final = method.reasoning.cls(method.reasoning.settings).final_phase()
        plan = passes_of(method, text, final, frozen_backbone=False)
    written = min(settings.max_new_tokens, 2 * plan.labels)
    read = plan.columns - plan.labels
    weights, size = weight_bytes(sizes, backbone), getattr(torch, backbone.dtype).itemsize
    B = min(n, settings.batch_size)
    if not B:
        return 0.0
    cache = B * (read + written / 2) * sizes.depth * sizes.kv_width * size
    per_column = 2 * B * (sizes.active + sizes.head)
    reading = _at_least(per_column * read, len(plan.pieces), weights, sizes.depth, backbone.dtype, gpu)
    writing = written * _at_least(per_column, 1, weights + cache, sizes.depth, backbone.dtype, gpu)
    return math.ceil(n / B) * (reading + writing)


def _assistant_seconds(config: Any, method: Any, text: TextLengths, gpu: Gpu) -> float:
    """The assistant reads every question once, and where it writes hints, writes them."""
    helper = assistant_of(config, method)
    if helper is None:
        return 0.0
    sizes = sizes_of(helper.path, helper.trust_remote_code, helper.gguf_file)
    train = config.train_for(method)
    questions = config.evaluate.test + (train.examples if method.strategy.cls.trains else 0)
    flops = gpu.fp32_flops if helper.dtype == "float32" else gpu.half_flops
    seconds = questions * 2 * sizes.active * text.prompt / (flops * gpu.utilisation)
    writes = method.reasoning.cls.assistant_use(method.reasoning.settings).writes
    step = _at_least(0.0, 1, weight_bytes(sizes, helper), sizes.depth, helper.dtype, gpu)
    return seconds + math.ceil(questions / config.evaluate.batch_size) * min(writes, 2 * (text.steps + text.answer)) * step
