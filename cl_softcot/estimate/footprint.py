"""How much memory a method needs at its peak, before anything is loaded.

Nothing here is a rule of thumb where it can be counted: the strategy is asked what it trains, on a model of the real
architecture whose tensors hold nothing (``models.shapes``), and one forward of a micro-batch through that model tells what is
kept for the backward pass. What remains are factors for passing peaks; ``tests/estimate`` compares with real steps.

    peak = what stays + max(a training step, the optimiser's update, answering)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import DynamicCache

from cl_softcot.estimate.passes import Passes, TextLengths, all_passes_of
from cl_softcot.estimate.sizes import (
    FP32,
    GB,
    Sizes,
    assistant_of,
    micro_batch,
    once,
    prepared,
    sizes_of,
    trained_numbers,
    weight_bytes,
)
from cl_softcot.models.head import LOGITS_AT_ONCE
from cl_softcot.models.loading import resolve
from cl_softcot.models.own_weights import Trained
from cl_softcot.models.shapes import architecture, as_on_a_device, is_stack, period, without_memory
from cl_softcot.models.text import read_marker
from cl_softcot.models.writing import WAITING

# Of a passing peak, in copies of [N, V] in fp32: logits, their log-probabilities, and the gradient of one of them.
LOSS_COPIES = 3
# AdamW keeps two moments in fp32; in 8 bits two bytes and one fp32 scale in 256.
OPTIMISER_BYTES = {"adamw": 2 * FP32, "adamw_8bit": 2 * (1 + FP32 / 256)}
# What is there before any tensor of ours: CUDA's context and libraries, or Python with torch.
RUNTIME = {"cuda": 0.8 * GB, "cpu": 0.6 * GB}
# Blocks that the allocator holds and cannot use: measured for glibc, whose heap grows most with many small adapters.
FRAGMENTS = {"cuda": 1.08, "cpu": 1.5}
# Places whose distributions are compared at a time (metrics.drift).
DRIFT_CHUNK = 256


@dataclass
class Footprint:
    """Bytes of one process at its peak.

    Attributes:
        stays: what is there all the time, by what it is.
        passes: what comes and goes; only one of them is there at a time.
        runtime: libraries; ``factor`` is what the allocator loses to fragments.
    """

    stays: dict[str, float]
    passes: dict[str, dict[str, float]]
    runtime: float
    factor: float
    trained: int = 0

    @property
    def moment(self) -> str:
        """When the peak is: training, update or answering."""
        return max(self.passes, key=lambda name: sum(self.passes[name].values()))

    @property
    def peak(self) -> float:
        """Bytes."""
        return self.runtime + self.factor * (sum(self.stays.values()) + sum(self.passes[self.moment].values()))

    def items(self) -> list[tuple[str, float]]:
        """What the peak is made of, largest first."""
        return sorted((self.stays | self.passes[self.moment]).items(), key=lambda item: -item[1])


# --------------------------------------------------------------------------------------------- what is kept


def kept_for_backward(method: Any, model_config: Any, plan: Passes) -> tuple[float, float]:
    """Bytes that one forward keeps for its backward pass: whatever the batch is, and for each example in it.

    The former are copies of trained weights in half precision. Models deeper than two periods of their kinds of layers are
    measured at two depths and continued in a straight line.
    """

    def count() -> tuple[float, float]:
        mixture = bool(sizes_of(model_config.path, model_config.trust_remote_code, model_config.gguf_file).stacks)
        whole = model_config.dtype == "float32"
        # The product over experts that can be traced is the one in half precision.
        traced = model_config.model_copy(update={"dtype": "bfloat16"}) if mixture and whole else model_config
        one = _kept_at_full_depth(method, traced, plan, 1)
        if whole and not mixture:
            return 0.0, one
        two = _kept_at_full_depth(method, traced, plan, 2)
        copies, each = max(0.0, 2 * one - two), two - one
        if method.strategy.learns_as.writes_weights and mixture:  # traced in half precision as a whole
            layers = sizes_of(model_config.path, model_config.trust_remote_code, model_config.gguf_file).layers
            copies = 0.0 if whole else 2.0 * layers * len(plan.pieces)
        return (2 * copies, 2 * each) if whole else (copies, each)

    model = (model_config.path, model_config.dtype, model_config.attention)
    return once((method.strategy, method.reasoning.cls.owns_parts, model, plan), count)


def _kept_at_full_depth(method: Any, model_config: Any, plan: Passes, batch_size: int) -> float:
    depth, step = (
        sizes_of(model_config.path, model_config.trust_remote_code, model_config.gguf_file).depth,
        2 * period(_config(model_config)),
    )
    if depth <= 2 * step or depth % 2:  # halves of an odd depth do not continue in a straight line
        return _kept(method, model_config, plan, batch_size, None)
    small, large = (_kept(method, model_config, plan, batch_size, n) for n in (step, 2 * step))
    return small + (large - small) / step * (depth - step)


def _config(model_config: Any) -> Any:
    return architecture(model_config.path, trust_remote_code=model_config.trust_remote_code, gguf_file=model_config.gguf_file)


def _kept(method: Any, model_config: Any, plan: Passes, batch_size: int, layers: int | None) -> float:
    try:
        return _traced(method, model_config, plan, batch_size, layers, masked=True)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # a kind that takes no ready-made masks
        return _traced(method, model_config, plan, batch_size, layers, masked=False)


def _traced(method: Any, model_config: Any, plan: Passes, batch_size: int, layers: int | None, *, masked: bool) -> float:
    with without_memory():
        strategy, parts = prepared(method, model_config, layers)
        backbone = parts.backbone
        if strategy.writes_weights and any(is_stack(m, p) for m in backbone.model.modules() for p in m.parameters(recurse=False)):
            backbone.model.to(getattr(torch, model_config.dtype))
    with as_on_a_device(backbone.model):
        own = {p.untyped_storage()._cdata for p in backbone.model.parameters()}
        kept: dict[int, tuple[Any, int]] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = (storage, storage.nbytes())  # held, so that no other takes its place
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            run_pieces(backbone, plan, batch_size, owns=method.reasoning.cls.owns_parts, masked=masked)
        return float(sum(size for _, size in kept.values()))


def run_pieces(backbone: Any, plan: Passes, batch_size: int, *, owns: bool, masked: bool = True) -> Tensor:
    """The calls of a plan, as ``models.running.forward`` makes them; without ``masked`` the library makes the masks."""
    cache = DynamicCache(config=backbone.config)
    embeddings_trained = backbone.model.get_input_embeddings().weight.requires_grad
    hidden_BTD, seen = None, 0
    for index, columns in enumerate([plan.frozen, *plan.pieces]):
        if not columns:
            continue
        inputs_BTD = torch.empty(batch_size, columns, backbone.width, dtype=backbone.model.get_input_embeddings().weight.dtype)
        inputs_BTD.requires_grad_(embeddings_trained or (owns and index > 0))
        seen += columns
        with torch.set_grad_enabled(index > 0):
            hidden_BTD = backbone.run_core(
                inputs_BTD,
                attention_mask=_mask(backbone, batch_size, columns, seen) if masked else None,
                position_ids=torch.zeros(batch_size, columns, dtype=torch.long),
                past_key_values=cache,
                use_cache=True,
            )
    assert hidden_BTD is not None, "a plan reads something"
    return hidden_BTD


def _mask(backbone: Any, B: int, columns: int, seen: int) -> Any:
    mask_B1NT = torch.zeros(B, 1, columns, seen, dtype=backbone.compute_dtype)
    kinds = set(getattr(backbone.config, "layer_types", None) or ["full_attention"])
    return mask_B1NT if kinds == {"full_attention"} else dict.fromkeys(kinds, mask_B1NT)


# --------------------------------------------------------------------------------------------------- the peak


def footprint_of(config: Any, method: Any, text: TextLengths, *, device: str = "cuda", gpus: int = 1) -> Footprint:
    """The peak of one process of a run.

    Args:
        config: the experiment.
        text: lengths of the longest task's texts.
        device: 'cuda' or 'cpu', which lose different amounts on the side.
        gpus: processes that share trained parts where ``train.sharding`` is full, or GPUs that ``device_map`` spreads over.

    Raises:
        UserError: the shape of a model is not known.
    """
    train, backbone = config.train_for(method), config.backbone
    sizes = sizes_of(backbone.path, backbone.trust_remote_code, backbone.gguf_file)
    helper = assistant_of(config, method)
    assistant = helper and sizes_of(helper.path, helper.trust_remote_code, helper.gguf_file)
    trained = trained_numbers(method, backbone, assistant.width if assistant else None)
    memory = Footprint({}, {}, RUNTIME[device], FRAGMENTS[device], trained.total)
    memory.stays = _what_stays(config, method, sizes, assistant, trained, gpus)
    memory.passes["answering"] = _answering(config, method, sizes, trained, text)
    if config.evaluate.drift:
        memory.passes["drift"] = _drift(config, sizes, text)
    if trained.total:
        memory.passes["training"] = _training_step(config, method, sizes, trained, text, gpus)
        # foreach on a GPU makes one temporary of all that is trained; on a CPU tensors are updated one by one.
        share = _share(train, sizes, trained, gpus)
        largest = share if device == "cuda" else min(share, max(sizes.head, sizes.largest_layer))
        memory.passes["update"] = {"the optimiser's temporary": FP32 * largest}
        _add_gradients(memory, FP32 * share, accumulates=micro_batch(train, gpus) * gpus < train.global_batch_size)
    if _sharded(train, gpus):
        gathered = (trained.total - _whole(sizes, trained)) * getattr(torch, backbone.dtype).itemsize
        for moment in ("training", "answering", "drift"):
            if moment in memory.passes:
                memory.passes[moment]["gathered weights"] = gathered
        # Before they are split the weights are there in whole; the optimiser's means are not there yet.
        later = sum(memory.stays[name] for name in ("trained weights (fp32)", "optimiser"))
        memory.passes["splitting"] = {"whole weights, beyond what stays": max(0.0, FP32 * trained.total - later)}
    return memory


def _add_gradients(memory: Footprint, size: float, *, accumulates: bool) -> None:
    """Gradients stay from a step's first backward pass until the next step begins, and behind the last one of a turn.

    Beside the activations they are there only where earlier micro-batches left theirs: in a single one they come as those go.
    """
    for moment, parts in memory.passes.items():
        if moment != "training" or accumulates:
            parts["gradients (fp32)"] = size


def _sharded(train: Any, gpus: int) -> bool:
    return train.sharding == "full" and gpus > 1


def _share(train: Any, sizes: Sizes, trained: Trained, gpus: int) -> float:
    """How many of the trained numbers one process holds: all, or its part of all but the embedding and what is not sharded."""
    if not _sharded(train, gpus):
        return trained.total
    return (trained.total - _whole(sizes, trained)) / gpus + _whole(sizes, trained)


def _whole(sizes: Sizes, trained: Trained) -> int:
    """Trained numbers that are never split: the input embedding, and what the reasoning owns (``processes.shard``)."""
    return trained.owned + (sizes.head if trained.backbone > sizes.layers else 0)


def _what_stays(config: Any, method: Any, sizes: Sizes, assistant: Sizes | None, trained: Trained, gpus: int) -> dict[str, float]:
    train, backbone = config.train_for(method), config.backbone
    spread = gpus if backbone.device_map else 1
    frozen = weight_bytes(sizes, backbone)
    share = _share(train, sizes, trained, gpus)
    stays = {"frozen weights": (frozen - trained.backbone * getattr(torch, backbone.dtype).itemsize) / spread}
    stays["trained weights (fp32)"] = FP32 * share
    stays["optimiser"] = OPTIMISER_BYTES[train.optimizer] * share
    if method.strategy.learns_as.writes_weights:
        stays["the base itself, for drift and retention"] = frozen / spread
    if assistant:
        copies = method.reasoning.cls.assistant_use(method.reasoning.settings).models
        stays["assistant"] = copies * weight_bytes(assistant, config.assistant)
    return {name: size for name, size in stays.items() if size}


def _training_step(config: Any, method: Any, sizes: Sizes, trained: Trained, text: TextLengths, gpus: int) -> dict[str, float]:
    """Forward and backward pass of one micro-batch, in the phase that keeps most."""
    train = config.train_for(method)
    plans = all_passes_of(method, text, train.steps, frozen_backbone=not (trained.backbone or trained.adapters))
    # What is kept grows with the columns and with the calls, whose caches stay.
    heaviest = {
        max((plan for plan, _ in plans), key=key) for key in (lambda p: (p.columns, len(p.pieces)), lambda p: len(p.pieces))
    }
    steps = [_micro_batch(config, method, sizes, trained, plan, gpus) for plan in heaviest]
    return max(steps, key=lambda parts: sum(parts.values()))


def _micro_batch(config: Any, method: Any, sizes: Sizes, trained: Trained, plan: Passes, gpus: int) -> dict[str, float]:
    backbone, B, half = config.backbone, micro_batch(config.train_for(method), gpus), config.backbone.dtype != "float32"
    copies, each = kept_for_backward(method, backbone, plan)
    activations = B * each
    if _sharded(config.train_for(method), gpus):  # what was gathered is in half precision already
        copies = 0.0
    if backbone.gradient_checkpointing:
        activations, copies = activations / sizes.depth + _kept_by_checkpoints(sizes, plan, B, half), copies / sizes.depth
    # Half precision adds a copy of the logits before they are summed in fp32.
    places = B * plan.labels
    if not _sharded(config.train_for(method), gpus):
        places = min(places, max(1, LOGITS_AT_ONCE // sizes.vocabulary))
    logits = places * sizes.vocabulary * (LOSS_COPIES * FP32 + (2 if half else 0))
    found = {"activations": activations, "logits of the loss": logits, "copies of trained weights in half precision": copies}
    return {name: size for name, size in found.items() if size}


def _kept_by_checkpoints(sizes: Sizes, plan: Passes, B: int, half: bool) -> float:
    """Inputs of every decoder layer, and its keys and values after every call."""
    size, seen, numbers = 2 if half else FP32, plan.frozen, 0
    for columns in plan.pieces:
        seen += columns
        numbers += sizes.width * columns + sizes.kv_width * seen
    return B * sizes.depth * numbers * size


def _answering(config: Any, method: Any, sizes: Sizes, trained: Trained, text: TextLengths) -> dict[str, float]:
    """The largest batch of answers: its cache, that of answers which wait for it, and the passing peak of reading the prompts."""
    settings, backbone = config.evaluate, config.backbone
    size = getattr(torch, backbone.dtype).itemsize
    questions = len(config.tasks) * settings.test + _families(config) * settings.retention  # they are asked together
    B = min(settings.batch_size, questions)
    reasoning = method.reasoning.cls(method.reasoning.settings)
    read = text.prompt + len(reasoning.thoughts(reasoning.final_phase().stage))
    columns = read + settings.max_new_tokens
    waiting = WAITING * settings.batch_size if questions > settings.batch_size else 0
    found = {"cache of keys and values": (B + waiting) * columns * sizes.depth * sizes.kv_width * size}
    # The inner map of one layer with its gate, the residual stream, and attention's mask or weights.
    eager = (backbone.attention or ("eager" if backbone.path.startswith("builtin:") else "sdpa")) == "eager"
    weights = B * read * read * (sizes.heads * (FP32 + size) if eager else size)
    found["reading prompts"] = B * read * (3 * sizes.feed_forward + 4 * sizes.width) * size + weights
    found["logits of the next token"] = 2 * B * sizes.vocabulary * FP32
    if trained.adapters and backbone.dtype == "float32":
        found["adapters merged into copies of their maps"] = FP32 * (sizes.linear + sizes.stacks)
    return found


def _families(config: Any) -> int:
    """How many sets retention is measured on."""
    if config.evaluate.retention_tasks is not None:
        return len(config.evaluate.retention_tasks)
    return len((read_marker(folder) or {}).get("families", {})) if (folder := resolve(config.backbone.path)) else 0


def _drift(config: Any, sizes: Sizes, text: TextLengths) -> dict[str, float]:
    """Reading continuations, then both sides' logits in fp32 and four maps of the vocabulary in fp64 for a chunk of places."""
    settings, size = config.evaluate, getattr(torch, config.backbone.dtype).itemsize
    prompts = (len(config.tasks) + 1) * settings.drift  # general text beside the tasks'
    B, read = min(settings.batch_size, prompts), text.prompt + settings.max_new_tokens
    cache = (read + settings.max_new_tokens) * sizes.depth * sizes.kv_width  # a sample stands behind the base's text
    reading = B * (read * (3 * sizes.feed_forward + 4 * sizes.width) + cache) * size
    logits = DRIFT_CHUNK * sizes.vocabulary * (2 * FP32 + 4 * 8)
    return {"reading what was written": reading} if reading > logits else {"log-probabilities of the drift": logits}
